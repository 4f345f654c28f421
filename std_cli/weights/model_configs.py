"""The config files of a model's folder: read, typed and bounded before a library sees them.

A folder may come from anyone. So every value that shapes a network, allocates memory or chooses
code is checked here: whole numbers are whole numbers, sizes have bounds, parts are of the classes
that std runs, and nothing names code, other files or addresses. Keys that no class here knows are
left as they are: diffusers ignores them. Whether the sizes are those of the weights is checked from
the headers of the weight files, after this: building the classes is cheap only within these bounds.

The fields are those of diffusers' and transformers' own classes, with their defaults where others
depend on them.
"""

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from std_cli.errors import InputError, StdError, printable, quote
from std_cli.weights.files import read_object

Width = Annotated[int, Field(ge=1, le=16384)]
"""Channels, or features."""
Side = Annotated[int, Field(ge=1, le=16384)]
"""Pixels, or latent pixels."""
Heads = Annotated[int, Field(ge=1, le=1024)]
Layers = Annotated[int, Field(ge=1, le=32)]
Depth = Annotated[int, Field(ge=0, le=64)]
"""Transformer layers of a block."""
Share = Annotated[float, Field(ge=0, le=1)]
Small = Annotated[float, Field(gt=0, lt=1)]
Scale = Annotated[float, Field(gt=0, le=1000)]
TokenId = Annotated[int, Field(ge=-1, lt=2**31)]
Blocks = Annotated[list[Width], Field(min_length=1, max_length=8)]
PerBlock = Annotated[list[Layers], Field(min_length=1, max_length=8)]
Depths = Annotated[
    list[Depth | Annotated[list[Depth], Field(max_length=33)]], Field(min_length=1, max_length=8)
]
DownBlocks = Annotated[
    list[Literal["DownBlock2D", "CrossAttnDownBlock2D"]], Field(min_length=1, max_length=8)
]
UpBlocks = Annotated[
    list[Literal["UpBlock2D", "CrossAttnUpBlock2D"]], Field(min_length=1, max_length=8)
]
Activation = Literal["silu", "swish", "mish", "gelu", "relu"]
FloatName = Literal["float16", "bfloat16", "float32", "float64"]
HiddenActivation = Literal[
    "quick_gelu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish"
]

MOST_RESNETS = 256
"""Of a network; SDXL's UNet has 17."""
MOST_TRANSFORMERS = 512
"""Transformer layers of a network; SDXL's UNet has 70."""


class Config(BaseModel):
    """A config file: strict types; other keys stay, but those that would make a library run or
    fetch something."""

    model_config = ConfigDict(
        extra="allow",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
        protected_namespaces=(),
    )
    refused: ClassVar[frozenset[str]] = frozenset(
        {
            "auto_map", "custom_pipelines", "custom_pipeline", "trust_remote_code",
            "quantization_config",
            "attn_implementation", "_attn_implementation", "_attn_implementation_internal",
            "experts_implementation",
            "_experts_implementation", "_experts_implementation_internal", "transformers_weights",
        }
    )  # fmt: skip

    @model_validator(mode="after")
    def _runs_nothing(self) -> Self:
        for name, value in (self.model_extra or {}).items():
            if name in self.refused and value is not None:
                raise ValueError(f"{name} {quote(value)} is not used here: take it out")
        return self


# --- the parts ---------------------------------------------------------------------------------


class UNet(Config):
    """Of UNet2DConditionModel, as far as SDXL's family uses it."""

    class_name: Literal["UNet2DConditionModel"] = Field("UNet2DConditionModel", alias="_class_name")
    sample_size: Side | Annotated[list[Side], Field(min_length=2, max_length=2)] | None = None
    in_channels: Width = 4
    out_channels: Width = 4
    center_input_sample: bool = False
    flip_sin_to_cos: bool = True
    freq_shift: Annotated[float, Field(ge=0, le=1)] = 0
    down_block_types: DownBlocks = [
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "DownBlock2D",
    ]
    mid_block_type: Literal["UNetMidBlock2DCrossAttn", "UNetMidBlock2D"] | None = (
        "UNetMidBlock2DCrossAttn"
    )
    up_block_types: UpBlocks = [
        "UpBlock2D",
        "CrossAttnUpBlock2D",
        "CrossAttnUpBlock2D",
        "CrossAttnUpBlock2D",
    ]
    only_cross_attention: bool | Annotated[list[bool], Field(max_length=8)] = False
    mid_block_only_cross_attention: bool | None = None
    block_out_channels: Blocks = [320, 640, 1280, 1280]
    layers_per_block: Layers | PerBlock = 2
    downsample_padding: Annotated[int, Field(ge=0, le=1)] = 1
    mid_block_scale_factor: Scale = 1
    dropout: Share = 0.0
    act_fn: Activation = "silu"
    norm_num_groups: Width = 32
    norm_eps: Small = 1e-5
    cross_attention_dim: Width = 1280
    transformer_layers_per_block: Depth | Depths = 1
    reverse_transformer_layers_per_block: Depth | Depths | None = None
    encoder_hid_dim: None = None
    encoder_hid_dim_type: None = None
    attention_head_dim: Heads | Annotated[list[Heads], Field(min_length=1, max_length=8)] = 8
    num_attention_heads: (
        Heads | Annotated[list[Heads], Field(min_length=1, max_length=8)] | None
    ) = None
    dual_cross_attention: Literal[False] = False
    use_linear_projection: bool = False
    class_embed_type: None = None
    class_embeddings_concat: bool = False
    addition_embed_type: str | None = None
    addition_embed_type_num_heads: Heads = 64
    addition_time_embed_dim: Annotated[int, Field(ge=2, le=16384, multiple_of=2)] | None = None
    num_class_embeds: None = None
    upcast_attention: bool | None = False
    resnet_time_scale_shift: Literal["default", "scale_shift"] = "default"
    resnet_skip_time_act: bool = False
    resnet_out_scale_factor: Scale = 1.0
    time_embedding_type: Literal["positional"] = "positional"
    time_embedding_dim: Width | None = None
    time_embedding_act_fn: Activation | None = None
    timestep_post_act: Activation | None = None
    time_cond_proj_dim: Width | None = None
    conv_in_kernel: Annotated[int, Field(ge=1, le=7)] = 3
    conv_out_kernel: Annotated[int, Field(ge=1, le=7)] = 3
    projection_class_embeddings_input_dim: Annotated[int, Field(ge=1, le=65536)] | None = None
    attention_type: Literal["default"] = "default"
    cross_attention_norm: None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        count = len(self.block_out_channels)
        for name in (
            "down_block_types", "up_block_types", "only_cross_attention", "layers_per_block",
            "attention_head_dim",
            "num_attention_heads", "transformer_layers_per_block",
            "reverse_transformer_layers_per_block",
        ):  # fmt: skip
            value = getattr(self, name)
            if isinstance(value, list) and len(value) != count:
                raise ValueError(
                    f"{name} has {len(value)} values for {count} blocks of block_out_channels"
                )
        _check_groups(self.block_out_channels, self.norm_num_groups)
        _check_layers(count, self.layers_per_block, self.transformer_layers_per_block)
        _check_layers(count, self.layers_per_block, self.reverse_transformer_layers_per_block or 0)
        return self


class VAE(Config):
    """Of AutoencoderKL."""

    class_name: Literal["AutoencoderKL"] = Field("AutoencoderKL", alias="_class_name")
    in_channels: Annotated[int, Field(ge=3, le=3)] = 3
    out_channels: Annotated[int, Field(ge=3, le=3)] = 3
    down_block_types: Annotated[
        list[Literal["DownEncoderBlock2D"]], Field(min_length=1, max_length=6)
    ] = ["DownEncoderBlock2D"]
    up_block_types: Annotated[
        list[Literal["UpDecoderBlock2D"]], Field(min_length=1, max_length=6)
    ] = ["UpDecoderBlock2D"]
    block_out_channels: Annotated[list[Width], Field(min_length=1, max_length=6)] = [64]
    layers_per_block: Layers = 1
    act_fn: Activation = "silu"
    latent_channels: Annotated[int, Field(ge=4, le=4)] = 4
    norm_num_groups: Width = 32
    sample_size: Side | Annotated[list[Side], Field(min_length=2, max_length=2)] = 32
    scaling_factor: Scale = 0.18215
    shift_factor: None = None
    latents_mean: Annotated[list[float], Field(min_length=4, max_length=4)] | None = None
    latents_std: Annotated[list[Scale], Field(min_length=4, max_length=4)] | None = None
    force_upcast: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    @model_validator(mode="after")
    def _whole(self) -> Self:
        count = len(self.block_out_channels)
        for name in ("down_block_types", "up_block_types"):
            if len(getattr(self, name)) != count:
                raise ValueError(
                    f"{name} has {len(getattr(self, name))} values for {count} of "
                    f"block_out_channels"
                )
        _check_groups(self.block_out_channels, self.norm_num_groups)
        return self


class Motion(Config):
    """Of MotionAdapter."""

    class_name: Literal["MotionAdapter"] = Field("MotionAdapter", alias="_class_name")
    block_out_channels: Blocks = [320, 640, 1280, 1280]
    motion_layers_per_block: Layers | PerBlock = 2
    motion_transformer_layers_per_block: Depth | Depths = 1
    motion_mid_block_layers_per_block: Layers = 1
    motion_transformer_layers_per_mid_block: (
        Depth | Annotated[list[Depth], Field(max_length=32)]
    ) = 1
    motion_num_attention_heads: (
        Heads | Annotated[list[Heads], Field(min_length=1, max_length=8)]
    ) = 8
    motion_norm_num_groups: Width = 32
    motion_max_seq_length: Annotated[int, Field(ge=1, le=1024)] = 32
    use_motion_mid_block: bool = True
    conv_in_channels: None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        count = len(self.block_out_channels)
        for name in (
            "motion_layers_per_block",
            "motion_transformer_layers_per_block",
            "motion_num_attention_heads",
        ):
            value = getattr(self, name)
            if isinstance(value, list) and len(value) != count:
                raise ValueError(
                    f"{name} has {len(value)} values for {count} blocks of block_out_channels"
                )
        _check_groups(self.block_out_channels, self.motion_norm_num_groups)
        _check_layers(count, self.motion_layers_per_block, self.motion_transformer_layers_per_block)
        return self


class Scheduler(Config):
    """Of the schedulers that SDXL models come with."""

    class_name: Annotated[str, Field(pattern=r"^\w{1,80}Scheduler$")] = Field(
        "DDIMScheduler", alias="_class_name"
    )
    # what std's schedules are made for
    num_train_timesteps: Annotated[int, Field(ge=1000, le=1000)] = 1000
    beta_start: Small = 0.00085
    beta_end: Small = 0.012
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "scaled_linear"
    trained_betas: Annotated[list[Share], Field(min_length=1000, max_length=1000)] | None = None
    clip_sample: bool = False
    clip_sample_range: Annotated[float, Field(gt=0)] = 1.0
    set_alpha_to_one: bool = False
    skip_prk_steps: bool = True
    steps_offset: Annotated[int, Field(ge=0, le=999)] = 0
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = "epsilon"
    thresholding: bool = False
    dynamic_thresholding_ratio: Share = 0.995
    sample_max_value: Annotated[float, Field(gt=0)] = 1.0
    interpolation_type: Literal["linear", "log_linear"] = "linear"
    use_karras_sigmas: bool | None = False
    use_exponential_sigmas: bool | None = False
    use_beta_sigmas: bool | None = False
    sigma_min: Annotated[float, Field(ge=0)] | None = None
    sigma_max: Annotated[float, Field(ge=0)] | None = None
    timestep_spacing: Literal["leading", "trailing", "linspace"] = "leading"
    timestep_type: Literal["discrete", "continuous"] = "discrete"
    timestep_scaling: Annotated[float, Field(gt=0, le=1e6)] = 10.0
    original_inference_steps: Annotated[int, Field(ge=1, le=1000)] = 50
    final_sigmas_type: Literal["zero", "sigma_min"] = "zero"
    rescale_betas_zero_snr: bool = False


class _Encoder(Config):
    """What both kinds of CLIP encoder have, as transformers' configs name it."""

    architectures: list[str] | None = None
    dtype: FloatName | None = None
    torch_dtype: FloatName | None = None
    hidden_size: Width
    intermediate_size: Annotated[int, Field(ge=1, le=65536)]
    projection_dim: Width = 512
    num_hidden_layers: Annotated[int, Field(ge=1, le=128)]
    num_attention_heads: Heads
    hidden_act: HiddenActivation = "quick_gelu"
    layer_norm_eps: Small = 1e-5
    attention_dropout: Share = 0.0
    initializer_range: Annotated[float, Field(ge=0, le=100)] = 0.02
    initializer_factor: Annotated[float, Field(ge=0, le=100)] = 1.0

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is no multiple of num_attention_heads "
                f"{self.num_attention_heads}"
            )
        return self


class TextEncoder(_Encoder):
    """Of CLIPTextModel and CLIPTextModelWithProjection."""

    model_type: Literal["clip_text_model"] = "clip_text_model"
    vocab_size: Annotated[int, Field(ge=1, le=1_000_000)] = 49408
    hidden_size: Width = 512
    intermediate_size: Annotated[int, Field(ge=1, le=65536)] = 2048
    num_hidden_layers: Annotated[int, Field(ge=1, le=128)] = 12
    num_attention_heads: Heads = 8
    max_position_embeddings: Annotated[int, Field(ge=2, le=4096)] = 77
    pad_token_id: TokenId | None = 1
    bos_token_id: TokenId | None = 49406
    eos_token_id: TokenId = 49407


class ImageEncoder(_Encoder):
    """Of CLIPVisionModelWithProjection."""

    model_type: Literal["clip_vision_model"] = "clip_vision_model"
    hidden_size: Width = 768
    intermediate_size: Annotated[int, Field(ge=1, le=65536)] = 3072
    num_hidden_layers: Annotated[int, Field(ge=1, le=128)] = 12
    num_attention_heads: Heads = 12
    num_channels: Annotated[int, Field(ge=3, le=3)] = 3
    image_size: Annotated[int, Field(ge=8, le=2048)] = 224
    patch_size: Annotated[int, Field(ge=1, le=2048)] = 32

    @model_validator(mode="after")
    def _grid(self) -> Self:
        side = self.image_size // self.patch_size
        if not 1 <= side <= 128:
            raise ValueError(
                f"image_size {self.image_size} and patch_size {self.patch_size} make {side} "
                f"patches a side: 1 to 128"
            )
        return self


class ImageProcessor(Config):
    """Of CLIPImageProcessor: what a reference becomes before the image encoder."""

    processor: Literal["CLIPImageProcessor", "CLIPFeatureExtractor", "CLIPImageProcessorFast"] = (
        Field("CLIPImageProcessor", alias="image_processor_type")
    )
    do_center_crop: bool = True
    do_convert_rgb: bool | None = True
    do_normalize: bool = True
    do_rescale: bool = True
    do_resize: bool = True
    crop_size: int | dict[str, int] = 224
    size: int | dict[str, int] = 224
    image_mean: Annotated[list[Share], Field(min_length=3, max_length=3)] | None = None
    image_std: Annotated[list[Small], Field(min_length=3, max_length=3)] | None = None
    resample: Annotated[int, Field(ge=0, le=5)] = 3
    rescale_factor: Annotated[float, Field(gt=0, le=1)] = 1 / 255

    @model_validator(mode="after")
    def _whole(self) -> Self:
        for name in ("size", "crop_size"):
            value = getattr(self, name)
            sides = value if isinstance(value, dict) else {"shortest_edge": value}
            if not {*sides} <= {"shortest_edge", "height", "width"} or not all(
                8 <= n <= 2048 for n in sides.values()
            ):
                raise ValueError(f"{name} {quote(value)}: sides must be from 8 to 2048 pixels")
        return self


class TokenizerConfig(Config):
    """Of CLIPTokenizer's tokenizer_config.json."""

    model_max_length: Annotated[int, Field(ge=2)] | Annotated[float, Field(ge=2)] | None = None
    tokenizer_class: Literal["CLIPTokenizer", "CLIPTokenizerFast"] | None = None
    padding_side: Literal["right"] = "right"
    truncation_side: Literal["left", "right"] = "right"


class Index(Config):
    """An index of shards, *.safetensors.index.json."""

    metadata: dict[str, Any] | None = None
    weight_map: dict[str, Annotated[str, Field(max_length=255)]]

    @model_validator(mode="after")
    def _inside(self) -> Self:
        for name in dict.fromkeys(self.weight_map.values()):
            if not re.fullmatch(r"[\w.-]+\.safetensors", name) or name.startswith("."):
                raise ValueError(
                    f"weight_map names {quote(name)}, which is no .safetensors file of its folder"
                )
        return self


# The classes that the parts of model_index.json may name, of the library that has them.
CLASSES = {
    "unet": ("diffusers", r"UNet2DConditionModel"),
    "vae": ("diffusers", r"AutoencoderKL"),
    "scheduler": ("diffusers", r"\w{1,80}Scheduler"),
    "text_encoder": ("transformers", r"CLIPTextModel"),
    "text_encoder_2": ("transformers", r"CLIPTextModelWithProjection"),
    "tokenizer": ("transformers", r"CLIPTokenizer(Fast)?"),
    "tokenizer_2": ("transformers", r"CLIPTokenizer(Fast)?"),
    "image_encoder": ("transformers", r"CLIPVisionModelWithProjection"),
    "feature_extractor": ("transformers", r"CLIPFeatureExtractor|CLIPImageProcessor(Pil|Fast)?"),
}


class ModelIndex(Config):
    """Of model_index.json: which class each part is of."""

    class_name: Annotated[str, Field(pattern=r"^\w{1,80}$")] = Field(
        "StableDiffusionXLPipeline", alias="_class_name"
    )
    requires_aesthetics_score: bool = False
    force_zeros_for_empty_prompt: bool = True
    add_watermarker: bool | None = None

    @model_validator(mode="after")
    def _known(self) -> Self:
        for name, value in (self.model_extra or {}).items():
            if name in CLASSES and value not in (None, [None, None]):
                library, pattern = CLASSES[name]
                match value:
                    case [str(found), str(kind)] if found == library and re.fullmatch(
                        pattern, kind
                    ):
                        continue
                wanted = f"{library} {re.sub(r'[^A-Za-z0-9|].*', '', pattern) or 'Scheduler'}"
                raise ValueError(f"{name} is {quote(value)}, and std runs {wanted} there")
            if name not in CLASSES and isinstance(value, list | dict) and value != [None, None]:
                raise ValueError(f"{name} {quote(value)} is no part of SDXL: take it out")
        return self


def _check_groups(widths: list[int], groups: int) -> None:
    if wrong := [width for width in widths if width % groups]:
        raise ValueError(
            f"block_out_channels {wrong[0]} is no multiple of its norm's {groups} groups"
        )


def _check_layers(count: int, layers: int | list[int], depths: int | list[int | list[int]]) -> None:
    """Raises ValueError for more layers than any such network has: each costs time and memory, even
    without weights."""
    each = [layers] * count if isinstance(layers, int) else layers
    resnets = sum(2 * n + 1 for n in each) + 2
    deep: list[int | list[int]] = [depths] * count if isinstance(depths, int) else depths
    transformers = 0
    for n, depth in zip(each, deep, strict=False):
        transformers += sum(depth) * 2 if isinstance(depth, list) else depth * (2 * n + 1)
    if resnets > MOST_RESNETS or transformers > MOST_TRANSFORMERS:
        raise ValueError(
            f"its layers are {resnets} resnets and {transformers} transformer layers in all: at "
            f"most {MOST_RESNETS} "
            f"and {MOST_TRANSFORMERS}"
        )


# --- read --------------------------------------------------------------------------------------

C = TypeVar("C", bound=Config)


def read_config(kind: type[C], path: Path) -> tuple[C, dict[str, Any]]:
    """(the checked config, the file's contents). Raises InputError with what is wrong, in one
    line."""
    content = read_object(path)
    if kind in (TextEncoder, ImageEncoder) and content.get("model_type") == "clip":
        content = _half_of_clip(
            path, content, "text_config" if kind is TextEncoder else "vision_config"
        )
    return check_config(kind, content, str(path)), content


def _half_of_clip(path: Path, content: dict[str, Any], half: str) -> dict[str, Any]:
    """One encoder's config out of a whole CLIP's; often only the whole one tells the width after
    projection."""
    inner = content.get(half)
    if not isinstance(inner, dict):
        raise InputError(f"{path} is a CLIP's without {half}: fetch it again")
    return {key: content[key] for key in ("projection_dim",) if key in content} | inner


def check_config(kind: type[C], content: dict[str, Any], name: str) -> C:
    """The checked config of a file's contents; `name`: of the file, for the error."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise InputError(
            f"{name}: {problems(error, content)}: correct it, or fetch it again"
        ) from None


def problems(error: ValidationError, content: object) -> str:
    """What pydantic finds wrong, each value once and cut: "layers_per_block 99: must be ..."."""
    found: dict[str, list[str]] = {}
    for one in error.errors(include_url=False, include_input=False):
        message = one["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        name = str(one["loc"][0]) if one["loc"] else ""
        known = isinstance(content, dict) and name in content
        shown = (
            f"{quote(name)[1:-1]} {quote(content[name])}"
            if known and isinstance(content, dict)
            else name
        )
        found.setdefault(shown, []).append(message)
    lines = []
    for name, messages in found.items():
        text = " or ".join(dict.fromkeys(messages))
        lines.append(f"{name}: {text}" if name else text)
    more = len(lines) - 3
    return "; ".join(lines[:3]) + (f"; and {more} more" if more > 0 else "")


def settings(config: Config) -> dict[str, Any]:
    """What a file said of the fields that are known here: what a class of transformers is built
    from.

    transformers sets every other key of its file as an attribute, whatever that replaces.
    """
    left_out = {"dtype", "torch_dtype", "architectures", "model_type", *(config.model_extra or {})}
    return config.model_dump(exclude_unset=True, exclude=left_out)


@contextmanager
def loading(what: str, path: Path, fails: str = "cannot be loaded from") -> Iterator[None]:
    """Turns what a library raises while it builds or loads a part of a model into one line.

    The libraries raise exceptions of some fifty kinds for files that they cannot use; those of this
    package, and a GPU's memory that runs out, pass. `fails`: what cannot be done, for the error.
    Raises InputError that names part and file.
    """
    try:
        yield
    except StdError:
        raise
    except MemoryError as error:
        raise StdError(
            f"no memory to load {what}: close other programs, or use a smaller model"
        ) from error
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported here
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = printable(lines[0], 300) if lines else "no message"
        raise InputError(
            f"{what} {fails} {path} ({type(error).__name__}: {reason.rstrip('.:')}): fetch it "
            f"again, or choose another"
        ) from error


def check_folder(folder: Path, names: Collection[str]) -> None:
    """Check every config in a model's diffusers folder, alone and against each other, before a
    weight is read.

    `names`: its files, at most two levels down. Raises InputError.
    """
    check_files(folder, names)
    if "model_index.json" in names:
        read_config(ModelIndex, folder / "model_index.json")
    unet, _ = read_config(UNet, folder / "unet" / "config.json")
    read_config(VAE, folder / "vae" / "config.json")
    read_config(Scheduler, folder / "scheduler" / "scheduler_config.json")
    texts = [
        read_config(TextEncoder, folder / part / "config.json")[0]
        for part in ("text_encoder", "text_encoder_2")
    ]
    lengths = [
        _check_tokenizer(folder, folder / part, text)
        for part, text in zip(TOKENIZERS, texts, strict=True)
    ]
    if "feature_extractor/preprocessor_config.json" in names:
        read_config(ImageProcessor, folder / "feature_extractor" / "preprocessor_config.json")
    _check_together(folder, unet, texts, lengths)


def check_image_encoder(folder: Path) -> None:
    """Check the configs of a folder of a CLIPVisionModelWithProjection. Raises InputError."""
    read_config(ImageEncoder, folder / "config.json")
    check_files(
        folder.parent,
        [path.relative_to(folder.parent).as_posix() for path in folder.glob("*.json")],
    )


TOKENIZERS = ("tokenizer", "tokenizer_2")


def check_files(folder: Path, names: Collection[str]) -> None:
    """Check what would lead a library to other files: indexes of shards, adapters' configs."""
    for name in sorted(names):
        if re.search(r"\.index\.(\w+\.)?json$", name):  # diffusers' has the variant in the middle
            part = (folder / name).parent
            index, _ = read_config(Index, folder / name)
            if lacks := [
                file
                for file in dict.fromkeys(index.weight_map.values())
                if not (part / file).is_file()
            ]:
                raise InputError(
                    f"{folder / name} names {quote(lacks[0])}, which is not there: fetch it again"
                )
        if name.endswith("/adapter_config.json"):
            raise InputError(f"{folder / name} would load another model: take it out")


def _check_tokenizer(folder: Path, part: Path, text: TextEncoder) -> int:
    """The number of tokens of a prompt. Raises InputError if the text encoder cannot take what the
    tokenizer makes."""
    limit = text.max_position_embeddings
    if (part / "tokenizer_config.json").is_file():
        config, content = read_config(TokenizerConfig, part / "tokenizer_config.json")
        length = config.model_max_length
        if length is not None and (length > limit or length != int(length)):
            found = f"model_max_length {quote(content['model_max_length'])}"
            raise InputError(
                f"{part}/tokenizer_config.json: {found} is beyond the text encoder's {limit}: "
                f"correct it"
            )
        limit = int(length) if length is not None else limit
    ids = []
    if (part / "tokenizer.json").is_file():
        content = read_object(part / "tokenizer.json")
        match content:
            case {"model": {"vocab": dict(vocab)}}:
                ids += list(vocab.values())
            case _:
                raise InputError(f"{part}/tokenizer.json has no vocabulary: fetch it again")
        for token in content.get("added_tokens") or []:
            ids.append(token.get("id") if isinstance(token, dict) else None)
    if (part / "vocab.json").is_file():
        ids += list(read_object(part / "vocab.json").values())
    if wrong := [i for i in ids if type(i) is not int or not 0 <= i < text.vocab_size]:
        raise InputError(
            f"{part}: its token {quote(wrong[0])} is beyond the {text.vocab_size} of the text "
            f"encoder: fetch it again"
        )
    for name in ("special_tokens_map.json", "added_tokens.json"):
        if (part / name).is_file():
            read_object(part / name)
    return limit


def _check_together(folder: Path, unet: UNet, texts: list[TextEncoder], lengths: list[int]) -> None:
    """Raises InputError unless the UNet takes what the text encoders make."""
    states = sum(text.hidden_size for text in texts)
    if unet.cross_attention_dim != states:
        raise InputError(
            f"{folder}: the UNet's cross_attention_dim is {unet.cross_attention_dim}, and its "
            f"text encoders make "
            f"{states}: the parts are not of one model: fetch it again"
        )
    pooled = texts[1].projection_dim + 6 * (unet.addition_time_embed_dim or 0)
    if unet.projection_class_embeddings_input_dim != pooled:
        raise InputError(
            f"{folder}: the UNet's projection_class_embeddings_input_dim is "
            f"{unet.projection_class_embeddings_input_dim}, and {pooled} is what text_encoder_2 "
            f"and its "
            "addition_time_embed_dim make: the parts are not of one model: fetch it again"
        )
    if lengths[0] != lengths[1]:
        raise InputError(
            f"{folder}: its tokenizers make {lengths[0]} and {lengths[1]} tokens: fetch it again"
        )
