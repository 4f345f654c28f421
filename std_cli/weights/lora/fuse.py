"""LoRA and UNet: whether every layer of the file is one of the UNet's, and the sum of both."""

from typing import TYPE_CHECKING

from std_cli.errors import InputError, counted
from std_cli.weights.fit import first_names
from std_cli.weights.lora.family import Shape, fits
from std_cli.weights.lora.read import LoraWeights, cut

if TYPE_CHECKING:
    from torch import nn

OTHER = "made for another architecture? Choose one for this model"


def misfits(
    weights: LoraWeights, layers: dict[str, Shape], biases: set[str]
) -> tuple[list[str], list[str]]:
    """(layers of the file that a network does not have, those that it has in another shape, with
    both shapes)."""
    lost, wrong = [], []
    for name, shape in weights.shapes().items():
        if name not in layers:
            lost.append(name)
        elif not fits(shape, layers[name]) and not (
            len(shape) == 1 and shape[0] == layers[name][0]
        ):
            wrong.append(f"{cut(name)}: {shape} for {layers[name]}")
        elif weights.layers[name].bias() is not None and name not in biases:
            wrong.append(f"{cut(name)}: a bias for a layer without one")
    return lost, wrong


def check_lora(
    weights: LoraWeights, unet: "nn.Module", allow_partial: bool = False
) -> tuple[int, int]:
    """(tensors whose layer is in this UNet, tensors in all): the same number, unless
    `allow_partial`.

    The UNet may have layers that the file does not adapt: a LoRA for pictures fits a motion UNet.
    Raises InputError if a layer is not there, or has another shape, or if none is there.
    """
    modules = {
        name: module
        for name, module in unet.named_modules()
        if getattr(module, "weight", None) is not None
    }
    shapes = {name: tuple(module.weight.shape) for name, module in modules.items()}
    biases = {name for name, module in modules.items() if getattr(module, "bias", None) is not None}
    lost, wrong = misfits(weights, shapes, biases)
    if wrong:
        raise InputError(
            f"{weights.label}: {counted(len(wrong), 'layer')} of another shape (first "
            f"{wrong[0]}): {OTHER}"
        )
    total = sum(len(layer.tensors) for layer in weights.layers.values())
    matched = total - sum(len(weights.layers[name].tensors) for name in lost)
    if lost and (not matched or not allow_partial):
        partly = "; --allow-partial leaves them out" if matched else ""
        raise InputError(
            f"{weights.label}: {matched} of {total} tensors match this UNet, which lacks "
            f"{len(lost)} of its layers "
            f"({first_names([cut(name) for name in lost])}): {remedy(weights, lost)}{partly}"
        )
    return matched, total


def remedy(weights: LoraWeights, lost: list[str]) -> str:
    """What to do about layers that a UNet lacks."""
    if all(".motion_modules." in name for name in lost):
        return "it is for videos: name a motion adapter with --motion, or give another LoRA"
    return f"it is for {weights.family.name} ({weights.family.why})" if weights.family else OTHER


def fuse_lora(weights: LoraWeights, unet: "nn.Module", strength: float) -> None:
    """Add the changes, computed in fp32, to the UNet's weights and biases; layers that it lacks are
    passed over."""
    import torch

    modules = dict(unet.named_modules())
    with torch.no_grad():
        for name, layer in weights.layers.items():
            module = modules.get(name)
            if module is None:
                continue
            layer = layer.to(module.weight.device)
            module.weight.copy_(layer.weight(module.weight, strength))
            if (added := layer.bias()) is not None:
                module.bias.copy_(module.bias.float() + strength * added)
