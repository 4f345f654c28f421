"""What the report shows of pictures: small copies, inside it."""

import base64
import io
from pathlib import Path

from PIL import Image

from std_cli.media.video.clip import Pixels
from std_cli.paths import replace_file

SIDE = 384
"""Long side in pixels, at most."""
MOST_BYTES = 52_000
"""Of one, as a file: 500 of them make a page of less than 40 MB."""
QUALITIES = (88, 80, 70, 60, 45, 30)


def write_thumbnail(pixels: Pixels, path: Path) -> None:
    """Keep a small copy of a picture, (H, W, 3), as JPEG."""
    replace_file(path, thumbnail(Image.fromarray(pixels)))


def thumbnail(picture: Image.Image) -> bytes:
    """A small copy as JPEG, of the best quality that MOST_BYTES has room for."""
    small = picture.convert("RGB")
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    while True:
        for quality in QUALITIES:
            content = io.BytesIO()
            small.save(content, "JPEG", quality=quality)
            if content.tell() <= MOST_BYTES:
                return content.getvalue()
        small = small.reduce(2)


def data_uri(jpeg: bytes) -> str:
    """The bytes of a JPEG as the address of a picture."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode('ascii')}"
