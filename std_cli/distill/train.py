"""A training run: what `std distill` calls, and what a script can.

Work is laid out in lanes. A lane is one micro-batch of every update, with its own samples, random
numbers and trajectory bank; L = processes x accumulation of them make an update. All that is random
follows from (seed, step, lane), so a resumed run is the uninterrupted one, and two processes
compute what one does with twice the accumulation.

Events: Notice, TrainingStart, Loading, TrainingProgress and TrainingResult of `std_cli.events`, in
the first process, which also validates.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, cast

import torch
from accelerate import PartialState

from std_cli import __version__
from std_cli.diffusion.devices import name_dtype
from std_cli.distill import checkpoint
from std_cli.distill.build import Parts, build, find_parts
from std_cli.distill.config import DistillConfig, ExportedWeights, to_toml
from std_cli.distill.export import DIFFUSERS, export
from std_cli.distill.loader import Loader
from std_cli.distill.metrics import MetricsLog
from std_cli.distill.processes import together
from std_cli.distill.roles import STUDENT, TARGET
from std_cli.distill.trainer import Trainer
from std_cli.distill.trainer_state import load, metadata, save
from std_cli.distill.training_run import TrainingRun, plan_run
from std_cli.distill.validation import SCHEDULES, Validation
from std_cli.errors import Busy, InputError, StdError, at_work, counted
from std_cli.events import OnEvent, TrainingProgress, TrainingResult
from std_cli.interruption import at_quit, deferred
from std_cli.paths import FULL_DISK, remove_stale_drafts, replace_file, try_lock
from std_cli.schedule import Schedule

_LOCK = "lock"
"""In the run's folder: the run that works there holds it."""


def distill(
    config: DistillConfig,
    *,
    resume: str = "auto",
    on_event: OnEvent = lambda event: None,
    on_ready: Callable[[Trainer], None] = lambda trainer: None,
) -> Path:
    """Train, and return the path of the exported LoRA (diffusers' layout).

    resume: "auto" (the newest good checkpoint in the run's folder, if any), "none", or a
    checkpoint's folder. on_ready: called when all is loaded, before the first update.

    Ctrl-C and SIGTERM save a checkpoint after the update at work, then raise KeyboardInterrupt.
    Raises InputError, before a weight is loaded, for problems of configuration or data; StdError if
    the work fails.
    """
    world = PartialState(cpu=config.model.device == "cpu")
    on_event = on_event if world.is_main_process else lambda event: None
    with ExitStack() as held:
        with _all_together(world):
            run = plan_run(config, world, resume=resume, on_event=on_event)
            parts = find_parts(config)
            trainer, first = _set_up(run, parts, on_ready, held)
            validation = Validation(trainer, run.held_out) if run.held_out else None
        begin = time.monotonic()
        saved, validated = _train(trainer, validation, first)
        path = run.folder / DIFFUSERS
        measured: dict[str, Any] = {}
        with _all_together(world):
            if world.is_main_process:
                path, measured = _export(trainer, validation)
                if config.run.push:
                    from std_cli.weights.hub import push_lora

                    push_lora(path, config.run.push)
    result = {
        "event": "result",
        "input": str(saved),
        "output": str(path),
        "steps": run.steps,
        "seconds": round(time.monotonic() - begin, 3),
        **validated,
        **measured,
    }
    on_event(cast(TrainingResult, result))
    return path


def _train(
    trainer: Trainer, validation: Validation | None, first: int
) -> tuple[Path, dict[str, float]]:
    """All updates from `first` on: (the last checkpoint, the figures of the last validation)."""
    run = trainer.run
    section = run.config.run
    world, steps = run.world, run.steps
    validating = validation if world.is_main_process else None
    saved = checkpoint.folder_of(run.folder, first)
    validated: dict[str, float] = {}
    pace = _Pace(run, first)

    with (
        at_work(),
        deferred() as stopped,
        _make_loader(trainer, first) as loader,
        MetricsLog(run, first) as log,
    ):
        # --- the untrained student, which shows what there is to gain ---
        with _all_together(world):
            if validating is not None and first == 0:
                log.write(0, validating.measure(0))

        for step in range(first, steps):
            # --- data and gradients: one micro-batch for each lane ---
            with _all_together(world):
                figures = [trainer.train_lane(step, lane, next(loader)) for lane in trainer.lanes]

            # --- update: all processes exchange gradients here, so none may stop alone ---
            with _enough_memory():
                facts = trainer.update(step, figures)
            done = step + 1

            # --- validate and log ---
            with _all_together(world):
                if validating is not None and (done % section.validate_every == 0 or done == steps):
                    validated = validating.measure(done)
                    facts |= validated
                facts["samples_per_second"] = round(pace.measure(done), 3)
                log.write(done, facts)
            progress = {"event": "progress", "stage": "distill", "step": done, "steps": steps}
            progress |= {"eta": pace.seconds_left(done), **facts}
            run.on_event(cast(TrainingProgress, progress))

            # --- save ---
            stop = trainer.agree(stopped())
            if stop or done % section.save_every == 0 or done == steps:
                saved = save(trainer, done)
            if stop and done < steps:
                message = f"stopped after {counted(done, 'update')}; the same command resumes"
                run.on_event({"event": "notice", "message": message})
                raise KeyboardInterrupt
    return saved, validated


class _Pace:
    """How fast the updates of this command are."""

    def __init__(self, run: TrainingRun, first: int) -> None:
        self.run = run
        self.first = first
        self.begin = time.monotonic()
        self.rate = 0.0

    def measure(self, done: int) -> float:
        """Samples a second since the command began, after `done` updates."""
        samples = (done - self.first) * self.run.lane_count * self.run.config.optimizer.batch
        self.rate = samples / (time.monotonic() - self.begin)
        return self.rate

    def seconds_left(self, done: int) -> float:
        """Seconds until the last update, at the rate that was measured last."""
        left = (self.run.steps - done) * self.run.lane_count * self.run.config.optimizer.batch
        return left / self.rate


def _make_loader(trainer: Trainer, first: int) -> Loader:
    """The samples of this process's lanes; what their banks will supply is not read."""
    run = trainer.run
    forecasts = {lane.number: trainer.forecast(lane) for lane in trainer.lanes}
    return Loader(
        trainer.data,
        lanes=[lane.number for lane in trainer.lanes],
        lane_count=run.lane_count,
        batch=run.config.optimizer.batch,
        start_step=first,
        seed=run.config.run.seed,
        workers=run.config.data.workers,
        fresh=lambda step, lane: forecasts[lane].fresh(step),
        taken={lane.number: lane.bank.begun for lane in trainer.lanes},
        on_notice=lambda message: run.on_event({"event": "notice", "message": message}),
    )


# --- set-up ------------------------------------------------------------------------------------


def _set_up(
    run: TrainingRun, parts: Parts, on_ready: Callable[[Trainer], None], held: ExitStack
) -> tuple[Trainer, int]:
    """(the trainer, resumed where there is a checkpoint; updates done before)."""
    with _new_folder(run, held):
        if run.world.is_main_process:
            remove_stale_drafts(run.folder)
            checkpoint.remove_drafts(run.folder)
        trainer = build(run, parts)
        on_ready(trainer)
        first = load(trainer, run.start) if run.start is not None else 0
        if run.world.is_main_process:
            replace_file(run.folder / "config.toml", to_toml(run.config).encode())
    _report_start(run, trainer)
    return trainer, first


def _report_start(run: TrainingRun, trainer: Trainer) -> None:
    run.on_event(
        {
            "event": "start",
            "settings": run.config.model_dump(mode="json"),
            "steps": run.steps,
            "version": __version__,
            "model": trainer.model_name,
            "lora": None,
            "device": str(trainer.device),
            "dtype": name_dtype(trainer.conditioner.pipeline.dtype),
            "trainable": sum(parameter.numel() for parameter in trainer.learning),
            "samples": len(run.samples),
        }
    )


@contextmanager
def _new_folder(run: TrainingRun, held: ExitStack) -> Iterator[None]:
    """A run's folder, which no other run may write until `held` is left. One that was not there,
    and the folders above it, are removed again if the set-up fails."""
    folder = run.folder
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    ready = False

    def undo() -> None:
        if missing and not ready:
            shutil.rmtree(folder, ignore_errors=True)
            for place in missing[1:]:
                with suppress(OSError):
                    place.rmdir()

    with at_quit(undo):
        _make_folder(folder)
        main = run.world.is_main_process
        if main and not try_lock(held.enter_context((folder / _LOCK).open("ab"))):
            ready = True  # the folder is the other run's
            raise Busy(
                f"run.output {folder}: another run is writing it: wait for it, or name another "
                f"folder"
            )
        yield
        ready = True


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as e:
        if e.errno in FULL_DISK:
            raise StdError(
                f"run.output {folder}: disk full ({e.strerror}): free some space"
            ) from None
        raise InputError(
            f"run.output {folder}: cannot be written ({e.strerror}): name another folder"
        ) from None


@contextmanager
def _all_together(world: PartialState) -> Iterator[None]:
    """Work of each process: an error of one of them, too little memory included, is one of all."""
    with together(world), _enough_memory():
        yield


@contextmanager
def _enough_memory() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as e:
        raise StdError(
            "the GPU's memory does not suffice: lower optimizer.batch (and raise "
            "optimizer.accumulation), data.size or data.frames, or set "
            "model.gradient_checkpointing = true; --dry-run shows what takes how much"
        ) from e


# --- export ------------------------------------------------------------------------------------


def _export(trainer: Trainer, validation: Validation | None) -> tuple[Path, dict[str, Any]]:
    """Measure what can be exported in each schedule, and export what export.weights says with the
    better schedule.

    Returns the LoRA's path and {"weights", "schedule", "compared": the figures}, which export.json
    holds, too.
    """
    run = trainer.run
    weights = run.config.export.weights
    compared = validation.compare() if validation is not None else {}
    schedule = SCHEDULES[0]
    if compared:
        schedule = min(SCHEDULES, key=lambda name: compared[weights][name])
        _notice_better(run, compared)
    measured = {"weights": weights, "schedule": schedule, "compared": compared}
    adapter = trainer.roles.state_dict(TARGET if weights == "average" else STUDENT)
    facts = metadata(trainer, run.steps, schedule, weights)
    path = export(run.folder, adapter, run.config.lora.alpha, facts)
    replace_file(run.folder / "export.json", (json.dumps(measured, indent=1) + "\n").encode())
    return path, measured


def _notice_better(
    run: TrainingRun, compared: dict[ExportedWeights, dict[Schedule, float]]
) -> None:
    """A notice where the weights that are not exported validate better."""
    weights = run.config.export.weights
    best = {name: min(distances.values()) for name, distances in compared.items()}
    other = min(best, key=best.__getitem__)
    if other != weights and best[other] < best[weights]:
        message = (
            f"the {other} validates better, {best[other]:.4f} against {best[weights]:.4f} of the "
            f"{weights}, which is exported: --set export.weights={other} exports it from this run"
        )
        run.on_event({"event": "notice", "message": message})
