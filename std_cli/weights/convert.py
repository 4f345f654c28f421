"""Weights into another form: LoRAs between the spellings in use; HotShot-XL and checkpoints into
diffusers' folders, an original DINOv2 into transformers'.
"""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from std_cli.errors import InputError, StdError
from std_cli.paths import hidden_next_to, move, user_path, writing
from std_cli.weights.files import check_numbers, read_header, stored_tensors
from std_cli.weights.hub import fetch, source
from std_cli.weights.inspect import inspect_file
from std_cli.weights.lora import LoraWeights, read_lora
from std_cli.weights.lora.layer import Layer
from std_cli.weights.lora.read import cut
from std_cli.weights.lora.write import lora_bytes, peft_config
from std_cli.weights.parts import check_one_file
from std_cli.weights.resolve import HOTSHOT_CONFIG
from std_cli.weights.sdxl_files import check_checkpoint, checkpoint_scheduler
from std_cli.weights.zoo import LoraLayout


def convert(
    file: str | Path, output: str | Path, *, to: LoraLayout | None = None, overwrite: bool = False
) -> dict[str, Any]:
    """Convert a file, by what it is; returns {event: converted, file, output, kind, notices}.

    A LoRA becomes the file `output` in the spelling `to` (peft: a folder with
    adapter_model.safetensors and adapter_config.json), its alphas kept; HotShot-XL's layers a
    MotionAdapter's folder; an SDXL checkpoint a diffusers folder; an original DINOv2 (.pth) a
    transformers folder. Raises InputError for another kind of file, or if the output exists.
    """
    facts = inspect_file(file)
    origin, target, kind = Path(facts["file"]), user_path(output, "-o"), facts["kind"]
    if target.exists() and not overwrite:
        raise InputError(
            f"output {str(target)!r} exists; pass --overwrite to replace it, or name another"
        )
    if not target.absolute().parent.is_dir():
        raise InputError(
            f"no folder {str(target.parent)!r} for the output: make it, or name another"
        )
    from safetensors import SafetensorError

    notices: list[str] = []
    draft = hidden_next_to(target)
    with writing(target):
        try:
            if kind == "lora":
                if to is None:
                    raise InputError(f"{file} is a LoRA: say --to diffusers, kohya or peft")
                weights = read_lora(origin, str(file))
                notices += weights.notices
                _write_lora(weights, read_header(origin)[1], draft, to)
            elif to is not None:
                raise InputError(f"{file} is no LoRA ({kind}): leave out --to {to}")
            elif kind == "hotshot":
                _write_motion(origin, draft)
            elif kind == "checkpoint":
                notices += _write_folder(origin, draft)
            elif kind == "dinov2-original":
                from std_cli.weights.dino import convert_dino

                convert_dino(origin, draft)
            else:
                known = "a LoRA, HotShot-XL, an SDXL checkpoint or DINOv2's .pth"
                raise InputError(f"{file} cannot be converted ({kind}): give {known}")
            move(draft, target, overwrite)
        # so it tells the operating system's errors, such as a full disk
        except SafetensorError as error:
            number = re.search(r"\(os error (\d+)\)", str(error))
            raise (
                OSError(int(number[1]), os.strerror(int(number[1])))
                if number
                else OSError(str(error))
            ) from error
        finally:
            if draft.is_dir():
                shutil.rmtree(draft)
            draft.unlink(missing_ok=True)
    return {
        "event": "converted",
        "file": str(file),
        "output": str(target),
        "kind": kind,
        "notices": notices,
    }


def _write_lora(weights: LoraWeights, metadata: dict[str, str], path: Path, to: LoraLayout) -> None:
    """Write a file, or peft's folder, and read it back. Raises StdError if it is not what was
    given."""
    import torch

    file = path
    if to == "peft":
        path.mkdir()
        file = path / "adapter_model.safetensors"
        config = json.dumps({"peft_type": "LORA", **peft_config(weights)}, indent=2)
        (path / "adapter_config.json").write_text(config, encoding="utf-8")
    file.write_bytes(lora_bytes(weights, to, metadata))
    nothing = Layer({}, None)
    back = read_lora(file, weights.label).layers
    for name in weights.layers.keys() | back.keys():
        given, found = weights.layers.get(name, nothing), back.get(name, nothing)
        same = given.tensors.keys() == found.tensors.keys() and given.scale == found.scale
        if not same or not all(
            torch.equal(tensor, found.tensors[key]) for key, tensor in given.tensors.items()
        ):
            raise StdError(
                f"{weights.label}: {cut(name)} does not come back from {to}'s spelling as it "
                f"was, so nothing is "
                "written: use another --to, and report it"
            )


def _write_motion(file: Path, folder: Path) -> None:
    import torch
    from diffusers import MotionAdapter
    from safetensors.torch import load_file

    from std_cli.weights.fit import check_motion, from_hotshot

    with torch.device("meta"):
        empty = MotionAdapter.from_config(HOTSHOT_CONFIG)
    check_motion(str(file), from_hotshot(read_header(file)[0]), empty)
    weights = from_hotshot(load_file(file))
    check_numbers(str(file), weights.items())
    empty.load_state_dict(weights, assign=True)
    empty.save_pretrained(folder)


def _write_folder(file: Path, folder: Path) -> list[str]:
    """Write an SDXL checkpoint as a diffusers folder; returns notices."""
    import torch
    from diffusers import StableDiffusionXLPipeline

    check_checkpoint(str(file), file)
    [config] = fetch([source("sdxl-config")])
    check_one_file(str(file), file, config)
    remedy = "the folder would be in fp16: use the file as it is"
    check_numbers(str(file), stored_tensors(file), torch.finfo(torch.float16).max, remedy)
    scheduler, notices = checkpoint_scheduler(str(file), file)
    pipe = StableDiffusionXLPipeline.from_single_file(
        str(file), config=str(config), dtype=torch.float16, local_files_only=True
    )
    pipe.scheduler.register_to_config(**scheduler)
    pipe.save_pretrained(folder, safe_serialization=True)
    return notices
