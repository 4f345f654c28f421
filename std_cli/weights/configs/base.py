"""What every config file has in common: bounds, and the reading of one."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from std_cli.errors import InputError, quote, wrong_values
from std_cli.weights.files import read_object

Width = Annotated[int, Field(ge=1, le=16384)]
"""Channels, or features."""
Side = Annotated[int, Field(ge=1, le=16384)]
"""Pixels, or latent pixels."""
Heads = Annotated[int, Field(ge=1, le=1024)]
"""Of an attention."""
Layers = Annotated[int, Field(ge=1, le=32)]
"""ResNets of a block."""
Depth = Annotated[int, Field(ge=0, le=64)]
"""Transformer layers of a block."""
Share = Annotated[float, Field(ge=0, le=1)]
Small = Annotated[float, Field(gt=0, lt=1)]
Scale = Annotated[float, Field(gt=0, le=1000)]


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
            "auto_map",
            "custom_pipelines",
            "custom_pipeline",
            "trust_remote_code",
            "quantization_config",
            "transformers_weights",
            *(
                f"{start}{kind}_implementation{end}"
                for kind in ("attn", "experts")
                for start, end in (("", ""), ("_", ""), ("_", "_internal"))
            ),
        }
    )
    """Keys by which a file makes a library run or fetch something."""
    half: ClassVar[str] = ""
    """The key of a whole CLIP's config that holds this one; "" if there is none."""

    @model_validator(mode="after")
    def _runs_nothing(self) -> Self:
        for name, value in (self.model_extra or {}).items():
            if name in self.refused and value is not None:
                raise ValueError(f"{name} {quote(value)} is not used here: take it out")
        return self


# --- read --------------------------------------------------------------------------------------

C = TypeVar("C", bound=Config)


def read_config(kind: type[C], path: Path) -> tuple[C, dict[str, Any]]:
    """(the checked config, the file's contents). Raises InputError with what is wrong, in one
    line."""
    content = read_object(path)
    if kind.half and content.get("model_type") == "clip":
        content = _half_of_clip(path, content, kind.half)
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
    lines = []
    for name, _, message in wrong_values(error):
        known = isinstance(content, dict) and name in content
        shown = (
            f"{quote(name)[1:-1]} {quote(content[name])}"
            if known and isinstance(content, dict)
            else name
        )
        lines.append(f"{shown}: {message}" if name else message)
    more = len(lines) - 3
    return "; ".join(lines[:3]) + (f"; and {more} more" if more > 0 else "")


def settings(config: Config) -> dict[str, Any]:
    """What a file said of the fields that are known here: what a class of transformers is built
    from.

    transformers sets every other key of its file as an attribute, whatever that replaces.
    """
    left_out = {"dtype", "torch_dtype", "architectures", "model_type", *(config.model_extra or {})}
    return config.model_dump(exclude_unset=True, exclude=left_out)
