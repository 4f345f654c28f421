"""A trainer's state as a checkpoint, and back."""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from std_cli import __version__
from std_cli.distill import checkpoint
from std_cli.distill.config import config_hash
from std_cli.distill.export import diffusers_bytes
from std_cli.distill.network import STUDENT, TARGET
from std_cli.distill.trainer import Trainer
from std_cli.errors import InputError


def save(trainer: Trainer, step: int) -> Path:
    draft = checkpoint.draft_of(trainer.folder, step)
    for lane in trainer.lanes:
        checkpoint.write_part(draft, f"lane-{lane.number:05d}.pt", lane.bank.state_dict())
    if trainer.world.num_processes > 1:
        trainer.world.wait_for_everyone()
    if trainer.world.is_main_process:
        adapter = trainer.roles.state_dict()
        text = {k: str(v) for k, v in metadata(trainer, step).items()}
        checkpoint.write_part(draft, "adapter.safetensors", diffusers_bytes(adapter, trainer.config.lora.alpha, text))
        checkpoint.write_part(draft, "training.pt", _training_state(trainer))
        state = {"version": __version__, "config": trainer.config.model_dump(mode="json"), "lanes": trainer.lane_count}
        state |= {"data": trainer.data.fingerprint, "steps": trainer.steps, "base": trainer.base}
        checkpoint.finish(trainer.folder, step, state)
        checkpoint.prune(trainer.folder, trainer.config.run.keep_last, trainer.config.run.keep_every)
    if trainer.world.num_processes > 1:
        trainer.world.wait_for_everyone()
    return checkpoint.folder_of(trainer.folder, step)


def _training_state(trainer: Trainer) -> dict[str, Any]:
    state: dict[str, Any] = {"optimizer": trainer.optimizer.state_dict(), "scaler": trainer.scaler.state_dict()}
    if trainer.config.distill.ema:
        state["average"] = trainer.roles.state_dict(TARGET)
    if trainer.head is not None and trainer.head_average is not None:
        state |= {"head": trainer.head.state_dict(), "head_average": trainer.head_average.state_dict()}
    if trainer.discriminator is not None:
        state |= {"discriminator": trainer.discriminator.state_dict(), "d_optimizer": trainer.d_optimizer.state_dict()}
        state["penalty"] = trainer.penalty.state_dict()
    return state


def load(trainer: Trainer, folder: Path) -> int:
    """Go on from a checkpoint; returns its step."""
    state = checkpoint.read_state(folder)
    if state is None:
        raise InputError(f"--resume {folder}: is damaged or no checkpoint: name another, or auto")
    if state["lanes"] != trainer.lane_count:
        raise InputError(
            f"{folder} has {state['lanes']} lanes, now {trainer.lane_count}: keep processes x optimizer.accumulation"
        )
    if state["data"] != trainer.data.fingerprint:
        raise InputError(f"{folder} was made with other data: give the same files, or name another run.output")
    if state["base"] != trainer.base:
        raise InputError(f"{folder} was made on other weights of {trainer.config.model.name}: name another run.output")
    if state["steps"] != trainer.steps and trainer.config.optimizer.schedule == "cosine":
        told = f"the learning rate now falls to 0 at update {trainer.steps}, not {state['steps']}"
        trainer.on_event({"event": "notice", "message": told})
    training = checkpoint.load_part(folder, "training.pt")
    adapter = load_file(folder / "adapter.safetensors")
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
        lane.bank.load_state_dict(checkpoint.load_part(folder, f"lane-{lane.number:05d}.pt"))
    return int(state["step"])


def metadata(trainer: Trainer, step: int) -> dict[str, Any]:
    """What the LoRA's file says of itself."""
    c = trainer.config
    return {
        "task": c.run.task,
        "eta": c.distill.eta,
        "steps": c.distill.steps,
        "schedule": "aligned",
        "mode": c.distill.mode,
        "guidance": f"w {c.distill.w_min:g}-{c.distill.w_max:g}",
        "base_model": c.model.name,
        "base_sha256": trainer.base,
        "config_sha256": config_hash(c),
        "trained_steps": step,
        "std_version": __version__,
    }
