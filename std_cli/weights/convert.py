"""Weights into another form: LoRAs between the spellings in use; HotShot-XL and checkpoints into
diffusers' folders, an original DINOv2 into transformers'.

Everything is written under a hidden name first, read back, and compared with what was given.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from std_cli.environment import LOADING
from std_cli.errors import InputError, OutputExists, StdError
from std_cli.events import Converted
from std_cli.paths import draft, move, remove_stale_drafts, user_path, writing
from std_cli.weights.configs.folder import check_folder
from std_cli.weights.files import check_numbers, file_names, read_header, stored_tensors
from std_cli.weights.hub import fetch, source
from std_cli.weights.inspect import inspect_file
from std_cli.weights.loading import loading
from std_cli.weights.lora import LoraWeights, read_lora
from std_cli.weights.lora.write import check_written, lora_bytes, peft_config
from std_cli.weights.motion import HOTSHOT_CONFIG
from std_cli.weights.parts import check_one_file
from std_cli.weights.sdxl_files import WEIGHTS, check_checkpoint, checkpoint_scheduler
from std_cli.weights.zoo import LoraLayout

if TYPE_CHECKING:
    from torch import Tensor

KINDS = {
    "lora": "a LoRA",
    "hotshot": "HotShot-XL",
    "checkpoint": "an SDXL checkpoint",
    "dinov2-original": "DINOv2's .pth",
}
"""What can be converted: {kind as `inspect_file` names it: what a message calls it}."""
OWN_FILES = ("model_index.json", "config.json", "adapter_config.json")
"""One of these is in every folder that is written here; a folder without any is not replaced."""


def convert(
    file: str | Path, output: str | Path, *, to: LoraLayout | None = None, overwrite: bool = False
) -> Converted:
    """Convert a file, by what it is.

    A LoRA becomes the file `output` in the spelling `to` (peft: a folder with
    adapter_model.safetensors and adapter_config.json), its alphas kept; HotShot-XL's layers a
    MotionAdapter's folder; an SDXL checkpoint a diffusers folder in fp16; an original DINOv2 (.pth)
    a transformers folder. `overwrite` replaces a file, or a folder of such weights. Raises
    InputError for another kind of file, or an output that cannot be written or replaced.
    """
    facts = inspect_file(file)
    origin = Path(facts["file"])
    target = user_path(output, "-o")
    kind = facts["kind"]
    _check_target(origin, target, overwrite, into_file=kind == "lora" and to != "peft")
    _check_kind(str(file), kind, to)
    remove_stale_drafts(target.parent)
    # The folder is made before a weight is read: a place that cannot be written is known at once.
    with writing(target), draft(target) as folder:
        made = folder
        notices: list[str] = []
        if kind == "lora":
            assert to is not None  # _check_kind
            weights = read_lora(origin, str(file))
            notices += weights.notices
            made = _write_lora(weights, read_header(origin)[1], folder, to)
        elif kind == "hotshot":
            _write_motion(origin, folder)
        elif kind == "checkpoint":
            notices += _write_folder(origin, folder)
        else:
            from std_cli.weights.dino import convert_dino

            _check_part(convert_dino(origin, folder).items(), folder)
        move(made, target, overwrite)
    return {
        "event": "converted",
        "file": str(file),
        "output": str(target),
        "kind": kind,
        "notices": notices,
    }


def _check_target(origin: Path, target: Path, overwrite: bool, into_file: bool) -> None:
    """Raises InputError unless the output can be put in its place without the loss of anything that
    `overwrite` does not mean."""
    name = repr(str(target))
    if not target.absolute().parent.is_dir():
        raise InputError(
            f"no folder {str(target.parent)!r} for the output: make it, or name another"
        )
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise OutputExists.at(target)
    if target.exists() and target.samefile(origin):
        raise InputError(f"output {name} is the file that is converted: name another")
    if not target.is_dir():
        if target.exists() and not target.is_file():  # such as /dev/null
            raise InputError(f"output {name} is neither a file nor a folder: name another")
        return
    _check_target_folder(origin, target, into_file)


def _check_target_folder(origin: Path, target: Path, into_file: bool) -> None:
    name = repr(str(target))
    if into_file:
        raise InputError(f"output {name} is a folder: name a file in it")
    if target.resolve() in origin.resolve().parents:
        raise InputError(f"output {name} is the folder that {origin.name} is in: name another")
    inside = {path.name for path in target.iterdir()}
    if inside and not inside & {*OWN_FILES}:
        raise InputError(
            f"output {name} is a folder without weights of this kind, and would be replaced: name "
            f"another"
        )


def _check_kind(name: str, kind: str, to: LoraLayout | None) -> None:
    if kind == "lora" and to is None:
        raise InputError(f"{name} is a LoRA: say --to diffusers, kohya or peft")
    if kind != "lora" and to is not None:
        raise InputError(f"{name} is no LoRA ({kind}): leave out --to {to}")
    if kind not in KINDS:
        *most, last = KINDS.values()
        raise InputError(f"{name} cannot be converted ({kind}): give {', '.join(most)} or {last}")


def _write_lora(
    weights: LoraWeights, metadata: dict[str, str], folder: Path, to: LoraLayout
) -> Path:
    """Write a file into a folder, and peft's configuration next to it; returns what the output is:
    the file, or the folder."""
    file = folder / "adapter_model.safetensors"
    if to == "peft":
        config = json.dumps({"peft_type": "LORA", **peft_config(weights)}, indent=2)
        (folder / "adapter_config.json").write_text(config, encoding="utf-8")
    else:  # its name would make the reader look for peft's configuration
        file = folder / "lora.safetensors"
    file.write_bytes(lora_bytes(weights, to, metadata))
    check_written(weights, file, to)
    return folder if to == "peft" else file


def _write_motion(file: Path, folder: Path) -> None:
    import torch
    from diffusers import MotionAdapter
    from safetensors.torch import load_file

    from std_cli.weights.fit import check_motion
    from std_cli.weights.motion import from_hotshot

    with LOADING, loading("HotShot-XL", file):
        with torch.device("meta"):
            adapter = MotionAdapter.from_config(HOTSHOT_CONFIG)
        check_motion(str(file), from_hotshot(read_header(file)[0]), adapter)
        weights = from_hotshot(load_file(file))
        check_numbers(str(file), weights.items())
        adapter.load_state_dict(weights, assign=True)
    with _saving():
        adapter.save_pretrained(folder)
    _check_part(weights.items(), folder)


def _write_folder(file: Path, folder: Path) -> list[str]:
    """Write an SDXL checkpoint as a diffusers folder; returns notices."""
    import torch
    from diffusers import StableDiffusionXLPipeline

    check_checkpoint(str(file), file)
    [config] = fetch([source("sdxl-config")])
    check_folder(config, file_names(config, depth=2))
    check_one_file(str(file), file, config)
    remedy = "the folder would be in fp16: use the file as it is"
    check_numbers(str(file), stored_tensors(file), torch.finfo(torch.float16).max, remedy)
    scheduler, notices = checkpoint_scheduler(str(file), file)
    with LOADING, loading("the checkpoint", file):
        pipe = StableDiffusionXLPipeline.from_single_file(
            str(file), config=str(config), dtype=torch.float16, local_files_only=True
        )
        pipe.scheduler.register_to_config(**scheduler)
    with _saving():
        pipe.save_pretrained(folder, safe_serialization=True)
    for part in WEIGHTS:
        _check_part(getattr(pipe, part).state_dict().items(), folder / part)
    return notices


@contextmanager
def _saving() -> Iterator[None]:
    """Turns safetensors' errors while it writes into the operating system's, which carry the
    reason, such as a full disk."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number:
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
        raise OSError(str(error)) from error


def _check_part(given: "Iterable[tuple[str, Tensor]]", folder: Path) -> None:
    """Raises StdError unless the safetensors files of a folder hold exactly these tensors.

    transformers writes CLIP's tensors with or without a prefix, by its version.
    """
    import torch

    wanted = {key.removeprefix("text_model."): tensor for key, tensor in given}
    for file in sorted(folder.glob("*.safetensors")):
        for key, tensor in stored_tensors(file):
            bare = key.removeprefix("text_model.")
            if bare not in wanted or not torch.equal(wanted.pop(bare), tensor):
                raise StdError(f"{key} of {folder.name} was not written as it was: check the disk")
    if wanted:
        raise StdError(f"{next(iter(wanted))} of {folder.name} was not written: check the disk")
