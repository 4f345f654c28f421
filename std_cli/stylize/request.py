"""What requests for pictures and for videos have in common: pictures in memory and references,
failures, what is reported of a request and kept in its results."""

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from std_cli import __version__
from std_cli.config import ImageSettings, parse_style
from std_cli.environment import LOADING
from std_cli.errors import InputError, StdError
from std_cli.events import Error, OnEvent, RequestFacts
from std_cli.interruption import at_quit
from std_cli.media.palette import ColorMix, mix_of, moments, weighted_mix
from std_cli.media.pictures import (
    Picture,
    image_of,
    read_picture,
    take_picture,
)
from std_cli.paths import user_path
from std_cli.storage.scratch import Scratch
from std_cli.weights.fingerprints import fingerprint
from std_cli.weights.lora import LoraFile
from std_cli.weights.resolve import ModelFiles
from std_cli.weights.zoo import cfg_range

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Encoded:
    """A picture as the bytes that its file would hold."""

    data: bytes
    name: str
    """What events and messages call it."""


Source = Path | Image.Image | Encoded
InMemory = Image.Image | NDArray[np.uint8] | bytes | Encoded
"""A picture given as such: a PIL image of any mode, an array (H, W), (H, W, 3) RGB or (H, W, 4)
RGBA of uint8, or the bytes of a picture file."""
Input = str | Path | InMemory
Style = Input | tuple[Input, float]
P_co = TypeVar("P_co", covariant=True)


class Use(Protocol[P_co]):
    """Gives a loaded pipeline, with the request's style, for as long as it is needed."""

    def __call__(self, on_event: OnEvent) -> AbstractContextManager[P_co]: ...


RESOLVED = ("model", "lora", "motion", "schedule", "device", "dtype", "overlap")
"""Options whose values in the facts are what they led to, not what was given."""
_REFERENCE_SIDE = 1024
"""Long side, pixels, that a reference is needed at; the image encoders look at 224."""


def take_source(item: object, what: str) -> Source:
    """An input or a reference of any kind that is taken; arrays become PIL images. Raises
    InputError."""
    if isinstance(item, np.ndarray):
        return image_of(item)
    if isinstance(item, str | Path):
        return user_path(item, what)
    if isinstance(item, bytes):
        return Encoded(item, "picture")
    if isinstance(item, Image.Image | Encoded):
        return item
    raise InputError(
        f"{what} of type {type(item).__name__}: give a path, a PIL image, an array of uint8 or the "
        f"bytes of a picture file"
    )


def weigh_styles(style: object) -> list[tuple[Source, float]]:
    """The references with their weights, which sum to 1."""
    one = isinstance(style, str | Path | bytes | Encoded | Image.Image | np.ndarray | tuple)
    items = list(style) if isinstance(style, Iterable) and not one else [style]
    if not items:
        raise InputError(
            "--style is missing: give a reference picture, such as --style painting.png"
        )
    pairs = [
        item
        if isinstance(item, tuple)
        else parse_style(item)
        if isinstance(item, str)
        else (item, 1.0)
        for item in items
    ]
    total = sum(weight for _, weight in pairs)
    if not all(0 < weight < math.inf for _, weight in pairs):
        raise InputError(f"--style weights {[weight for _, weight in pairs]}: each must be above 0")
    return [(take_source(source, "--style"), weight / total) for source, weight in pairs]


def read_source(source: Source, flag: str = "", side: int | None = None) -> Picture:
    """Read a picture from its file or from memory; `side` as in `read_picture`. `flag` stands
    before the errors."""
    try:
        if isinstance(source, Image.Image):
            return take_picture(source, source_name(source), side)
        if isinstance(source, Encoded):
            return read_picture(source.name, source.data, side)
        return read_picture(source, side=side)
    except InputError as e:
        raise InputError(f"{flag}{e}") from None


def read_references(styles: list[tuple[Source, float]]) -> tuple[list[Picture], list[str]]:
    """The references, and what the user should know of them.

    Raises InputError for a reference that cannot be read, or of which nothing can be seen.
    """
    references, notices = [], []
    for source, _ in styles:
        picture = read_source(source, "--style: ", side=_REFERENCE_SIDE)
        if picture.alpha is not None:
            name = source_name(source)
            if picture.alpha.getextrema() == (0, 0):
                raise InputError(
                    f"--style {name} is wholly transparent; give a picture that can be seen"
                )
            notices.append(f"--style {name} is transparent in parts: they count as white")
        references.append(picture)
    return references, notices


def mix_of_references(pictures: list[Picture], weights: Sequence[float]) -> ColorMix:
    """The colours of all references together, each by its weight and by what can be seen of it.
    Large ones are made smaller, near to the size at which results are made."""
    mixes = []
    for picture in pictures:
        rgba = picture.rgb.convert("RGBA")
        if picture.alpha is not None:
            rgba.putalpha(picture.alpha)
        pixels = np.asarray(rgba.reduce(max(1, max(rgba.size) // _REFERENCE_SIDE)))
        mix = mix_of(moments(pixels[..., :3], pixels[..., 3]))
        assert mix is not None  # one of which nothing can be seen is refused
        mixes.append(mix)
    return weighted_mix(mixes, weights)


def request_notices(s: ImageSettings, lora: LoraFile | None) -> list[str]:
    """What the user should know about the request before it runs."""
    notices = [lora.notice] if lora and lora.notice else []
    low, high = cfg_range(s.method, s.steps)
    if s.method != "std" and not low <= max(s.cfg, 1) <= high:
        notices.append(f"--cfg {s.cfg:g}: {s.method} is published for {low:g} to {high:g}")
    return notices


def request_facts(
    s: ImageSettings,
    schedule: str,
    files: ModelFiles | None,
    lora: LoraFile | None,
    styles: list[tuple[Source, float]],
    references: Sequence[Image.Image],
) -> RequestFacts:
    """The resolved request, as it is reported at the start and kept in every output.

    references: the pictures of `styles`, over white.
    """
    with LOADING:
        from std_cli.diffusion.devices import choose_device, choose_dtype, name_dtype

    assert files is not None
    device = choose_device(s.device)
    dtype = choose_dtype(s.dtype, device)
    settings = s.model_dump(mode="json") | {
        "schedule": schedule,
        "device": str(device),
        "dtype": name_dtype(dtype),
        "model": {"name": files.name, "sha256": fingerprint(files.base)},
        "lora": {"name": lora.name, "scale": lora.scale, "sha256": fingerprint(lora.path)}
        if lora
        else None,
        "style": [
            {
                "name": source_name(source),
                "weight": round(weight, 6),
                "sha256": hashlib.sha256(reference.tobytes()).hexdigest()[:16],
            }
            for (source, weight), reference in zip(styles, references, strict=True)
        ],
    }
    return {
        "version": __version__,
        "model": files.name,
        "lora": lora.name if lora else None,
        "device": str(device),
        "dtype": name_dtype(dtype),
        "settings": settings,
    }


def origin(
    source: Source,
    sha256: str | None,
    styles: list[tuple[Source, float]],
    given: Mapping[str, Any],
    scratch: Scratch,
) -> dict[str, Any]:
    """Where a result comes from, as it keeps it in addition to its facts: what `std repeat` needs
    to make it again. Paths are as they were given; None for pictures given in memory.

    given: the options that the user gave. scratch: what holds the copies of files in a storage,
    which the result names by their URLs.
    """

    def path_of(source: Source) -> str | None:
        return scratch.in_urls(str(source)) if isinstance(source, Path) else None

    return {
        "input": path_of(source),
        "sha256": sha256,
        "style": [path_of(style) for style, _ in styles],
        "options": {name: given[name] for name in RESOLVED if given.get(name) is not None},
    }


def source_name(source: Source) -> str:
    return "picture" if isinstance(source, Image.Image) else source.name


def failure(name: str, error: StdError) -> Error:
    """The event of one input of several that fails; `name`: the input as it was given."""
    return {
        "event": "error",
        "message": str(error),
        "input": name,
        "kind": error.kind,
        "code": error.exit_code,
    }


def some_failed(names: list[str], total: int, what: str, remedy: str = "") -> StdError:
    """The error at the end of a run in which inputs failed, each of which was reported."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    message = f"{len(names)} of {total} {what} failed: {', '.join(names[:3])}{more}"
    return StdError(f"{message}; {remedy}" if remedy else message)


def try_folder(folder: Path | None) -> Path | None:
    """An output folder if it is still to be made, tried and removed again. Raises InputError if it
    cannot be."""
    if folder is None or folder.exists():
        return None
    with new_folder(folder):
        return folder


@contextmanager
def new_folder(folder: Path | None) -> Iterator[None]:
    """Make an output folder if it is not there; at the end it is removed again if nothing was
    written into it."""
    if folder is None or folder.is_dir():
        yield
        return
    try:
        folder.mkdir()
    except OSError as e:
        raise InputError(
            f"-o {folder}: the folder cannot be made ({e.strerror}): choose another"
        ) from None

    def remove_empty() -> None:
        with suppress(OSError):
            folder.rmdir()

    with at_quit(remove_empty):
        yield
