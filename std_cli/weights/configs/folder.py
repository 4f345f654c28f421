"""A model's folder: every config in it, alone and against the others, before a weight is read."""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from std_cli.errors import InputError, quote
from std_cli.weights.configs.base import Config, Share, Small, read_config
from std_cli.weights.configs.encoders import (
    ImageEncoder,
    ImageProcessor,
    TextEncoder,
    TokenizerConfig,
)
from std_cli.weights.configs.networks import VAE, UNet
from std_cli.weights.files import read_object


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
