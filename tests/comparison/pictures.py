"""What comparisons of tests are made of: small pictures, a clip, and the micro model."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from skimage import data

from tests.micro import micro

FAST: dict[str, Any] = {"model": micro(), "size": 64, "steps": 1}


def draw(folder: Path) -> Path:
    """Write photos/ with two contents and styles/ with two styles."""
    for name in ("photos", "styles"):
        (folder / name).mkdir(parents=True)
    for name in ("astronaut", "coffee"):
        picture = Image.fromarray(getattr(data, name)()).resize((96, 64))
        picture.save(folder / "photos" / f"{name}.png")
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::8] = (250, 40, 40)
    Image.fromarray(stripes).save(folder / "styles" / "stripes.png")
    Image.new("RGB", (64, 64), (40, 90, 200)).save(folder / "styles" / "blue.png")
    return folder


def peer(folder: Path, inputs: Path) -> Path:
    """Results of "another tool": the photographs turned over, for each style."""
    folder.mkdir()
    for photo in (inputs / "photos").iterdir():
        for style in (inputs / "styles").iterdir():
            with Image.open(photo) as picture:
                turned = picture.transpose(Image.Transpose.ROTATE_180)
                turned.save(folder / f"{photo.stem}--{style.stem}.png")
    return folder


def without_costs(report: dict[str, Any]) -> dict[str, Any]:
    """A report.json without what differs from run to run: time and memory."""
    for part in (*report["rows"], *report["cells"]):
        part["cost"] = {"evaluations": part["cost"].get("evaluations")}
    return report
