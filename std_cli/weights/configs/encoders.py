"""The configs of CLIP's encoders, of the tokenizers, and of the image processor."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from std_cli.errors import quote
from std_cli.weights.configs.base import Config, Heads, Share, Small, Width

TokenId = Annotated[int, Field(ge=-1, lt=2**31)]
FloatName = Literal["float16", "bfloat16", "float32", "float64"]
HiddenActivation = Literal[
    "quick_gelu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish"
]


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

    half = "text_config"

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

    half = "vision_config"

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
