"""The models that are known by name, and the methods that sample with them: `zoo.toml`, read and
checked, with the corrections of the user's own file."""

import tomllib
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from std_cli.errors import InputError, quote, wrong_values
from std_cli.paths import config_folder

MethodName = Literal["std", "lcm", "tcd", "pcm", "tdd", "hyper-sd", "lightning", "none"]
Spacing = Literal["grid", "trailing", "leading"]
Kind = Literal[
    "base", "config", "vae", "lora", "ip-adapter", "motion", "backbone", "text-encoder", "metric"
]
LoraLayout = Literal["diffusers", "kohya", "peft"]
TaskName = Literal["image", "video", "distill", "compare"]


TABLE = Path(__file__).parent / "zoo.toml"


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Method(Frozen):
    """How a distilled LoRA is sampled, as its authors publish it."""

    scheduler: Literal["TCDScheduler", "LCMScheduler", "DDIMScheduler", "EulerDiscreteScheduler"]
    """Class of diffusers."""
    config: dict[str, Any] = {}
    """What differs from the base model's own scheduler config."""
    spacing: Spacing = "grid"
    """How the timesteps lie (see `schedule.timesteps`)."""
    grid: int = Field(50, ge=1, le=1000)
    """Points of the grid that it was trained on, for that spacing."""
    gamma: float = Field(0.0, ge=0, le=1)
    """Stochasticity of TCD's step (diffusers' `eta`); the other schedulers have none, or their
    own."""
    to_zero: bool = False
    """The last step ends at the clean picture, where TCD's ends at timestep 0."""
    steps: int | None = Field(None, ge=1, le=50)
    """Default number of steps; ours if none."""
    cfg: float | None = Field(None, ge=1)
    """Default guidance scale; ours if none."""
    cfg_range: tuple[float, float]
    """Guidance scales that it is published for."""
    source: str
    """Where this was found."""


class ModelEntry(Frozen):
    """A model: what to download, and what it goes with."""

    name: str
    kind: Kind
    title: str
    repo: str = Field("", pattern=r"^([\w.-]+/[\w.-]+)?$")
    """On the Hub."""
    revision: str = "main"
    """A commit, or a branch where none is known."""
    url: str = ""
    """Of a file that is not on the Hub."""
    sha256: str = Field("", pattern=r"^([0-9a-f]{64})?$")
    """Of that file."""
    files: tuple[str, ...] = ()
    """All of them are needed; without any it is the SDXL folder that `include` covers."""
    include: tuple[str, ...] = ()
    gb: float = Field(gt=0)
    """Size of the download, 10^9 bytes."""
    licence: str
    method: MethodName | None = None
    """Of a LoRA: what it is distilled by."""
    task: Literal["i2i", "v2v"] | None = None
    """Of a LoRA: what it is distilled for, if for one of them."""
    eta: float | None = Field(None, gt=0, le=1)
    """Of a LoRA: the partial noise level that it is distilled for."""
    steps: int | None = Field(None, ge=1, le=50)
    """Of a LoRA: the number of steps that it is distilled for."""
    cfg: float | None = Field(None, ge=1)
    """Of a LoRA: its default guidance scale, where it differs from the method's."""
    cfg_range: tuple[float, float] | None = None
    scale: float = 1.0
    """Of a LoRA: the strength that its authors use."""
    window: int | None = Field(None, ge=1)
    """Of a motion adapter: frames that it was trained on."""
    checked: bool
    """Repository, names of the files, and commit were found in public sources."""
    note: str = ""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if bool(self.repo) == bool(self.url):
            raise ValueError(f"{self.name}: give either repo or url")
        if bool(self.url) != bool(self.sha256) or (self.url and len(self.files) != 1):
            raise ValueError(f"{self.name}: a url has one file with its sha256")
        if not self.files and not self.include:
            raise ValueError(f"{self.name}: give files, or include")
        if self.checked and self.repo and len(self.revision) != 40:
            raise ValueError(f"{self.name}: checked, but its revision is no commit")
        if not self.checked and not self.note:
            raise ValueError(f"{self.name}: not checked, but the note does not say what")
        if (self.method is None) == (self.kind == "lora"):
            raise ValueError(f"{self.name}: a LoRA has a method, and nothing else has")
        return self


class Zoo(Frozen):
    tasks: dict[TaskName, tuple[str, ...]]
    methods: dict[MethodName, Method]
    models: dict[str, ModelEntry]

    @model_validator(mode="after")
    def _known(self) -> Self:
        if (
            unknown := {name for names in self.tasks.values() for name in names}
            - self.models.keys()
        ):
            raise ValueError(f"tasks name {', '.join(unknown)}, which is no model")
        return self


@cache
def zoo() -> Zoo:
    """The table, with the corrections of the user's file. Raises InputError for a file that cannot
    be used."""
    with TABLE.open("rb") as file:
        table = tomllib.load(file)
    file_name = corrections_file()
    corrected = _corrections(file_name)
    for name, changes in corrected.items():
        unchecked = {"checked": False, "note": f"as {file_name} says"}
        table["models"][name] = table["models"].get(name, {}) | unchecked | changes
    table["models"] = {name: {"name": name, **entry} for name, entry in table["models"].items()}
    try:
        return Zoo(**table)
    except ValidationError as e:
        where, value, message = next(wrong_values(e, depth=3))
        raise InputError(
            f"{file_name}: {where} {quote(value)}: {message}: correct the file"
        ) from None


def corrections_file() -> Path:
    """Where a user corrects the table: keys of its models, as [models.NAME] has them there."""
    return config_folder() / "zoo.toml"


def _corrections(path: Path) -> dict[str, dict[str, Any]]:
    """The keys that the user's file has for each model. Raises InputError if it is no such file."""
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as e:
        raise InputError(f"{path} cannot be read ({e}): correct the file, or remove it") from None
    models: dict[str, dict[str, Any]] = found.pop("models", {})
    tables = [*models.values()] if isinstance(models, dict) else [models]
    if found or not all(isinstance(table, dict) for table in tables):
        raise InputError(f"{path}: only tables [models.NAME] can be in it: correct the file")
    return models


def find_entry(name: str) -> ModelEntry:
    """The model of this name. Raises InputError, with the names that are like it."""
    if name not in zoo().models:
        close = get_close_matches(name, [*zoo().models, "tiny"], 3)
        hint = f"did you mean {', '.join(close)}?" if close else "see `std models list`"
        raise InputError(f"no model {name!r} in the table: {hint}")
    return zoo().models[name]


def names_of(kind: Kind) -> list[str]:
    return [name for name, entry in zoo().models.items() if entry.kind == kind]


def std_lora(task: Literal["i2i", "v2v"], eta: float) -> ModelEntry:
    """The published STD LoRA trained nearest to `eta`, the lower one of two equally near."""
    loras = [e for e in zoo().models.values() if e.method == "std" and e.task == task]
    return min(loras, key=lambda e: (round(abs((e.eta or 0) - eta), 6), e.eta))


def method_lora(method: MethodName, steps: int) -> ModelEntry | None:
    """The LoRA of a baseline made for the number of steps nearest to `steps`, the lower of two;
    None if it has none."""
    loras = [e for e in zoo().models.values() if e.method == method]
    return min(loras, key=lambda e: (abs((e.steps or steps) - steps), e.steps), default=None)


def method_defaults(method: MethodName, steps: int | None) -> dict[str, Any]:
    """{steps, cfg} where the method has its own; `steps`: what the user gave."""
    facts = zoo().methods[method]
    steps = steps or facts.steps
    lora = method_lora(method, steps) if method != "std" and steps else None
    cfg = lora.cfg if lora and lora.cfg is not None else facts.cfg
    return {name: value for name, value in (("steps", steps), ("cfg", cfg)) if value is not None}


def cfg_range(method: MethodName, steps: int) -> tuple[float, float]:
    """The guidance scales that a method, or its LoRA for so many steps, is published for."""
    lora = method_lora(method, steps) if method != "std" else None
    return (lora and lora.cfg_range) or zoo().methods[method].cfg_range
