"""A trainer's state as a checkpoint, and back."""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from std_cli import __version__
from std_cli.distill import checkpoint
from std_cli.distill.conditioner import STUDENT, TARGET
from std_cli.distill.config import config_hash
from std_cli.distill.export import diffusers_bytes
from std_cli.distill.processes import together
from std_cli.distill.trainer import Trainer
from std_cli.errors import InputError


def save(trainer: Trainer, step: int) -> Path:
    """Every process writes its lanes, the first one all else. Raises StdError in all if one
    cannot."""
    draft = checkpoint.draft_of(trainer.folder, step)
    with together(trainer.world):
        for lane in trainer.lanes:
            checkpoint.write_part(draft, checkpoint.lane_name(lane.number), lane.bank.state_dict())
    with together(trainer.world):
        if trainer.world.is_main_process:
            _save_shared(trainer, draft, step)
    return checkpoint.folder_of(trainer.folder, step)


def _save_shared(trainer: Trainer, draft: Path, step: int) -> None:
    adapter = trainer.roles.state_dict()
    text = {k: str(v) for k, v in metadata(trainer, step).items()}
    checkpoint.write_part(
        draft, checkpoint.ADAPTER, diffusers_bytes(adapter, trainer.config.lora.alpha, text)
    )
    checkpoint.write_part(draft, checkpoint.TRAINING, _training_state(trainer))
    state = {
        "version": __version__,
        "config": trainer.config.model_dump(mode="json"),
        "lanes": trainer.lane_count,
    }
    state |= {"samples": trainer.samples, "steps": trainer.steps, "weights": trainer.weights}
    checkpoint.finish(trainer.folder, step, state)
    checkpoint.prune(trainer.folder, trainer.config.run.keep_last, trainer.config.run.keep_every)


def _training_state(trainer: Trainer) -> dict[str, Any]:
    state: dict[str, Any] = {
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.scaler.state_dict(),
    }
    if trainer.config.distill.ema:
        state["average"] = trainer.roles.state_dict(TARGET)
    if trainer.head is not None and trainer.head_average is not None:
        state |= {
            "head": trainer.head.state_dict(),
            "head_average": trainer.head_average.state_dict(),
        }
    if trainer.discriminator is not None:
        state |= {
            "discriminator": trainer.discriminator.state_dict(),
            "d_optimizer": trainer.d_optimizer.state_dict(),
        }
        state["penalty"] = trainer.penalty.state_dict()
    return state


def load(trainer: Trainer, folder: Path) -> int:
    """Go on from a checkpoint; returns its step."""
    state = checkpoint.read_state(folder)
    if state is None:
        raise InputError(f"--resume {folder}: is damaged or no checkpoint: name another, or auto")
    before = state["weights"]
    if other := next((key for key, own in trainer.weights.items() if before.get(key) != own), None):
        section, field = other.split(".")
        name = getattr(getattr(trainer.config, section), field)
        raise InputError(
            f"{folder} was made on other weights of {name} ({other}): name another run.output"
        )
    if state["steps"] != trainer.steps and trainer.config.optimizer.schedule == "cosine":
        told = f"the learning rate now falls to 0 at update {trainer.steps}, not {state['steps']}"
        trainer.on_event({"event": "notice", "message": told})
    training = checkpoint.load_part(folder, checkpoint.TRAINING)
    adapter = load_file(folder / checkpoint.ADAPTER)
    trainer.roles.load_state_dict({k.removeprefix("unet."): v for k, v in adapter.items()}, STUDENT)
    if trainer.config.distill.ema:
        trainer.roles.load_state_dict(training["average"], TARGET)
    trainer.optimizer.load_state_dict(training["optimizer"])
    trainer.scaler.load_state_dict(training["scaler"])
    if trainer.head is not None and trainer.head_average is not None:
        trainer.head.load_state_dict(training["head"])
        trainer.head_average.load_state_dict(training["head_average"])
    if trainer.discriminator is not None:
        trainer.discriminator.load_state_dict(training["discriminator"])
        trainer.d_optimizer.load_state_dict(training["d_optimizer"])
        trainer.penalty.load_state_dict(training["penalty"])
    for lane in trainer.lanes:
        lane.bank.load_state_dict(checkpoint.load_part(folder, checkpoint.lane_name(lane.number)))
    return int(state["step"])


def metadata(
    trainer: Trainer, step: int, schedule: str = "aligned", weights: str = "student"
) -> dict[str, Any]:
    """What the LoRA's file says of itself. Split among processes or not, equal runs have an equal
    config_sha256."""
    c = trainer.config
    one = c.model_copy(
        update={"optimizer": c.optimizer.model_copy(update={"accumulation": trainer.lane_count})}
    )
    return {
        "task": c.run.task,
        "eta": c.distill.eta,
        "steps": c.distill.steps,
        "schedule": schedule,
        "weights": weights,
        "mode": c.distill.mode,
        "guidance": f"w {c.distill.w_min:g}-{c.distill.w_max:g}",
        "base_model": c.model.name,
        "base_sha256": trainer.base,
        "config_sha256": config_hash(one),
        "trained_steps": step,
        "std_version": __version__,
    }
