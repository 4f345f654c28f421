"""The settings of a picture as the text that AUTOMATIC1111's web UI writes, which many tools show.

prompt
Negative prompt: ...
Steps: 8, Sampler: TCD, CFG scale: 6, Seed: 0, Size: 1024x1024, Model hash: ..., Model: ...
"""

import json
from pathlib import PurePath

from std_cli.events import RequestFacts
from std_cli.weights.zoo import zoo

_SAMPLERS = {
    "TCDScheduler": "TCD",
    "LCMScheduler": "LCM",
    "DDIMScheduler": "DDIM",
    "EulerDiscreteScheduler": "Euler",
}
"""diffusers' class -> the name that other tools know it by."""


def parameters_text(facts: RequestFacts, working: tuple[int, int]) -> str:
    """What a picture was made with. working: the (width, height) that the network saw.

    The model's hash is the first 10 digits of std's fingerprint: of a single file, as in the web
    UI, those of its SHA-256.
    """
    settings = facts["settings"]
    scheduler = zoo().methods[settings["method"]].scheduler
    values: dict[str, object] = {
        "Steps": settings["steps"],
        "Sampler": _SAMPLERS.get(scheduler, scheduler),
        "CFG scale": f"{settings['cfg']:g}",
        "Seed": settings["seed"],
        "Size": f"{working[0]}x{working[1]}",
        "Model hash": settings["model"]["sha256"][:10],
        "Model": PurePath(settings["model"]["name"]).name.removesuffix(".safetensors"),
        "Denoising strength": f"{settings['eta']:g}",
    }
    if settings["cfg_steps"] is not None:
        values["CFG steps"] = settings["cfg_steps"]
    if settings["cfg_every"] > 1:
        values["CFG every"] = settings["cfg_every"]
    if settings["lora"]:
        values["Lora"] = f"{settings['lora']['name']}:{settings['lora']['scale']:g}"
    values["Style"] = ", ".join(
        f"{style['name']}:{style['weight']:g}" for style in settings["style"]
    )
    values["Style scale"] = f"{settings['style_scale']:g}"
    if settings["palette"]:
        values["Palette"] = f"{settings['palette']:g}"
    if settings["keep_colors"]:
        values["Keep colors"] = True
    values["Version"] = f"std {facts['version']}"
    lines = [settings["prompt"].strip()]
    if settings["negative_prompt"].strip():
        lines.append(f"Negative prompt: {settings['negative_prompt'].strip()}")
    lines.append(", ".join(f"{name}: {_value(value)}" for name, value in values.items()))
    return "\n".join(lines).encode("utf-8", "replace").decode()


def _value(value: object) -> str:
    """As it stands between the commas of the last line."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(c in text for c in ",:\n") else text
