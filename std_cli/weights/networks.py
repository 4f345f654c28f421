"""The networks of a model with the tensors of their files.

A network is made without numbers, and each tensor goes from its memory-mapped file to the precision
and device of the run, one by one: no weight is held twice. On its way it is checked to be a number.
"""

from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from std_cli.errors import InputError
from std_cli.weights.configs.base import read_config, settings
from std_cli.weights.configs.encoders import ImageEncoder, TextEncoder
from std_cli.weights.files import checked_numbers, mapped_tensors, read_header, read_object
from std_cli.weights.motion import MotionFiles, from_hotshot
from std_cli.weights.resolve import ModelFiles, weight_files
from std_cli.weights.sdxl_files import single_file_key

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

# Names of the VAE's attention before diffusers 0.18, which its loader still reads from a file in
# one piece.
_OLD_ATTENTION = {
    ".to_q.": ".query.",
    ".to_k.": ".key.",
    ".to_v.": ".value.",
    ".to_out.0.": ".proj_attn.",
}


def make_network(part: str, folder: Path) -> "nn.Module":
    """A part of a model, or its image encoder, by the config.json in a folder; its weights are on
    the meta device, without numbers. Raises InputError for a config that cannot be used."""
    from accelerate import init_empty_weights
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import (
        CLIPTextConfig,
        CLIPTextModel,
        CLIPTextModelWithProjection,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
    )
    from transformers.initialization import no_init_weights

    config = folder / "config.json"

    def text() -> Any:
        return CLIPTextConfig(**settings(read_config(TextEncoder, config)[0]))

    make: dict[str, Callable[[], nn.Module]] = {
        "unet": lambda: UNet2DConditionModel.from_config(read_object(config)),
        "vae": lambda: AutoencoderKL.from_config(read_object(config)),
        "text_encoder": lambda: CLIPTextModel(text()),
        "text_encoder_2": lambda: CLIPTextModelWithProjection(text()),
        "image_encoder": lambda: CLIPVisionModelWithProjection(
            CLIPVisionConfig(**settings(read_config(ImageEncoder, config)[0]))
        ),
    }
    # torch.device("meta") would be for buffers, too, and to compute those imports half a second
    with init_empty_weights(include_buffers=False), no_init_weights():
        return made(str(config), make[part])


def made(config: str, make: "Callable[[], nn.Module]") -> "nn.Module":
    """What `make` returns. Raises InputError that names the config if it fails."""
    try:
        return make()
    except InputError:
        raise
    except Exception as error:  # a config that asks for what cannot be: libraries raise anything
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
        raise InputError(f"{config} cannot be used: {reason}: fetch it again") from error


def stored_names(
    part: str, keys: Iterable[str], stored: Collection[str], whole: bool = True
) -> dict[str, str]:
    """{key of a network: its name in the files of a folder}; `whole`: they are one file, no shards.

    transformers reads CLIP's tensors with and without their prefix, whatever the class is.
    """
    prefix = "vision_model." if part == "image_encoder" else "text_model."
    prefixed = 2 * sum(key.startswith(prefix) for key in stored) > len(stored)
    names = {}
    for key in keys:
        name = key
        if "encoder" in part and not key.startswith(("text_projection.", "visual_projection.")):
            bare = key.removeprefix(prefix)
            spellings = (prefix + bare, bare) if prefixed else (bare, prefix + bare)
            name = next((spelling for spelling in spellings if spelling in stored), spellings[0])
        elif part == "vae" and whole and ".attentions." in key:
            old = next(
                (key.replace(new, was) for new, was in _OLD_ATTENTION.items() if new in key), key
            )
            name = old if old in stored else key
        names[key] = name
    return names


def read_network(
    part: str, model: ModelFiles, dtype: "torch.dtype", device: "torch.device"
) -> "nn.Module":
    """A part of a model ("unet", "vae", "text_encoder", "text_encoder_2"), or its "image_encoder",
    for evaluation, with the weights of its files. Raises InputError for those that do not fit, or
    are not numbers that `dtype` can hold."""
    encoder = part == "image_encoder"
    folder = model.image_encoder if encoder else (model.config or model.base) / part
    files = [folder / "model.safetensors"] if encoder else weight_files(model)[part][0]
    network = make_network(part, folder)
    shapes = {key: tensor.shape for key, tensor in network.state_dict().items()}
    places = {name: file for file in files for name in read_header(file)[0]}
    in_one = model.single_file and not encoder
    names = (
        {key: single_file_key(part, key) for key in shapes}
        if in_one
        else stored_names(part, shapes, places, len(files) == 1)
    )
    wanted = set(names.values())
    found: dict[str, Tensor] = {}
    for file in files:
        found |= read_tensors(
            file, {name for name in wanted if places.get(name) == file}, dtype, device
        )
    state = {
        key: _as_in(part, key, shapes[key], found[name]) if in_one else found[name]
        for key, name in names.items()
        if name in found
    }
    network.load_state_dict(state, assign=True)
    # the buffers that are in no file, such as CLIP's positions, were made in main memory
    return network.to(device).eval()


def read_ip_adapter(
    model: ModelFiles, dtype: "torch.dtype", device: "torch.device"
) -> "dict[str, dict[str, Tensor]]":
    """The IP-Adapter of a model as diffusers' `load_ip_adapter` takes it: "image_proj" and
    "ip_adapter", each with its tensors."""
    state: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    keys = read_header(model.ip_adapter)[0]
    for key, tensor in read_tensors(model.ip_adapter, keys, dtype, device).items():
        part, _, name = key.partition(".")
        state[part][name] = tensor
    return state


def read_motion(
    motion: MotionFiles, dtype: "torch.dtype", device: "torch.device"
) -> "dict[str, Tensor]":
    """The tensors of a motion adapter under the keys of diffusers' MotionAdapter."""
    tensors = read_tensors(motion.weights, read_header(motion.weights)[0], dtype, device)
    return from_hotshot(tensors) if motion.hotshot else tensors


def read_tensors(
    file: Path, keys: Collection[str], dtype: "torch.dtype", device: "torch.device"
) -> "dict[str, Tensor]":
    """Tensors of a safetensors file in a precision, on a device. Where both are the file's they are
    its mapped memory, which a change in place does not write to.

    Raises InputError for NaN, infinity, and numbers that fp16 cannot hold, by file and tensor.
    """
    import torch

    largest = torch.finfo(dtype).max if dtype == torch.float16 else float("inf")
    return {
        key: tensor.to(device).to(dtype)
        for key, tensor in checked_numbers(str(file), mapped_tensors(file, keys), largest)
    }


def _as_in(part: str, key: str, shape: "torch.Size", tensor: "Tensor") -> "Tensor":
    """A tensor of a checkpoint in one file as diffusers and transformers shape it."""
    if part == "text_encoder_2" and ".self_attn." in key and "out_proj" not in key:
        return tensor.chunk(3)["qkv".index(key.rpartition(".self_attn.")[2][0])]
    if key == "text_projection.weight":
        return tensor.T.contiguous()
    if part == "vae" and tensor.ndim == 4 and len(shape) == 2:
        return tensor[:, :, 0, 0]  # a convolution of 1 x 1 in the original
    return tensor
