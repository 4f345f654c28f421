"""The names of a LoRA's tensors: which part of the model, which layer, which tensor of the method.
This module handles strings only.

A key is PREFIX LAYER TENSOR, and each tool has its own three. One layer, as they name it:

    kohya, with SDXL's own blocks
        lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lora_down.weight
    kohya, with diffusers' blocks
        lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight
    diffusers
        unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight
    diffusers, before it used peft
        unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight
    peft
        base_model.model.down_blocks.1...attn1.to_q.lora_A.default.weight
    ComfyUI, OneTrainer
        diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q.lora_down.weight
"""

import re
from dataclasses import dataclass
from typing import Literal

# The end of a key -> the tensor's name in LyCORIS' and kohya's files, which is the one that is used
# here.
_TENSORS: tuple[tuple[str, str], ...] = (
    (r"\.lora_(?:down|A)(?:\.(?!bias)\w+)??(?:\.weight)?", "lora_down.weight"),
    (r"\.lora_(?:up|B)(?:\.(?!bias)\w+)??(?:\.weight)?", "lora_up.weight"),
    (r"\.lora_(?:up|B)(?:\.\w+)?\.bias", "lora_up.bias"),
    (r"\.lora_(?:down|A)(?:\.\w+)?\.bias", "lora_down.bias"),
    (r"[._]lora\.down(?:\.weight)?|\.lora_linear_layer\.down(?:\.weight)?", "lora_down.weight"),
    (r"[._]lora\.up(?:\.weight)?|\.lora_linear_layer\.up(?:\.weight)?", "lora_up.weight"),
    (r"\.lora_mid(?:\.weight)?", "lora_mid.weight"),
    (r"(?:[._]lora|\.lora_linear_layer)?\.(?:network_)?alpha", "alpha"),
    (r"\.dora_scale", "dora_scale"),
    (r"\.lora_magnitude_vector(?:\.(?!weight)\w+)?(?:\.weight)?", "magnitude"),
    (r"\.(hada_(?:w[12]_[ab]|t[12]))(?:\.\w+)?", ""),
    (r"\.(lokr_(?:w[12](?:_[ab])?|t[12]))(?:\.\w+)?", ""),
    (r"\.(diff_b|diff|w_norm|b_norm)", ""),
    (r"\.([ab][12]|bm)\.weight", ""),
    # Methods that are known by name only.
    (r"\.(oft_blocks|oft_diag|oft_R|oft_r|oft_s|boft_[RS]|rescale)(?:\.\w+)*", ""),
    (r"\.(on_input|ia3_l)(?:\.\w+)*", ""),
    (r"\.(vera_lambda_[bd]|vera_[AB]|lora_E|lora_ranknum|lora_embedding_[AB])(?:\.\w+)*", ""),
    (r"\.(reshape_weight|set_weight|scalar|bias_(?:indices|values|size))", ""),
)
_PATTERNS = [(re.compile(rf"(?:{pattern})\Z"), name) for pattern, name in _TENSORS]

_EMBEDDING = re.compile(
    r"(bundle_emb|emb_params|embeddings?|learned_embeds|string_to_param)\b|clip_[lgh](_out)?\Z|<|\*\Z"
)
_TEXT = re.compile(
    r"(base_model\.model\.|model\.)*"
    r"(lora_(prior_)?te\d?_|lycoris_text|text_encoders?(_?\d)?[._]|text_model\.|te_?\d?[._]|clip_[lgh][._]|t5(xxl)?[._]"
    r"|cond_stage_model\.|conditioner\.|lora_(text_encoder|clip|t5)\w*[._])"
)
_PREFIX = re.compile(r"((unet|base_model|model|diffusion_model|_orig_mod|module)\.)+")
_FLAT = re.compile(r"(lora_(prior_)?unet_|lycoris_(unet_)?|lora_transformer_|unet_)+(?=\w+\Z)")

_WORDS = (
    "down_blocks", "mid_block", "up_blocks", "transformer_blocks", "motion_modules",
    "temporal_attentions", "proj_in", "proj_out", "to_q", "to_k", "to_v", "to_out",
    "conv_in", "conv_out", "conv_norm_out", "norm_out", "conv_shortcut", "time_emb_proj",
    "time_embedding", "add_embedding", "class_embedding", "linear_1", "linear_2",
    "input_blocks", "middle_block", "output_blocks", "in_layers", "out_layers", "emb_layers",
    "skip_connection", "time_embed", "label_emb",
    "double_blocks", "single_blocks", "joint_blocks", "single_transformer_blocks",
)  # fmt: skip
"""The words of a UNet's names that have an underscore in them, with diffusers' blocks and the
original ones. In kohya's files every dot is an underscore too: these must stay whole."""
_TOKEN = re.compile(rf"({'|'.join(sorted(_WORDS, key=len, reverse=True))}|[A-Za-z0-9]+)(?:_|\Z)")

_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_OUTSIDE = {
    "input_blocks.0.0": "conv_in",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


@dataclass(frozen=True)
class Name:
    """What a key says."""

    part: Literal["unet", "text", "embedding"]
    layer: str
    """In diffusers' names, with dots; of "text" and "embedding" as it stands in the key."""
    tensor: str
    """In LyCORIS' and kohya's names; "" if the key ends like none of any method."""
    original: bool = False
    """The layer was named as in the original SDXL (input_blocks), not as in diffusers
    (down_blocks)."""


def parse(key: str) -> Name:
    """Split a key of any spelling; whatever is for no text encoder and no embedding is taken as the
    UNet's."""
    layer, tensor = key, ""
    for pattern, name in _PATTERNS:
        if match := pattern.search(key):
            layer, tensor = key[: match.start()], name or match[1]
            break
    if _EMBEDDING.match(key):
        return Name("embedding", layer, tensor)
    if _TEXT.match(key):
        return Name("text", layer, tensor)
    layer = _PREFIX.sub("", layer, count=1) if _PREFIX.match(layer) else layer
    if flat := _FLAT.match(layer):
        layer = _with_dots(layer[flat.end() :])
    layer = re.sub(r"\.processor(?=\.)", "", layer)
    layer = re.sub(r"(\.to_out)\Z", r"\1.0", layer)  # diffusers named it without its number, once
    theirs = from_original(layer)
    return Name("unet", theirs, tensor, original=theirs != layer)


def _with_dots(flat: str) -> str:
    """ "down_blocks.0.resnets.0.conv1" of "down_blocks_0_resnets_0_conv1"; what is no such name
    stays as it is."""
    words, at = [], 0
    while at < len(flat):
        word = _TOKEN.match(flat, at)
        if not word:
            return flat
        words.append(word[1])
        at = word.end()
    return ".".join(words)


def from_original(layer: str) -> str:
    """diffusers' name of a layer with the original one's, for UNets of two ResNets to a block (SD
    1.5, 2, SDXL).

    The table is diffusers' scripts/convert_diffusers_to_original_sdxl.py.
    """
    if layer in _OUTSIDE:
        return _OUTSIDE[layer]
    match = re.match(r"(?:(input|output)_blocks\.(\d+)|(middle_block))\.(\d+)(?:\.|\Z)", layer)
    if not match:
        return layer
    side, number, inner = match[1], int(match[2] or 0), int(match[4])
    if side == "input" and not number:
        return layer
    rest = layer[match.end() :]
    if side == "input":
        block, at = f"down_blocks.{(number - 1) // 3}", (number - 1) % 3
    elif side == "output":
        block, at = f"up_blocks.{number // 3}", number % 3
    else:
        block, at = "mid_block", inner // 2
    if rest == "op":
        return f"{block}.downsamplers.0.conv"
    if rest == "conv":
        return f"{block}.upsamplers.0.conv"
    if rest in _RESNET:
        return f"{block}.resnets.{at}.{_RESNET[rest]}"
    return f"{block}.attentions.{0 if block == 'mid_block' else at}{'.' if rest else ''}{rest}"


def to_original(layer: str) -> str | None:
    """The inverse of `from_original`; None for a layer that the original does not have, such as
    motion modules.

    In SDXL's numbers: its block 2 of 3 has attention upwards in blocks 0 and 1, with an upsampler
    after it.
    """
    for theirs, ours in _OUTSIDE.items():
        if layer == ours:
            return theirs
    match = re.match(
        r"(down_blocks|up_blocks|mid_block)(?:\.(\d+))?\.(resnets|attentions|\w+samplers)\.(\d+)\.",
        layer,
    )
    if not match:
        return None
    side, block, kind, at = match[1], int(match[2] or 0), match[3], int(match[4])
    rest = layer[match.end() :]
    if kind == "resnets":
        rest = next((theirs for theirs, ours in _RESNET.items() if rest == ours), "")
    if not rest:
        return None
    match side, kind:
        case "down_blocks", "downsamplers":
            return f"input_blocks.{3 * block + 3}.0.op"
        case "up_blocks", "upsamplers":
            return f"output_blocks.{3 * block + 2}.2.conv"
        case "mid_block", "resnets":
            return f"middle_block.{2 * at}.{rest}"
        case "mid_block", "attentions":
            return f"middle_block.1.{rest}"
        case "down_blocks", "resnets" | "attentions":
            return f"input_blocks.{3 * block + 1 + at}.{int(kind == 'attentions')}.{rest}"
        case "up_blocks", "resnets" | "attentions":
            return f"output_blocks.{3 * block + at}.{int(kind == 'attentions')}.{rest}"
    return None
