"""The configs of the networks: UNet, VAE, motion adapter."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from std_cli.errors import counted
from std_cli.weights.configs.base import (
    Config,
    Depth,
    Heads,
    Layers,
    Scale,
    Share,
    Side,
    Small,
    Width,
)

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
MOST_RESNETS = 256
"""Of a network; SDXL's UNet has 17."""
MOST_TRANSFORMERS = 512
"""Transformer layers of a network; SDXL's UNet has 70."""


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
    down_block_types: DownBlocks = Field(
        [
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "DownBlock2D",
        ]
    )
    mid_block_type: Literal["UNetMidBlock2DCrossAttn", "UNetMidBlock2D"] | None = (
        "UNetMidBlock2DCrossAttn"
    )
    up_block_types: UpBlocks = Field(
        [
            "UpBlock2D",
            "CrossAttnUpBlock2D",
            "CrossAttnUpBlock2D",
            "CrossAttnUpBlock2D",
        ]
    )
    only_cross_attention: bool | Annotated[list[bool], Field(max_length=8)] = False
    mid_block_only_cross_attention: bool | None = None
    block_out_channels: Blocks = Field([320, 640, 1280, 1280])
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
                    f"{name} has {counted(len(value), 'value')} for {counted(count, 'block')} "
                    f"of block_out_channels"
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
    ] = Field(["DownEncoderBlock2D"])
    up_block_types: Annotated[
        list[Literal["UpDecoderBlock2D"]], Field(min_length=1, max_length=6)
    ] = Field(["UpDecoderBlock2D"])
    block_out_channels: Annotated[list[Width], Field(min_length=1, max_length=6)] = Field([64])
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
    block_out_channels: Blocks = Field([320, 640, 1280, 1280])
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
                    f"{name} has {counted(len(value), 'value')} for {counted(count, 'block')} "
                    f"of block_out_channels"
                )
        _check_groups(self.block_out_channels, self.motion_norm_num_groups)
        _check_layers(count, self.motion_layers_per_block, self.motion_transformer_layers_per_block)
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
            f"its layers are {counted(resnets, 'resnet')} and "
            f"{counted(transformers, 'transformer layer')} in all: at "
            f"most {MOST_RESNETS} "
            f"and {MOST_TRANSFORMERS}"
        )
