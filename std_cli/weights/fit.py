"""Whether weights fit a network: every tensor of a file finds its place, before any is loaded. By
names and shapes."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from std_cli.errors import InputError

if TYPE_CHECKING:
    import torch

Shapes = dict[str, list[int]]

# Width of what cross attention reads.
_UNETS = {768: "Stable Diffusion 1.5", 1024: "Stable Diffusion 2", 2048: "SDXL"}
_CROSS = re.compile(r"attn2\.to_k\.weight$|to_k_ip\.weight$")


def family(shapes: Shapes) -> tuple[str, int] | None:
    """(name, width) of the kind of model that an IP-Adapter is for, or a UNet is, by its cross
    attention; or None.

    A LoRA's is found by `std_cli.weights.lora.family`.
    """
    for key, shape in shapes.items():
        if _CROSS.search(key) and len(shape) == 2 and shape[1] in _UNETS:
            return _UNETS[shape[1]], shape[1]
    return None


def checkpoint_family(shapes: Shapes) -> str | None:
    """What a whole model in one file is, by its names, for the message that it is no SDXL base
    model; None if they do not show it."""
    if any(key.startswith("conditioner.embedders.0.model.") for key in shapes):
        return "the SDXL refiner"
    if any(".double_blocks." in f".{key}" for key in shapes):
        return "Flux"
    if any(".joint_blocks." in f".{key}" for key in shapes):
        return "Stable Diffusion 3"
    made = family(shapes)
    return made[0] if made and made[0] != "SDXL" else None


def check_motion(name: str, shapes: Shapes, adapter: "torch.nn.Module") -> None:
    """Raises InputError unless a file's tensors (with MotionAdapter's names) are exactly those of
    the adapter."""
    _check_exact(
        f"--motion {name}", shapes, {k: list(t.shape) for k, t in adapter.state_dict().items()}
    )


def check_ip_adapter(name: str, shapes: Shapes, unet: Any) -> None:
    """Raises InputError unless an IP-Adapter has a pair for every cross attention of the UNet, in
    its width."""
    wanted: Shapes = {}
    number = 1  # then 3, 5, ... in the order of diffusers' loader
    for processor in unet.attn_processors:
        if processor.endswith("attn2.processor") and "motion_modules" not in processor:
            attention = unet.get_submodule(processor.removesuffix(".processor"))
            for half in ("to_k_ip", "to_v_ip"):
                wanted[f"ip_adapter.{number}.{half}.weight"] = list(attention.to_k.weight.shape)
            number += 2
    found = {key: shape for key, shape in shapes.items() if key.startswith("ip_adapter.")}
    made = family(shapes)
    width = int(unet.config.cross_attention_dim)
    if made and made[1] != width:
        raise InputError(
            f"{name}: its shapes are those of {made[0]}, {made[1]} wide, not {width}: choose one "
            f"for SDXL"
        )
    _check_exact(name, found, wanted)
    last = shapes.get("image_proj.proj_out.weight") or shapes.get("image_proj.norm.weight") or [0]
    if last[0] != width:
        raise InputError(
            f"{name}: it projects pictures to width {last[0]}, not {width}: choose one for this "
            f"model"
        )


def _check_exact(name: str, found: Shapes, wanted: Shapes) -> None:
    lacks = [key for key in wanted if key not in found]
    beyond = [key for key in found if key not in wanted]
    wrong = [
        f"{k} {list(found[k])} for {s}"
        for k, s in wanted.items()
        if k in found and list(found[k]) != s
    ]
    if lacks or beyond or wrong:
        parts = [("lacks", lacks), ("has beyond them", beyond), ("differ in shape", wrong)]
        differences = "; ".join(
            f"{len(keys)} {what} ({first_names(keys)})" for what, keys in parts if keys
        )
        right = len(wanted) - len(lacks) - len(wrong)
        remedy = (
            "choose one made for this model"
            if beyond or wrong
            else "fetch it again, or choose another"
        )
        raise InputError(f"{name}: {right} of {len(wanted)} tensors fit: {differences}: {remedy}")


def first_names(names: Sequence[str], count: int = 3) -> str:
    """The first names of a list, for an error."""
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
