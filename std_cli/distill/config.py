"""The settings of a training run: one TOML file, and the only place where a default of training is
written.

The defaults are the values published for pictures (STD, arXiv 2412.18945, and its reference code);
`TASK_DEFAULTS` has those that differ for videos. The key section.field of the file is
`DistillConfig.section.field` here.
"""

import hashlib
import json
import math
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from std_cli.config import (
    Count,
    Device,
    Dtype,
    Frozen,
    Number,
    Positive,
    StyleBlocks,
    Task,
    check_pack,
)
from std_cli.distill.discriminator import AdversarialLoss
from std_cli.distill.solver import TargetMode
from std_cli.distill.step import ConsistencyLoss, NoiseMode
from std_cli.errors import InputError, printable, wrong_values
from std_cli.paths import user_path
from std_cli.schedule import MAX_CFG

ExportedWeights = Literal["student", "average"]
Decay = Annotated[float, Field(ge=0, lt=1)]


class RunSection(Frozen):
    """The run as a whole."""

    task: Task = "i2i"
    """i2i (pictures) or v2v (clips, with a motion adapter)."""
    output: str = "std-run"
    """Folder of the run: checkpoints, metrics.jsonl, pictures, the exported LoRA."""
    seed: int = Field(453645634, ge=0, lt=2**63)
    """Seed of everything random."""
    epochs: Number = Field(10, gt=0)
    """How often the number of samples is trained on, those from the bank included."""
    max_steps: Positive | None = None
    """Stop after so many updates, whatever epochs says."""
    save_every: Positive = 500
    """Updates from one checkpoint to the next."""
    keep_last: Positive = 3
    """Newest checkpoints to keep."""
    keep_every: Count = 0
    """Keep each checkpoint whose step is a multiple of this, too; 0: none."""
    validate_every: Positive = 500
    """Updates from one validation loss and sheet of monitor pictures to the next."""
    track: Literal["none", "tensorboard", "wandb"] = "none"
    """Report metrics there, too; metrics.jsonl is always written."""
    push: str | None = None
    """Hub repository (owner/name) that the exported LoRA is uploaded to."""


class ModelSection(Frozen):
    """The teacher."""

    name: str = "sdxl"
    """sdxl, dreamshaper, tiny, a diffusers folder, a .safetensors checkpoint, or a Hub id."""
    motion: str = "auto"
    """v2v: motion adapter, as for `std stylize video`."""
    device: Device = "auto"
    """auto, cuda, cuda:N, mps or cpu."""
    dtype: Dtype = "auto"
    """Precision of the frozen weights and the computation: auto is fp16 on a GPU and fp32 on a
    CPU."""
    gradient_checkpointing: bool = True
    """Compute the UNet's activations again in the backward pass: much less memory, about a third
    more time."""
    compile: bool = False
    """Compile the UNet."""


class DataSection(Frozen):
    """The data that are trained on."""

    sources: tuple[str, ...] = ("data",)
    """Folders, caption files or tar shards."""
    root: str | None = None
    """Folder that the paths in lists start from, and must stay in; each list's own if not given."""
    size: tuple[Positive, Positive] = (512, 512)
    """Width and height of the crops, multiples of 8."""
    frames: int = Field(1, ge=1, le=64)
    """Frames of a clip; 1 for pictures."""
    stride: Positive = 4
    """Source frames from one frame of a clip to the next."""
    flip: float = Field(0.5, ge=0, le=1)
    """Probability of mirroring left and right."""
    workers: int = Field(4, ge=1, le=64)
    """Threads that load ahead."""
    held_out: Count = 8
    """Samples kept for validation, never trained on."""
    text_cache: Number = Field(16, ge=0)
    """GiB on disk that the captions' embeddings may take; beyond that the text encoders stay
    loaded."""

    @model_validator(mode="after")
    def _sides(self) -> Self:
        if any(side % 8 or not 32 <= side <= 4096 for side in self.size):
            raise ValueError(
                f"data.size {list(self.size)}: sides must be multiples of 8 from 32 to 4096"
            )
        return self


class StyleSection(Frozen):
    """Conditioning on reference pictures through IP-Adapter; the published LoRAs are trained
    without."""

    folder: str | None = None
    """Folder of style pictures, of which each sample gets one at random; none if not given."""
    scale: float = Field(1.0, ge=0, le=5)
    """Strength of the reference."""
    blocks: StyleBlocks = "style"
    """Where it acts, as --style-blocks."""


class LoraSection(Frozen):
    """The adapter that is trained."""

    rank: int = Field(64, ge=1, le=1024)
    """Rank of the two factors."""
    alpha: Positive = 64
    """Scale: the adapter's output counts alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout before the first factor."""
    targets: tuple[str, ...] = (
        "to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2",
        "conv1", "conv2",
        "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj",
    )  # fmt: skip
    """Layers that get one, by the end of their names."""
    motion: bool = True
    """v2v: layers of the motion adapter, too."""


class DistillSection(Frozen):
    """The trajectory and what is matched on it."""

    eta: float = Field(0.75, gt=0, le=1)
    """Partial noise level in (0, 1] that every trajectory starts from."""
    steps: int = Field(8, ge=1, le=50)
    """Denoising steps (NFE) that the LoRA is meant for; its file says so."""
    mode: TargetMode = "std"
    """Where on the trajectory student and target meet: std, tcd, pcm or lcm."""
    points: int = Field(50, ge=2, le=1000)
    """N, points of the teacher's DDIM grid; a divisor of 1000."""
    range_rate: float = Field(0.5, gt=0, le=1)
    """std: how far below its index, as a share of N eta, the meeting point may be."""
    phases: Positive = 8
    """pcm: equal segments of the trajectory."""
    w_min: Number = Field(5.0, ge=0)
    """Least guidance weight of the teacher; its CFG scale is w + 1."""
    w_max: Number = Field(15.0, ge=0)
    """Greatest one; each sample draws its own between the two."""
    unconditional_pooled: Literal["caption", "empty"] = "caption"
    """Pooled text embedding of the teacher's unconditional pass: the caption's, as the published
    runs have it, or the empty prompt's, as `std stylize` guides."""
    loss: ConsistencyLoss = "huber"
    """Distance of student and target: huber or l2."""
    huber_c: Number = Field(0.001, gt=0)
    """c of the pseudo-Huber distance."""
    ema: float = Field(0.95, ge=0, lt=1)
    """Decay of the target network's average of the student; 0: the student itself, as in the
    reference code."""
    head: Literal["raw", "learn", "hlearn"] = "raw"
    """Compare latents as they are, or through a small (learn) or larger (hlearn) learned spatial
    head."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if 1000 % self.points:
            raise ValueError(f"distill.points {self.points}: must divide 1000")
        if math.ceil(self.points * self.eta) < 2:
            raise ValueError(
                f"distill.eta {self.eta}: leaves fewer than two points of the grid; raise it"
            )
        if self.w_min > self.w_max:
            raise ValueError(f"distill.w_min {self.w_min}: must not be above w_max {self.w_max}")
        return self


class BankSection(Frozen):
    """Trajectories that wait in memory to be continued."""

    length: Count = 4
    """Slots for each sample of a micro-batch; 0: no bank."""
    rate: float = Field(0.8, ge=0, le=1)
    """Probability of continuing one of them rather than taking a fresh sample."""
    retire_at: Positive = 1
    """A trajectory leaves when its index falls to this."""


class AdversarialSection(Frozen):
    """The discriminator."""

    features: str = "dinov2"
    """dinov2 (ViT-S/14 from the Hub), a folder or .pth file of it, random (a fixed random network:
    no download, weak), or none: no adversarial loss."""
    weight: Number = Field(0.7, ge=0)
    """Weight of the adversarial loss."""
    mode: NoiseMode = "xs-xr"
    """Which latents the discriminator compares: the student's noisy x_s against x_0 noised less
    (xs-xr), as much (xs), not at all (xs-x0), more (xs-xR); or clean against clean (x0)."""
    loss: AdversarialLoss = "wgan"
    """Loss of the discriminator."""
    text: str = "pooled"
    """Caption embedding that it sees: SDXL's pooled one (pooled), or a folder of a CLIP text model
    with projection, as OpenCLIP's ViT-g/14."""
    gradient_penalty: Number = Field(1e-5, ge=0)
    """Weight of the gradient penalty on features."""
    frames: Positive = 2
    """v2v: frames of a clip that are decoded for it."""
    lr: Number = Field(1e-4, gt=0)
    """Learning rate of the discriminator."""


class OptimizerSection(Frozen):
    """Updates."""

    name: Literal["adamw", "adamw8bit"] = "adamw"
    """AdamW, or its 8-bit form (bitsandbytes, CUDA)."""
    lr: Number = Field(5e-6, gt=0)
    """Learning rate of LoRA and head."""
    scale_lr: bool = True
    """Scale both learning rates by the total batch / 128."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """AdamW's."""
    eps: Number = Field(1e-8, gt=0)
    """AdamW's."""
    weight_decay: Number = Field(0.0, ge=0)
    """AdamW's."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate after the warm-up: half a cosine to 0 at the last step, or constant."""
    warmup_steps: Count = 500
    """Updates of linear warm-up."""
    clip: Number = Field(10.0, gt=0)
    """Largest norm of the gradient."""
    batch: Positive = 1
    """Samples of a micro-batch."""
    accumulation: Positive = 16
    """Micro-batches of an update, in each process."""


class ExportSection(Frozen):
    """The LoRA that a run leaves."""

    weights: ExportedWeights = "student"
    """student: the trained adapter, as the published LoRAs are; average: its moving average
    (distill.ema). Both are validated at the end, and a finished run exports the other one when it
    is started again."""
    cfg: Number | None = Field(None, ge=0, le=MAX_CFG)
    """CFG scale that the LoRA is meant to be run at; its file says so, and without `--cfg` it is
    used: 1 for guidance that is distilled. Not given: the file says nothing."""


class DistillConfig(Frozen):
    """A training run, resolved."""

    run: RunSection = RunSection()
    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    style: StyleSection = StyleSection()
    lora: LoraSection = LoraSection()
    distill: DistillSection = DistillSection()
    bank: BankSection = BankSection()
    adversarial: AdversarialSection = AdversarialSection()
    optimizer: OptimizerSection = OptimizerSection()
    export: ExportSection = ExportSection()

    @model_validator(mode="after")
    def _task_fits(self) -> Self:
        if self.run.task == "i2i" and self.data.frames != 1:
            raise ValueError(f"data.frames {self.data.frames}: is 1 for task i2i")
        if self.run.task == "v2v" and self.data.frames == 1:
            raise ValueError(
                "data.frames 1: must be 2 or more for task v2v; for single frames use task i2i"
            )
        if self.export.weights == "average" and not self.distill.ema:
            raise ValueError(
                "export.weights average: there is none where distill.ema is 0; use student, or "
                "raise it"
            )
        if self.run.task == "v2v" and self.model.motion == "none":
            raise ValueError("model.motion none: task v2v needs a motion adapter")
        return self


TASK_DEFAULTS: dict[Task, dict[str, dict[str, Any]]] = {
    "i2i": {},
    "v2v": {
        "data": {"frames": 8},
        "distill": {"range_rate": 0.3, "head": "learn"},
        "adversarial": {"weight": 0.5},
    },
}
_IGNORED = {
    "run": {
        "output", "max_steps", "save_every", "keep_last", "keep_every", "validate_every", "track",
        "push",
    },
    "data": {"workers", "text_cache"},
    "model": {"device", "compile", "gradient_checkpointing"},
    "export": {"weights", "cfg"},
}  # fmt: skip
"""Keys that do not change the trained weights."""
# Keys that name files count by the files' contents: a checkpoint has fingerprints of data,
# references and weights.
_FILES = {
    "data": {"sources", "root"},
    "style": {"folder"},
    "model": {"name", "motion"},
    "adversarial": {"features", "text"},
}


def load_config(path: str | Path, changes: list[str] | None = None) -> DistillConfig:
    """Read a TOML file and apply changes, each "section.key=value". Raises InputError with all
    problems in one line."""
    path = user_path(path, "--config")
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise InputError(
            f"--config {path}: cannot be read ({e.strerror}): check the path, or make it with "
            f"--init"
        ) from None
    except ValueError as e:  # not UTF-8, not TOML, or a number of thousands of digits
        raise InputError(
            f"--config {path}: is not TOML that can be read ({e}): correct the file"
        ) from None
    for change in changes or []:
        _apply(given, change)
    return make_config(given, str(path))


def make_config(given: dict[str, Any], name: str = "configuration") -> DistillConfig:
    """The resolved configuration of {section: {key: value}}. Raises InputError with all problems in
    one line."""
    run = given.get("run")
    task = run.get("task", "i2i") if isinstance(run, dict) else "i2i"
    merged = dict(given)
    for section, values in TASK_DEFAULTS.get("v2v" if task == "v2v" else "i2i", {}).items():
        if isinstance(given.get(section, {}), dict):
            merged[section] = values | given.get(section, {})
    try:
        return DistillConfig(**merged)
    except ValidationError as e:
        raise InputError(f"{name}: {_problems(e)}: correct it") from None


def _problems(error: ValidationError) -> str:
    found = []
    for name, value, message in wrong_values(error, depth=2):
        of_section = isinstance(value, dict | Frozen)  # then the message names the keys
        shown = "" if of_section else f" {printable(json.dumps(value, default=str), 80)}"
        section_only = of_section and message not in ("is missing", "no such key")
        found.append(message if section_only else f"{name}{shown}: {message}")
    return "; ".join(found)


def _apply(given: dict[str, Any], change: str) -> None:
    key, equals, text = change.partition("=")
    section, dot, field = key.strip().partition(".")
    if not (equals and dot and section and field):
        raise InputError(f"--set {change}: write it as section.key=value, such as distill.eta=0.65")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except ValueError:  # a plain word, or a number of thousands of digits, which no key takes
        value = text.strip()
    given.setdefault(section, {})[field] = value


def config_hash(config: DistillConfig) -> str:
    """16 hex digits of all settings that the trained weights follow from."""
    return hashlib.sha256(json.dumps(_essence(config), sort_keys=True).encode()).hexdigest()[:16]


def differing_keys(a: DistillConfig, b: DistillConfig) -> list[str]:
    """The keys in which two runs differ as to their weights, without those that name files.

    optimizer.accumulation is none of them: only the number of lanes counts, however processes split
    them.
    """
    values, others = _essence(a), _essence(b)
    keys = []
    for section, fields in values.items():
        for key, value in fields.items():
            counts = key not in _FILES.get(section, ()) and key != "accumulation"
            if counts and value != others[section][key]:
                keys.append(f"{section}.{key}")
    return keys


def value_of(config: DistillConfig, key: str) -> object:
    """The value of a key, "section.field"."""
    section, field = key.split(".")
    value: object = getattr(getattr(config, section), field)
    return value


def _essence(config: DistillConfig) -> dict[str, dict[str, Any]]:
    essence = {}
    for section, fields in config.model_dump(mode="json").items():
        ignored = _IGNORED.get(section, set())
        essence[section] = {key: value for key, value in fields.items() if key not in ignored}
    return essence


def template(task: Task, model: str, pack: dict[str, Any] | None = None) -> str:
    """A commented TOML file with every key: the published values for a task, or those that a
    model's pack (its std.json) gives."""
    given: dict[str, dict[str, Any]] = {
        section: dict(fields) for section, fields in TASK_DEFAULTS[task].items()
    }
    own_distill = check_pack(pack, "std.json").distill if pack else {}
    for own in (own_distill, own_distill.get(task, {})):
        for section, values in own.items():
            if section not in TASK_DEFAULTS:
                given[section] = given.get(section, {}) | values
    given["run"] = given.get("run", {}) | {"task": task}
    given["model"] = given.get("model", {}) | {"name": model}
    return to_toml(make_config(given, "std.json"), comments=True)


def to_toml(config: DistillConfig, comments: bool = False) -> str:
    """A configuration as a TOML file."""
    lines = ["#:schema distill.schema.json", ""] if comments else []
    for section, fields in config:
        about = " ".join(str(type(fields).__doc__).split())
        lines += [f"[{section}]" + (f"  # {about}" if comments else "")]
        for key, field in type(fields).model_fields.items():
            value = getattr(fields, key)
            if comments:
                lines += [f"# {' '.join(str(field.description).split())}"]
            shown = json.dumps(
                list(value) if isinstance(value, tuple) else value, ensure_ascii=False
            )
            lines += [f"{key} = {shown}" if value is not None else f"# {key} ="]
        lines += [""]
    return "\n".join(lines)
