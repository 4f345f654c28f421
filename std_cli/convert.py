"""Weights into another form: LoRAs between the spellings in use; HotShot-XL and checkpoints into diffusers' folders,
an original DINOv2 into transformers'.
"""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from std_cli.errors import InputError
from std_cli.files import check_numbers, read_header, stored_tensors
from std_cli.hub import fetch, source
from std_cli.identify import inspect_file
from std_cli.image import hidden_beside, move, writing
from std_cli.layout import check_checkpoint, checkpoint_scheduler
from std_cli.lora import LoraFile, LoraWeights, read_lora
from std_cli.parts import check_one_file
from std_cli.paths import user_path
from std_cli.weights import HOTSHOT_CONFIG
from std_cli.zoo import LoraLayout


def convert(
    file: str | Path, output: str | Path, *, to: LoraLayout | None = None, overwrite: bool = False
) -> dict[str, Any]:
    """Convert a file, by what it is; returns {event: converted, file, output, kind, notices}.

    A LoRA becomes the file `output` in the spelling `to` (peft: a folder with adapter_model.safetensors and
    adapter_config.json), its alphas kept; HotShot-XL's layers a MotionAdapter's folder; an SDXL checkpoint a diffusers
    folder; an original DINOv2 (.pth) a transformers folder. Raises InputError for another kind of file, or if the
    output exists.
    """
    facts = inspect_file(file)
    origin, target, kind = Path(facts["file"]), user_path(output, "-o"), facts["kind"]
    if target.exists() and not overwrite:
        raise InputError(f"output {str(target)!r} exists; pass --overwrite to replace it, or name another")
    if not target.absolute().parent.is_dir():
        raise InputError(f"no folder {str(target.parent)!r} for the output: make it, or name another")
    from safetensors import SafetensorError

    notices: list[str] = []
    draft = hidden_beside(target)
    with writing(target):
        try:
            if kind == "lora":
                if to is None:
                    raise InputError(f"{file} is a LoRA: say --to diffusers, kohya or peft")
                weights = read_lora(LoraFile(str(file), origin, 1.0, None, facts["metadata"], None))
                if weights.text_tensors:
                    notices.append(f"{weights.text_tensors} tensors for the text encoders are left out")
                _write_lora(weights, facts["metadata"], draft, to)
            elif to is not None:
                raise InputError(f"{file} is no LoRA ({kind}): leave out --to {to}")
            elif kind == "hotshot":
                _write_motion(origin, draft)
            elif kind == "checkpoint":
                notices += _write_folder(origin, draft)
            elif kind == "dinov2-original":
                from std_cli.distill.dino import convert_dino

                convert_dino(origin, draft)
            else:
                known = "a LoRA, HotShot-XL, an SDXL checkpoint or DINOv2's .pth"
                raise InputError(f"{file} cannot be converted ({kind}): give {known}")
            move(draft, target, overwrite)
        except SafetensorError as error:  # so it tells the operating system's errors, such as a full disk
            number = re.search(r"\(os error (\d+)\)", str(error))
            raise (OSError(int(number[1]), os.strerror(int(number[1]))) if number else OSError(str(error))) from error
        finally:
            if draft.is_dir():
                shutil.rmtree(draft)
            draft.unlink(missing_ok=True)
    return {"event": "converted", "file": str(file), "output": str(target), "kind": kind, "notices": notices}


def _write_lora(weights: LoraWeights, metadata: dict[str, str], path: Path, to: LoraLayout) -> None:
    import torch
    from safetensors.torch import save_file

    plain = {key.removeprefix("unet."): tensor.contiguous() for key, tensor in weights.state_dict.items()}
    ranks = {key.split(".lora_")[0]: t.shape[0] for key, t in plain.items() if key.endswith("lora_A.weight")}
    alphas = {module: weights.network_alphas.get(f"unet.{module}.alpha", rank) for module, rank in ranks.items()}
    kept = {key: value for key, value in metadata.items() if key != "lora_adapter_metadata"} | {"format": "pt"}
    if to == "kohya":
        names = {"lora_A": "lora_down", "lora_B": "lora_up"}
        out = {}
        for key, tensor in plain.items():
            module, half = key.removesuffix(".weight").rsplit(".", 1)
            out[f"lora_unet_{module.replace('.', '_')}.{names[half]}.weight"] = tensor
        for module, alpha in alphas.items():
            out[f"lora_unet_{module.replace('.', '_')}.alpha"] = torch.tensor(float(alpha))
        save_file(out, path, kept)
        return
    rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
    config = {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {module: r for module, r in ranks.items() if r != rank},
        "alpha_pattern": {module: a for module, a in alphas.items() if a != alpha},
        "target_modules": sorted(ranks),
    }
    if to == "diffusers":
        told = json.dumps({f"unet.{key}": value for key, value in config.items()})
        save_file({f"unet.{k}": t for k, t in plain.items()}, path, kept | {"lora_adapter_metadata": told})
        return
    path.mkdir()
    save_file({f"base_model.model.{k}": t for k, t in plain.items()}, path / "adapter_model.safetensors", kept)
    (path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **config}, indent=2), encoding="utf-8")


def _write_motion(file: Path, folder: Path) -> None:
    import torch
    from diffusers import MotionAdapter
    from safetensors.torch import load_file

    from std_cli.match import check_motion, from_hotshot

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
