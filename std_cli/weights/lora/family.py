"""Which kind of model a LoRA is for: by the shapes of all its layers, and where these leave a
choice, by what is written in the file.

Cross attention alone would say it, but many files have none (`attn2` left out, convolutions only).
So the layers are compared with every layer that the UNets of the Stable Diffusion family have.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Unet:
    """What shapes a UNet of two ResNets to a block; the values are those of the published
    configs."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    """Transformer blocks of an attention, by block downwards; the last number is the middle's."""
    cross: int
    """Width of the text that cross attention reads."""
    linear: bool
    """`proj_in` and `proj_out` are linear layers, not convolutions of 1 x 1."""
    added: int
    """Width of pooled text and sizes; 0 without."""


UNETS = {
    "SDXL": Unet((320, 640, 1280), (0, 2, 10, 10), 2048, True, 2816),
    "SDXL refiner": Unet((384, 768, 1536, 1536), (0, 4, 4, 0, 4), 1280, True, 2560),
    "Stable Diffusion 1.5": Unet((320, 640, 1280, 1280), (1, 1, 1, 0, 1), 768, False, 0),
    "Stable Diffusion 2": Unet((320, 640, 1280, 1280), (1, 1, 1, 0, 1), 1024, True, 0),
}
# Width of the tokens of the models that are transformers throughout.
_TRANSFORMERS = {3072: "Flux", 1536: "Stable Diffusion 3", 2432: "Stable Diffusion 3.5"}
_JOINT = re.compile(
    r"(double|single|joint)_blocks[._]\d|\A(transformer[._])?(single_)?transformer_blocks[._]\d|\Ablocks[._]\d"
)
# What metadata may say, in kohya's `ss_base_model_version` and in `modelspec.architecture`.
_SAID = (
    (r"flux", "Flux"),
    (r"sd3|stable-diffusion-3|stable-diffusion-v3", "Stable Diffusion 3"),
    (r"refiner", "SDXL refiner"),
    (r"sdxl|stable-diffusion-xl", "SDXL"),
    (r"sd_v2|sd_2|stable-diffusion-v2", "Stable Diffusion 2"),
    (r"sd_v1|sd_1|stable-diffusion-v1", "Stable Diffusion 1.5"),
)


@dataclass(frozen=True)
class Family:
    """The kind of model that a file is for."""

    name: str
    why: str
    """What says so, to be put in brackets."""
    cross: int | None
    """Width of the text that such a UNet's cross attention reads; None of a transformer, and where
    two families are possible, neither of them SDXL."""


def lora_family(
    shapes: Mapping[str, Shape], metadata: Mapping[str, str], text: Iterable[str], original: bool
) -> Family | None:
    """The family of a LoRA; None if nothing says.

    shapes: of the changes to the layers' weights, (out, in[, kh, kw]), by layer in diffusers'
    names. text: the keys of its text-encoder tensors. original: its UNet's layers are named as in
    the original, which kohya does for SDXL alone.
    """
    joint = next(
        (
            shape
            for layer, shape in shapes.items()
            if _JOINT.search(layer) and "attentions" not in layer
        ),
        None,
    )
    if joint:
        name = _TRANSFORMERS.get(joint[1], "a transformer such as Flux or Stable Diffusion 3")
        return Family(name, f"by its shapes, {joint[1]} wide", None)
    spatial = {layer: shape for layer, shape in shapes.items() if ".motion_modules." not in layer}
    fit = {
        name: sum(fits(s, unet_layers(name).get(layer)) for layer, s in spatial.items())
        for name in UNETS
    }
    most = max(fit.values())
    if not most or 2 * most < len(spatial):
        return None
    left = [name for name in UNETS if fit[name] == most]
    if len(left) == 1:
        return _family(left[0], f"by its shapes, {UNETS[left[0]].cross} wide")
    said = _said(metadata)
    if said in left:
        return _family(said, "by its metadata")
    if "SDXL" not in left:
        return Family(" or ".join(left), "by its shapes", None)
    if said:
        return None
    keys = list(text)
    if "SDXL" in left and any(
        re.match(r"lora_te2_|text_encoder_2\.|te2[._]|clip_g", key) for key in keys
    ):
        return _family("SDXL", "by its second text encoder")
    if any(re.match(r"lora_te_", key) for key in keys):  # kohya's name of an only text encoder
        left = [name for name in left if not name.startswith("SDXL")]
        return _family(left[0], "by its text encoder") if len(left) == 1 else None
    return _family("SDXL", "by its names") if original and "SDXL" in left else None


def _said(metadata: Mapping[str, str]) -> str | None:
    """The family that the metadata name, if any."""
    keys = ("ss_base_model_version", "modelspec.architecture")
    said = " ".join(metadata.get(key, "") for key in keys).lower()
    return next((name for pattern, name in _SAID if re.search(pattern, said)), None)


def _family(name: str, why: str) -> Family:
    return Family(name, why, UNETS[name].cross if name in UNETS else None)


def fits(change: Shape, weight: Shape | None) -> bool:
    """Whether a change of this shape can be added to a weight: 1 x 1 convolutions are as good as
    matrices, and a matrix may hold a convolution's inputs and kernel in one axis.
    """
    if weight is None or len(change) < 2 or len(weight) < 2:
        return change == weight
    flat = math.prod(change[1:]) == math.prod(weight[1:])
    ones = len(change) != len(weight) or change == weight
    small = (
        len(change) == 2
        or change[2:] == weight[2:]
        or (len(weight) == 2 and set(change[2:]) == {1})
    )
    return change[0] == weight[0] and flat and ones and small


@cache
def unet_layers(name: str) -> dict[str, Shape]:
    """{layer: shape of its weight} of a UNet in diffusers' names: linear layers, convolutions and
    norms."""
    u = UNETS[name]
    first, emb, last = u.widths[0], 4 * u.widths[0], len(u.widths) - 1
    out: dict[str, Shape] = {
        "conv_in": (first, 4, 3, 3),
        "conv_out": (4, first, 3, 3),
        "conv_norm_out": (first,),
        "time_embedding.linear_1": (emb, first),
        "time_embedding.linear_2": (emb, emb),
    }
    if u.added:
        out |= {"add_embedding.linear_1": (emb, u.added), "add_embedding.linear_2": (emb, emb)}
    for block, width in enumerate(u.widths):
        before = u.widths[max(block - 1, 0)]
        for at in range(2):
            out |= _resnet(
                f"down_blocks.{block}.resnets.{at}", before if at == 0 else width, width, emb
            )
            out |= _attention(f"down_blocks.{block}.attentions.{at}", width, u.depths[block], u)
        if block < last:
            out[f"down_blocks.{block}.downsamplers.0.conv"] = (width, width, 3, 3)
    for at in range(2):
        out |= _resnet(f"mid_block.resnets.{at}", u.widths[-1], u.widths[-1], emb)
    out |= _attention("mid_block.attentions.0", u.widths[-1], u.depths[-1], u)
    # upwards: each ResNet takes the skipped output of one downwards, too
    for block in range(last + 1):
        width, down = u.widths[last - block], last - block
        coming = u.widths[min(down + 1, last)]
        below = u.widths[max(down - 1, 0)]
        for at in range(3):
            given = (coming if at == 0 else width) + (below if at == 2 else width)
            out |= _resnet(f"up_blocks.{block}.resnets.{at}", given, width, emb)
            out |= _attention(f"up_blocks.{block}.attentions.{at}", width, u.depths[down], u)
        if block < last:
            out[f"up_blocks.{block}.upsamplers.0.conv"] = (width, width, 3, 3)
    return out


def _resnet(name: str, given: int, width: int, emb: int) -> dict[str, Shape]:
    out: dict[str, Shape] = {
        f"{name}.norm1": (given,),
        f"{name}.conv1": (width, given, 3, 3),
        f"{name}.time_emb_proj": (width, emb),
        f"{name}.norm2": (width,),
        f"{name}.conv2": (width, width, 3, 3),
    }
    if given != width:
        out[f"{name}.conv_shortcut"] = (width, given, 1, 1)
    return out


def _attention(name: str, width: int, depth: int, unet: Unet) -> dict[str, Shape]:
    if not depth:
        return {}
    square = (width, width) if unet.linear else (width, width, 1, 1)
    out: dict[str, Shape] = {
        f"{name}.norm": (width,),
        f"{name}.proj_in": square,
        f"{name}.proj_out": square,
    }
    for number in range(depth):
        block = f"{name}.transformer_blocks.{number}"
        for attention, source in (("attn1", width), ("attn2", unet.cross)):
            for layer in ("to_q", "to_out.0"):
                out[f"{block}.{attention}.{layer}"] = (width, width)
            for layer in ("to_k", "to_v"):
                out[f"{block}.{attention}.{layer}"] = (width, source)
        out |= {
            f"{block}.ff.net.0.proj": (8 * width, width),
            f"{block}.ff.net.2": (width, 4 * width),
        }
        out |= {f"{block}.norm{norm}": (width,) for norm in (1, 2, 3)}
    return out
