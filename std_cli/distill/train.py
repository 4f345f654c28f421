"""A training run: what `std distill` calls, and what a script can.

Work is laid out in lanes. A lane is one micro-batch of every update, with its own samples, random
numbers and trajectory bank; L = processes x accumulation of them make an update. All that is random
follows from (seed, step, lane), so a resumed run is the uninterrupted one, and two processes
compute what one does with twice the accumulation.

Told through `on_event`: "notice" (message), "start" (settings), "progress" (stage "distill": step,
steps, losses, bank, samples_per_second, eta, memory), "result" (output, steps, seconds, validation,
weights, schedule, compared). Losses are means over the lanes of all processes, bank and
bank_histogram sums over them, memory the most that one process has used; the first process
validates.
"""

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from std_cli.distill import checkpoint
from std_cli.distill.conditioner import STUDENT, TARGET
from std_cli.distill.config import DistillConfig, differing_keys, make_config, to_toml
from std_cli.distill.dataset import find_pictures, fingerprint_references, fingerprint_samples
from std_cli.distill.export import DIFFUSERS, export
from std_cli.distill.find_samples import Found, find_samples
from std_cli.distill.loader import Loader
from std_cli.distill.processes import together
from std_cli.distill.trainer import OnEvent, Trainer
from std_cli.distill.trainer_state import load, metadata, save
from std_cli.distill.validation import SCHEDULES, Validation
from std_cli.errors import InputError, StdError, at_work
from std_cli.interruption import at_quit, deferred
from std_cli.paths import FULL_DISK, remove_stale_drafts, replace_file, user_path, writing


def distill(
    config: DistillConfig,
    *,
    resume: str = "auto",
    on_event: OnEvent = lambda event: None,
    on_ready: Callable[[Trainer], None] = lambda trainer: None,
) -> Path:
    """Train, and return the path of the exported LoRA (diffusers' layout).

    resume: "auto" (the newest good checkpoint in the run's folder, if any), "none", or a
    checkpoint's folder.
    on_ready: called when all is loaded, before the first update.
    Ctrl-C and SIGTERM save a checkpoint after the update at work, then raise KeyboardInterrupt.
    Raises InputError, before a weight is loaded, for problems of configuration or data; StdError if
    the work fails.
    """
    state = PartialState(cpu=config.model.device == "cpu")
    on_event = on_event if state.is_main_process else lambda event: None
    with together(state), _memory_suffices():
        trainer, held_out, first = _set_up(config, resume, state, on_event, on_ready)
        validating = Validation(trainer, held_out) if held_out.entries else None
    r, o, main = config.run, config.optimizer, state.is_main_process
    folder, steps, lane_count = trainer.folder, trainer.steps, trainer.lane_count
    begin = time.monotonic()
    validation: dict[str, float] = {}
    forecasts = {lane.number: trainer.forecast(lane) for lane in trainer.lanes}
    saved = checkpoint.folder_of(folder, first)

    # --- the loop ---
    with (
        at_work(),
        deferred() as stopped,
        Loader(
            trainer.data,
            lanes=[lane.number for lane in trainer.lanes],
            lane_count=lane_count,
            batch=o.batch,
            start_step=first,
            seed=r.seed,
            workers=config.data.workers,
            fresh=lambda step, lane: forecasts[lane].fresh(step),
            taken={lane.number: lane.bank.begun for lane in trainer.lanes},
            on_notice=lambda message: on_event({"event": "notice", "message": message}),
        ) as loader,
        _Log(folder, first, r.track, config, main) as log,
    ):
        with together(state), _memory_suffices():
            if main and first == 0 and validating:  # what there is to gain
                log.write(0, validating.measure(0))
        for step in range(first, steps):
            with together(state), _memory_suffices():
                figures = [trainer.train_lane(step, lane, next(loader)) for lane in trainer.lanes]
            with _memory_suffices():
                facts = trainer.update(step, figures)
            done = step + 1
            with together(state), _memory_suffices():
                if main and validating and (done % r.validate_every == 0 or done == steps):
                    validation = validating.measure(done)
                    facts |= validation
                rate = (done - first) * lane_count * o.batch / (time.monotonic() - begin)
                facts["samples_per_second"] = round(rate, 3)
                log.write(done, facts)
            left = (steps - done) * lane_count * o.batch / rate
            on_event(
                {
                    "event": "progress",
                    "stage": "distill",
                    "step": done,
                    "steps": steps,
                    "eta": left,
                    **facts,
                }
            )
            stop = trainer.agree(stopped())
            if stop or done % r.save_every == 0 or done == steps:
                saved = save(trainer, done)
            if stop and done < steps:
                on_event(
                    {
                        "event": "notice",
                        "message": f"stopped after {done} updates; the same command resumes",
                    }
                )
                raise KeyboardInterrupt

    # --- export ---
    path, measured = folder / DIFFUSERS, dict[str, Any]()
    with together(state), _memory_suffices():
        if main:
            path, measured = _export(trainer, validating, on_event)
            if r.push:
                from std_cli.weights.hub import push_lora

                push_lora(path, r.push)
    on_event(
        {
            "event": "result",
            "input": str(saved),
            "output": str(path),
            "steps": steps,
            "seconds": round(time.monotonic() - begin, 3),
            **validation,
            **measured,
        }
    )
    return path


def _export(
    trainer: Trainer, validating: Validation | None, on_event: OnEvent
) -> tuple[Path, dict[str, Any]]:
    """Measure what can be exported in each schedule, and export what export.weights says with the
    better schedule.

    (the LoRA's path, {"weights", "schedule", "compared": the figures}), which export.json holds,
    too.
    """
    weights, compared = trainer.config.export.weights, validating.compare() if validating else {}
    schedule = (
        min(compared[weights], key=compared[weights].__getitem__) if compared else SCHEDULES[0]
    )
    measured = {"weights": weights, "schedule": schedule, "compared": compared}
    if compared:
        best = {name: min(of.values()) for name, of in compared.items()}
        if (other := min(best, key=best.__getitem__)) != weights and best[other] < best[weights]:
            message = (
                f"the {other} validates better, {best[other]:.4f} against "
                f"{best[weights]:.4f} of the {weights}"
            )
            message += f", which is exported: --set export.weights={other} exports it from this run"
            on_event({"event": "notice", "message": message})
    adapter = trainer.roles.state_dict(TARGET if weights == "average" else STUDENT)
    facts = metadata(trainer, trainer.steps, schedule, weights)
    path = export(trainer.folder, adapter, trainer.config.lora.alpha, facts)
    replace_file(trainer.folder / "export.json", (json.dumps(measured, indent=1) + "\n").encode())
    return path, measured


def count_updates(config: DistillConfig, samples: int, lane_count: int) -> int:
    """Updates of a run: run.max_steps, or what run.epochs makes of so many samples."""
    epochs = config.run.epochs * samples / (lane_count * config.optimizer.batch)
    return config.run.max_steps or max(1, round(epochs))


def count_held_out(samples: int, wanted: int) -> int:
    """Of so many samples those that are held out for validation: at most a fifth."""
    return min(wanted, samples // 5)


# --- set-up ------------------------------------------------------------------------------------


def _set_up(
    config: DistillConfig,
    resume: str,
    state: PartialState,
    on_event: OnEvent,
    on_ready: Callable[[Trainer], None],
) -> tuple[Trainer, Found, int]:
    """(the trainer, resumed where there is a checkpoint; the samples held out for validation;
    updates done before)."""
    r = config.run
    folder = user_path(r.output, "run.output")
    if r.track != "none" and find_spec(r.track) is None:
        raise InputError(
            f"run.track {r.track}: is not installed: pip install 'std-cli[{r.track}]', or use none"
        )
    found = find_samples([user_path(s, "data.sources") for s in config.data.sources])
    usable = [e for e in found.entries if config.data.frames == 1 or e.kind == "clip"]
    entries, held_out = _held_out(usable, config.data.held_out, r.seed)
    references = (
        find_pictures(user_path(config.style.folder, "style.folder")) if config.style.folder else []
    )
    lane_count = state.num_processes * config.optimizer.accumulation
    samples = {"data": fingerprint_samples(entries), "style": fingerprint_references(references)}
    start = _choose_start(folder, resume, config, lane_count, samples, on_event)
    steps = count_updates(config, len(entries), lane_count)
    with _new_folder(folder):
        _make_folder(folder)
        if state.is_main_process:
            remove_stale_drafts(folder)
            checkpoint.remove_drafts(folder)
        trainer = Trainer(
            config, entries, found, references, folder, state, steps, lane_count, on_event
        )
        on_ready(trainer)
        first = load(trainer, start) if start is not None else 0
        if state.is_main_process:
            replace_file(folder / "config.toml", to_toml(config).encode())
    on_event(
        {
            "event": "start",
            "settings": config.model_dump(mode="json"),
            "steps": steps,
            **trainer.facts,
        }
    )
    return trainer, replace(found, entries=held_out), first


def _held_out(entries: Any, count: int, seed: int) -> tuple[list[Any], list[Any]]:
    """(for training, for validation): chosen by the seed; at most a fifth."""
    count = count_held_out(len(entries), count)
    chosen = set(np.random.default_rng(seed).permutation(len(entries))[:count].tolist())
    return (
        [e for i, e in enumerate(entries) if i not in chosen],
        [e for i, e in enumerate(entries) if i in chosen],
    )


def _choose_start(
    folder: Path,
    resume: str,
    config: DistillConfig,
    lanes: int,
    samples: dict[str, str],
    on_event: OnEvent,
) -> Path | None:
    """The checkpoint to resume from. Raises InputError if it is of a run that differs."""
    if resume == "none":
        if checkpoint.steps_of(folder):
            raise InputError(
                f"run.output {folder}: has checkpoints of a run: name another, or --resume auto"
            )
        return None
    if resume != "auto":
        start = user_path(resume, "--resume")
        state = checkpoint.read_state(start)
        if state is None:
            raise InputError(
                f"--resume {resume}: is damaged or no checkpoint: name another, or auto"
            )
    else:
        found = None
        for start, state in checkpoint.newest(folder):
            if state is not None:
                found = start, state
                break
            on_event(
                {
                    "event": "notice",
                    "message": f"{start.name} is damaged: going back to the one before",
                }
            )
        if found is None:
            return None
        start, state = found
    _check_same_run(start, state, config, lanes, samples)
    return start


def _check_same_run(
    start: Path, state: dict[str, Any], config: DistillConfig, lanes: int, samples: dict[str, str]
) -> None:
    """Raises InputError if a checkpoint is of a run that differs from this one."""
    if state.get("format") != checkpoint.FORMAT:
        raise InputError(
            f"{start} was made by another version of std, which must finish it; or name another "
            f"run.output"
        )
    before = make_config(state["config"], str(start))
    if keys := differing_keys(before, config):
        old, new = (
            (getattr(getattr(c, keys[0].split(".")[0]), keys[0].split(".")[1]))
            for c in (before, config)
        )
        raise InputError(
            f"{start} was made with another {', '.join(keys)} ({keys[0]}: {old!r}, now {new!r}): "
            f"give the same, "
            "or name another run.output"
        )
    if state["lanes"] != lanes:
        raise InputError(
            f"{start} has {state['lanes']} lanes, now {lanes}: processes x "
            f"optimizer.accumulation must stay "
            f"{state['lanes']}, however they are split; or name another run.output"
        )
    for what, name in (("data", "data"), ("style", "style references")):
        if state["samples"].get(what) != samples[what]:
            raise InputError(
                f"{start} was made with other {name}: give the same files, or name another "
                f"run.output"
            )


@contextmanager
def _new_folder(folder: Path) -> Iterator[None]:
    """A run's folder that was not there, and the folders above it, are removed again if its set-up
    fails."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    ready = False

    def undo() -> None:
        if missing and not ready:
            shutil.rmtree(folder, ignore_errors=True)
            for place in missing[1:]:
                with suppress(OSError):
                    place.rmdir()

    with at_quit(undo):
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
def _memory_suffices() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as e:
        raise StdError(
            "the GPU's memory does not suffice: lower optimizer.batch (and raise "
            "optimizer.accumulation), data.size or "
            "data.frames, or set model.gradient_checkpointing = true; --dry-run tells what takes "
            "how much"
        ) from e


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # what a kill left half written
        return math.inf


class _Log:
    """metrics.jsonl, one line for each update; what an interrupted run wrote after its last
    checkpoint is cut off."""

    def __init__(
        self, folder: Path, first: int, track: str, config: DistillConfig, main: bool
    ) -> None:
        self.file = None
        if not main:
            return
        path = folder / "metrics.jsonl"
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = [line for line in lines if first and _step_of(line) <= first]
        replace_file(path, "".join(f"{line}\n" for line in kept).encode())
        with writing(path):
            # what could not be written is not tried again on closing
            self.file = path.open("ab", buffering=0)
        self.tracker: Any = None
        if track != "none":
            from accelerate import Accelerator

            self.tracker = Accelerator(log_with=track, project_dir=str(folder))
            self.tracker.init_trackers(
                "std-distill", config={"config": json.dumps(config.model_dump(mode="json"))}
            )

    def write(self, step: int, facts: dict[str, Any]) -> None:
        if self.file is None:
            return
        line = (json.dumps({"step": step, **facts}) + "\n").encode()
        with writing(self.path):
            while line:
                line = line[self.file.write(line) :]
        if self.tracker:
            self.tracker.log(
                {k: v for k, v in facts.items() if isinstance(v, int | float)}, step=step
            )

    def __enter__(self) -> "_Log":
        return self

    def __exit__(self, *error: object) -> None:
        if self.file is not None:
            with suppress(OSError):  # each line reported its own
                os.fsync(self.file.fileno())
            self.file.close()
            if self.tracker:
                self.tracker.end_training()
