"""What a request runs with: the files of the model, its LoRA and its motion adapter, checked from
their headers, and the settings and the schedule that follow from them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic

from std_cli.config import ImageSettings, S, VideoSettings, settings_of
from std_cli.environment import LOADING
from std_cli.errors import InputError, counted
from std_cli.schedule import TRAIN_TIMESTEPS, timesteps
from std_cli.weights.lora import LoraFile, resolve_lora
from std_cli.weights.motion import MotionFiles, resolve_motion
from std_cli.weights.parts import check_adapter, check_model
from std_cli.weights.resolve import ModelFiles, blind_at_the_end, resolve_model, scheduler_config
from std_cli.weights.zoo import zoo

if TYPE_CHECKING:
    from std_cli.schedule import Schedule

Find = Callable[..., Any]
"""(resolve, *arguments) -> the files that `resolve` of `weights` finds, or None where a plan can do
without."""


def call(resolve: Callable[..., Any], *args: object, **options: object) -> Any:
    """The `Find` of a run."""
    return resolve(*args, **options)


@dataclass(frozen=True)
class ModelChoice(Generic[S]):
    """What `choose_model` finds."""

    s: S
    """The settings, with the model's own defaults."""
    schedule: "Schedule"
    files: ModelFiles | None
    """None in a plan for a model that is not downloaded, and where nothing is to be stylized; so
    are the next two."""
    motion: MotionFiles | None
    lora: LoraFile | None

    @property
    def lacks_motion(self) -> bool:
        """Whether a plan of a video has to do without the files of its motion adapter."""
        return _lacks_motion(self.s, self.files, self.motion)


def choose_model(given: dict[str, Any], asked: S, needed: bool, find: Find) -> ModelChoice[S]:
    """Find the weights that options name, and check them before a weight is loaded.

    given: the options; asked: their settings, without what the model adds. needed: whether there is
    anything to stylize. Raises InputError.
    """
    files = find(resolve_model, asked.model, ip_adapter=asked.ip_adapter) if needed else None
    s = settings_of(type(asked), given, files.pack, f"{files.base}/std.json") if files else asked
    motion = None
    if files and isinstance(s, VideoSettings):
        motion = find(resolve_motion, s.motion, files)
    how = {"task": "v2v" if motion else "i2i", "eta": s.eta, "method": s.method, "steps": s.steps}
    lora = find(resolve_lora, s.lora, model=files, **how) if files else None
    if files:
        with LOADING:
            check_model(files, motion)
            if lora is not None and not _lacks_motion(s, files, motion):
                check_adapter(files, motion, lora, s.allow_partial)
    s, lora = follow_lora(s, lora, given)
    _check_guidance(s)
    schedule = choose_schedule(s, lora)
    if files:
        check_noise(s, schedule, files)
    return ModelChoice(s, schedule, files, motion, lora)


def _check_guidance(s: ImageSettings) -> None:
    """Raises InputError for guided steps that there are not."""
    every = s.cfg_every if s.cfg_every > 1 else None
    for flag, steps in (("--cfg-steps", s.cfg_steps), ("--cfg-every", every)):
        if steps is None:
            continue
        if s.cfg <= 1:
            raise InputError(
                f"{flag} {steps}: --cfg {s.cfg:g} is without guidance: leave it out, or give a "
                "--cfg above 1"
            )
        if steps > s.steps:
            raise InputError(
                f"{flag} {steps}: there are {counted(s.steps, 'step')}: give at most {s.steps}, or "
                "leave it out"
            )


def _lacks_motion(s: ImageSettings, files: ModelFiles | None, motion: MotionFiles | None) -> bool:
    if not isinstance(s, VideoSettings) or motion is not None or s.motion == "none":
        return False
    own = files is not None and bool(files.pack) and s.motion == "auto"  # or it has none
    return not own


def follow_lora(s: S, lora: LoraFile | None, given: dict[str, Any]) -> tuple[S, LoraFile | None]:
    """What the LoRA's file says it was made for, where the user gave none: steps and CFG scale, and
    eta if the user named the file ("auto" was chosen by eta)."""
    if lora is None:
        return s, lora
    made_for: dict[str, Any] = {}
    if s.lora != "auto" and given.get("eta") is None and lora.eta is not None:
        made_for["eta"], lora = lora.eta, replace(lora, notice=None)
    for name, found in (("steps", lora.steps), ("cfg", lora.cfg)):
        if given.get(name) is None and found is not None:
            made_for[name] = found
    s = s.model_copy(update=made_for)
    if lora.cfg is not None and lora.cfg <= 1 < s.cfg:
        twice = (
            f"guidance is distilled into {lora.name}, and --cfg {s.cfg:g} guides a second time: "
            f"leave --cfg out, or give --lora none"
        )
        lora = replace(lora, notice="; ".join(filter(None, (lora.notice, twice))))
    return s, lora


def choose_schedule(s: ImageSettings, lora: LoraFile | None) -> "Schedule":
    """`auto` follows the LoRA's metadata, and is the published schedule without; a baseline has its
    own."""
    if s.method != "std":
        spacing = zoo().methods[s.method].spacing
        return "quickstart" if spacing == "grid" else spacing
    if s.schedule == "auto":
        return "aligned" if lora and lora.metadata.get("schedule") == "aligned" else "quickstart"
    return s.schedule


def check_noise(s: ImageSettings, schedule: "Schedule", files: ModelFiles) -> None:
    """Raises InputError where a model cannot be run by these timesteps, or by the method's
    scheduler."""
    method = zoo().methods[s.method]
    if (
        method.scheduler == "EulerDiscreteScheduler"
        and scheduler_config(files).get("prediction_type") == "sample"
    ):
        raise InputError(
            f"--method {s.method}: its scheduler (Euler) does not know the prediction_type "
            f"'sample' of --model "
            f"{files.name}: use another method"
        )
    if (
        blind_at_the_end(files)
        and timesteps(s.steps, s.eta, schedule, method.grid)[0] == TRAIN_TIMESTEPS - 1
    ):
        raise InputError(
            f"--eta {s.eta:g}: the run begins at timestep {TRAIN_TIMESTEPS - 1}, where --model "
            f"{files.name} predicts "
            "nothing (its scheduler_config.json says epsilon and rescale_betas_zero_snr): use a "
            "smaller --eta, such "
            "as 0.95"
        )
