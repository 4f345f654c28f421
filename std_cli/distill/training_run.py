"""What is known of a training run before a weight is loaded: its data, its length, and the
checkpoint that it resumes from."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from accelerate import PartialState

from std_cli.distill import checkpoint
from std_cli.distill.checkpoint import CheckpointState
from std_cli.distill.config import DataSection, DistillConfig, differing_keys, make_config, value_of
from std_cli.distill.dataset import find_pictures, fingerprint_references, fingerprint_samples
from std_cli.distill.find_samples import FoundSamples, SampleFile, find_samples
from std_cli.errors import InputError
from std_cli.events import OnEvent
from std_cli.paths import user_path


@dataclass(frozen=True)
class TrainingRun:
    """One process's view of a run. Nothing of it changes while the run is at work."""

    config: DistillConfig
    folder: Path
    """The folder of the run's output, as the user wrote it."""
    world: PartialState
    """The processes of the run, and which of them this is."""
    on_event: OnEvent
    found: FoundSamples
    """All captioned files."""
    samples: list[SampleFile]
    """The files that are trained on."""
    held_out: list[SampleFile]
    """The files that only validations use."""
    references: list[Path]
    """The style's pictures; [] without a style."""
    fingerprints: dict[str, str]
    """16 hex digits that identify the samples ("data") and the references ("style")."""
    start: Path | None
    """The checkpoint to resume from."""

    @property
    def lane_count(self) -> int:
        """L, the micro-batches of an update in all processes."""
        return _count_lanes(self.world, self.config)

    @property
    def steps(self) -> int:
        """Updates of the whole run."""
        return count_updates(self.config, len(self.samples), self.lane_count)

    @property
    def lr_scale(self) -> float:
        """The factor of both learning rates: total batch / 128, the batch of the published runs."""
        optimizer = self.config.optimizer
        return self.lane_count * optimizer.batch / 128 if optimizer.scale_lr else 1.0


def plan_run(
    config: DistillConfig,
    world: PartialState,
    *,
    resume: str = "auto",
    on_event: OnEvent = lambda event: None,
) -> TrainingRun:
    """Find the data and the checkpoint to resume from; nothing is written.

    resume: "auto", "none" or a checkpoint's folder, as for `distill`. Raises InputError for data
    that cannot be used, a tracker that is not installed, and a checkpoint of a run that differs.
    """
    folder = user_path(config.run.output, "run.output")
    track = config.run.track
    if track != "none" and find_spec(track) is None:
        raise InputError(
            f"run.track {track}: is not installed: pip install 'std-cli[{track}]', or use none"
        )
    found = find_data(config.data)
    usable = [e for e in found.entries if config.data.frames == 1 or e.kind == "clip"]
    samples, held_out = _hold_out(usable, config.data.held_out, config.run.seed)
    style = config.style.folder
    references = find_pictures(user_path(style, "style.folder")) if style else []
    fingerprints = {
        "data": fingerprint_samples(samples),
        "style": fingerprint_references(references),
    }
    lane_count = _count_lanes(world, config)
    start = _choose_start(folder, resume, on_event)
    if start is not None:
        _check_same_run(*start, config, lane_count, fingerprints)
    return TrainingRun(
        config=config,
        folder=folder,
        world=world,
        on_event=on_event,
        found=found,
        samples=samples,
        held_out=held_out,
        references=references,
        fingerprints=fingerprints,
        start=start[0] if start is not None else None,
    )


def _count_lanes(world: PartialState, config: DistillConfig) -> int:
    return int(world.num_processes) * config.optimizer.accumulation


def find_data(section: DataSection) -> FoundSamples:
    """The captioned files of data.sources. Raises InputError for what cannot be used."""
    root = user_path(section.root, "data.root") if section.root is not None else None
    if root is not None and not root.is_dir():
        raise InputError(f"data.root {section.root}: is no folder: check the path")
    return find_samples([user_path(source, "data.sources") for source in section.sources], root)


def count_updates(config: DistillConfig, samples: int, lane_count: int) -> int:
    """Updates of a run: run.max_steps, or what run.epochs makes of so many samples."""
    epochs = config.run.epochs * samples / (lane_count * config.optimizer.batch)
    return config.run.max_steps or max(1, round(epochs))


def count_held_out(samples: int, wanted: int) -> int:
    """How many of so many samples are held out for validation: at most a fifth."""
    return min(wanted, samples // 5)


def _hold_out(
    entries: list[SampleFile], wanted: int, seed: int
) -> tuple[list[SampleFile], list[SampleFile]]:
    """(for training, for validation), chosen by the seed."""
    count = count_held_out(len(entries), wanted)
    chosen = set(np.random.default_rng(seed).permutation(len(entries))[:count].tolist())
    return (
        [entry for i, entry in enumerate(entries) if i not in chosen],
        [entry for i, entry in enumerate(entries) if i in chosen],
    )


# --- the checkpoint to resume from -------------------------------------------------------------


def _choose_start(
    folder: Path, resume: str, on_event: OnEvent
) -> tuple[Path, CheckpointState] | None:
    """The checkpoint that `resume` means, and its state; None to begin from the start."""
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
        return start, state
    for start, state in checkpoint.newest(folder):
        if state is not None:
            return start, state
        message = f"{start.name} is damaged: going back to the one before"
        on_event({"event": "notice", "message": message})
    return None


def _check_same_run(
    start: Path,
    state: CheckpointState,
    config: DistillConfig,
    lane_count: int,
    fingerprints: dict[str, str],
) -> None:
    """Raises InputError if a checkpoint is of a run that differs from this one."""
    if state.get("format") != checkpoint.FORMAT:
        raise InputError(
            f"{start} was made by another version of std, which must finish it; or name another "
            "run.output"
        )
    before = make_config(state["config"], str(start))
    if keys := differing_keys(before, config):
        old, new = value_of(before, keys[0]), value_of(config, keys[0])
        raise InputError(
            f"{start} was made with another {', '.join(keys)} ({keys[0]}: {old!r}, now {new!r}): "
            "give the same, or name another run.output"
        )
    if state["lanes"] != lane_count:
        raise InputError(
            f"{start} has {state['lanes']} lanes, now {lane_count}: processes x "
            f"optimizer.accumulation must stay {state['lanes']}, however they are split; or name "
            "another run.output"
        )
    for what, name in (("data", "data"), ("style", "style references")):
        if state["samples"].get(what) != fingerprints[what]:
            raise InputError(
                f"{start} was made with other {name}: give the same files, or name another "
                "run.output"
            )
