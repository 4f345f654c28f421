"""A trainer's state as a checkpoint, and back."""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from std_cli import __version__
from std_cli.distill import checkpoint
from std_cli.distill.checkpoint import CheckpointState
from std_cli.distill.config import ExportedWeights, config_hash, value_of
from std_cli.distill.export import diffusers_bytes
from std_cli.distill.processes import together
from std_cli.distill.roles import STUDENT, TARGET
from std_cli.distill.trainer import Trainer
from std_cli.errors import InputError
from std_cli.schedule import Schedule


def save(trainer: Trainer, step: int) -> Path:
    """Every process writes its lanes, the first one also all else; the checkpoint's folder. Raises
    StdError in all processes if one cannot write."""
    run = trainer.run
    draft = checkpoint.draft_of(run.folder, step)
    with together(run.world):
        for lane in trainer.lanes:
            checkpoint.write_part(draft, checkpoint.lane_name(lane.number), lane.bank.state_dict())
    with together(run.world):
        if run.world.is_main_process:
            _save_shared(trainer, draft, step)
    return checkpoint.folder_of(run.folder, step)


def _save_shared(trainer: Trainer, draft: Path, step: int) -> None:
    run = trainer.run
    config = run.config
    adapter = diffusers_bytes(
        trainer.roles.state_dict(), config.lora.alpha, metadata(trainer, step)
    )
    checkpoint.write_bytes(draft, checkpoint.ADAPTER, adapter)
    checkpoint.write_part(draft, checkpoint.TRAINING, _training_state(trainer))
    state: CheckpointState = {
        "format": checkpoint.FORMAT,
        "version": __version__,
        "config": config.model_dump(mode="json"),
        "lanes": run.lane_count,
        "samples": run.fingerprints,
        "steps": run.steps,
        "weights": trainer.weights,
        "step": step,
        "files": {},
    }
    checkpoint.finish(run.folder, state)
    checkpoint.prune(run.folder, config.run.keep_last, config.run.keep_every)


def _training_state(trainer: Trainer) -> dict[str, Any]:
    state: dict[str, Any] = {
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.scaler.state_dict(),
    }
    if trainer.config.distill.ema:
        state["average"] = trainer.roles.state_dict(TARGET)
    if trainer.head is not None:
        state |= trainer.head.state_dict()
    if trainer.judge is not None:
        state |= trainer.judge.state_dict()
    return state


def load(trainer: Trainer, folder: Path) -> int:
    """Take up the state of a checkpoint; returns its step. Raises InputError if it is damaged, or
    was made on other weights."""
    state = checkpoint.read_state(folder)
    if state is None:
        raise InputError(f"--resume {folder}: is damaged or no checkpoint: name another, or auto")
    _check_weights(trainer, folder, state)
    run = trainer.run
    if state["steps"] != run.steps and run.config.optimizer.schedule == "cosine":
        message = f"the learning rate now falls to 0 at update {run.steps}, not {state['steps']}"
        run.on_event({"event": "notice", "message": message})
    training = checkpoint.load_part(folder, checkpoint.TRAINING)
    adapter = load_file(folder / checkpoint.ADAPTER)
    trainer.roles.load_state_dict({k.removeprefix("unet."): v for k, v in adapter.items()}, STUDENT)
    if run.config.distill.ema:
        trainer.roles.load_state_dict(training["average"], TARGET)
    trainer.optimizer.load_state_dict(training["optimizer"])
    trainer.scaler.load_state_dict(training["scaler"])
    if trainer.head is not None:
        trainer.head.load_state_dict(training)
    if trainer.judge is not None:
        trainer.judge.load_state_dict(training)
    for lane in trainer.lanes:
        lane.bank.load_state_dict(checkpoint.load_part(folder, checkpoint.lane_name(lane.number)))
    return state["step"]


def _check_weights(trainer: Trainer, folder: Path, state: CheckpointState) -> None:
    before = state["weights"]
    for key, own in trainer.weights.items():
        if before.get(key) != own:
            raise InputError(
                f"{folder} was made on other weights of {value_of(trainer.config, key)} ({key}): "
                "name another run.output"
            )


def metadata(
    trainer: Trainer,
    step: int,
    schedule: Schedule = "aligned",
    weights: ExportedWeights = "student",
) -> dict[str, str]:
    """What the LoRA's file says about itself. Split among processes or not, equal runs have an
    equal config_sha256."""
    config = trainer.config
    all_lanes = {"accumulation": trainer.run.lane_count}
    one_process = config.model_copy(
        update={"optimizer": config.optimizer.model_copy(update=all_lanes)}
    )
    facts = {
        "task": config.run.task,
        "eta": config.distill.eta,
        "steps": config.distill.steps,
        "schedule": schedule,
        "weights": weights,
        "mode": config.distill.mode,
        "guidance": f"w {config.distill.w_min:g}-{config.distill.w_max:g}",
        "base_model": config.model.name,
        "base_sha256": trainer.weights["model.name"],
        "config_sha256": config_hash(one_process),
        "trained_steps": step,
        "std_version": __version__,
    }
    if config.export.cfg is not None:
        facts["cfg"] = f"{config.export.cfg:g}"
    return {key: str(value) for key, value in facts.items()}
