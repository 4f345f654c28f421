"""The names of layers in every spelling."""

from std_cli.weights.lora.family import unet_layers
from std_cli.weights.lora.names import from_original, parse, to_original
from tests.weights.lora.tensors import original_names


def test_every_name_of_sdxl_in_both_block_namings():
    names = original_names()
    assert names.keys() == unet_layers("SDXL").keys() and len(set(names.values())) == 1050
    for layer, theirs in names.items():
        assert (to_original(layer), from_original(theirs)) == (theirs, layer)
        for key in (
            f"lora_unet_{theirs.replace('.', '_')}",
            f"diffusion_model.{theirs}",
            f"unet.{theirs}",
            theirs,
        ):
            assert parse(f"{key}.lora_up.weight").layer == layer, key
        for key in (
            f"lora_unet_{layer.replace('.', '_')}",
            f"unet.base_model.model.{layer}",
            layer,
        ):
            assert parse(f"{key}.lora_up.weight").layer == layer, key
