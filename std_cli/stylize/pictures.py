"""Stylization as functions: what the commands call, and what a script or a notebook can.

What happens is told through `on_event`, one dictionary at a time, JSON-ready, with "event" one of

    start     model, lora (names), device, dtype, total (pictures), settings, version
    notice    message: something that the user should know
    progress  stage: "load" or "picture"; for a picture also input, index (1..total), total, step,
    steps result    input, output (null if not written), width, height, seconds, index, total
    error     message, code: the run ends here (told by the command line, not by these functions)
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from std_cli import __version__
from std_cli.config import ImageSettings, Pack, S, image_settings, parse_size, parse_style
from std_cli.environment import LOADING
from std_cli.errors import InputError, at_work
from std_cli.interruption import at_quit
from std_cli.media.pictures import (
    OUTPUT_SUFFIXES,
    Picture,
    check_writable,
    expand_inputs,
    fit_to,
    image_of,
    read_metadata,
    read_picture,
    save_picture,
    seen,
    take_picture,
    working_size,
)
from std_cli.media.transparency import attach_alpha, over_white
from std_cli.paths import check_path, names_folder, remove_stale_drafts, user_path
from std_cli.schedule import MAX_STEPS, TRAIN_TIMESTEPS, timesteps
from std_cli.weights.fingerprints import fingerprint
from std_cli.weights.lora import LoraFile, resolve_lora
from std_cli.weights.parts import check_adapter, check_model
from std_cli.weights.resolve import ModelFiles, blind_at_the_end, resolve_model, scheduler_config
from std_cli.weights.zoo import cfg_range, zoo

if TYPE_CHECKING:
    import torch

    from std_cli.diffusion.pipeline import ImagePipeline
    from std_cli.schedule import Schedule

Event = dict[str, Any]
OnEvent = Callable[[Event], None]
_REFERENCE_SIDE = 1024
"""Long side, pixels, that a reference is needed at; the image encoders look at 224."""
Source = Path | Image.Image
InMemory = Image.Image | NDArray[np.uint8]
"""A picture given as such: a PIL image of any mode, or an array (H, W), (H, W, 3) RGB or (H, W, 4)
RGBA of uint8."""
Input = str | Path | InMemory
Style = Input | tuple[Input, float]
Find = Callable[..., Any]
"""(resolve, *arguments) -> the files that `resolve` of `weights` finds, or None where a plan can do
without."""


@dataclass(frozen=True)
class ImageRequest:
    """Pictures to stylize, checked before a weight is loaded."""

    sources: list[Source]
    targets: list[Path | None]
    folder: Path | None
    """Of the targets, where it was named; made if it is not there."""
    styles: list[tuple[Source, float]]
    references: list[Image.Image]
    files: ModelFiles | None
    """None in a plan for a model that is not downloaded."""
    lora: LoraFile | None
    s: ImageSettings
    schedule: "Schedule"
    sizes: list[tuple[int, int]]
    """(width, height) that the network sees of each picture."""
    notices: list[str]
    """What the user should know of inputs and references."""


def stylize_image(inputs: Input | Sequence[Input], *args: Any, **options: Any) -> list[Image.Image]:
    """Stylize pictures and return them, RGB or RGBA, in the order of the inputs. Parameters as in
    `stylize_images`."""
    return list(stylize_images(inputs, *args, **options))


def stylize_images(
    inputs: Input | Sequence[Input],
    style: Style | Sequence[Style],
    output: str | Path | None = None,
    *,
    overwrite: bool = False,
    on_event: OnEvent = lambda event: None,
    size: str | int | tuple[int, int] | None = None,
    **settings: Any,
) -> Iterator[Image.Image]:
    """Stylize pictures one by one with one loaded model; each is written before the next is begun.

    inputs: files, folders, glob patterns, PIL images, or arrays of uint8: (H, W), (H, W, 3) RGB or
    (H, W, 4) RGBA. A PIL image is treated as its file would be (EXIF orientation, ICC profile, 16
    bits, alpha). style: one or more references of the same kinds, each with an optional weight
    ("ref.png:0.5" or a pair); the weights are normalised. What is transparent in a reference counts
    as white; colours under alpha 0 have no effect anywhere.
    output: a file (one input), a folder, or None to write nothing.
    size: "768x512", the long side, or the model's own. The other settings are the fields of
    `config.ImageSettings`.

    Raises InputError, before a weight is loaded, for every problem of the request; StdError if the
    work fails.
    """
    r = prepare_images(inputs, style, output, overwrite=overwrite, size=size, **settings)
    with new_folder(r.folder):
        _check_writable(r.targets, overwrite)
        yield from _stylize(r, overwrite, on_event)


def _stylize(r: ImageRequest, overwrite: bool, on_event: OnEvent) -> Iterator[Image.Image]:
    styles, files, lora, s, schedule = r.styles, r.files, r.lora, r.s, r.schedule
    assert files is not None
    for folder in {target.parent for target in r.targets if target}:
        remove_stale_drafts(folder)
    on_event({"event": "progress", "stage": "load", "model": files.name})
    with LOADING:
        from std_cli.diffusion.pipeline import choose_device, choose_dtype, name_dtype

    device = choose_device(s.device)
    dtype = choose_dtype(s.dtype, device)
    facts = request_facts(s, schedule, files, lora, str(device), name_dtype(dtype), styles)
    on_event({"event": "start", "total": len(r.sources), **facts})
    for message in r.notices:
        on_event({"event": "notice", "message": message})
    pipeline = load_pipeline(
        r, device, dtype, lambda message: on_event({"event": "notice", "message": message})
    )

    for i, (source, target, working) in enumerate(
        zip(r.sources, r.targets, r.sizes, strict=True), 1
    ):
        begin, about = (
            time.monotonic(),
            {"input": source_name(source), "index": i, "total": len(r.sources)},
        )

        def on_step(step: int, about: Event = about) -> None:
            on_event(
                {"event": "progress", "stage": "picture", **about, "step": step, "steps": s.steps}
            )

        on_step(0)
        with at_work():
            picture = _read_again(source, max(working))
            fit = fit_to(*picture.size, working)
            result = fit.undo(pipeline.stylize(seen(picture, fit), s, schedule, on_step))
            if picture.alpha is not None:
                result = attach_alpha(result, picture.alpha)
            if target is not None:
                save_picture(result, target, {**facts, "input": about["input"]}, overwrite)
        on_event(
            {
                "event": "result",
                **about,
                "output": str(target) if target else None,
                "width": result.width,
                "height": result.height,
                "seconds": round(time.monotonic() - begin, 3),
            }
        )
        yield result


def prepare_images(
    inputs: Input | Sequence[Input],
    style: Style | Sequence[Style],
    output: str | Path | None = None,
    *,
    overwrite: bool = False,
    size: str | int | tuple[int, int] | None = None,
    find: Find = lambda resolve, *args, **options: resolve(*args, **options),
    **settings: Any,
) -> ImageRequest:
    """What `stylize_images` does before a weight is loaded: check everything, leave nothing behind.

    Parameters and errors as there.
    """
    given = settings | {"size": parse_size(size) if isinstance(size, str) else size}
    asked = image_settings(given)  # raises what is wrong whatever the model says
    sources, notices = _sources(inputs)
    pictures = []
    for source in sources:  # decoded once here, so that a damaged one is known in time
        picture = read_source(source, side=1)
        pictures.append(picture.size)
        if picture.alpha is not None and picture.alpha.getextrema() == (0, 0):
            notices.append(f"{source_name(source)} is wholly transparent: so is what is made of it")
    styles = weigh_styles(style)
    references, white = read_references(styles)
    notices += white
    targets, folder = _targets(sources, output)
    if try_folder(folder) is None:
        _check_writable(targets, overwrite)
    files = find(resolve_model, asked.model, ip_adapter=asked.ip_adapter)
    s = (
        image_settings(given, files.pack, f"{files.base}/std.json")
        if files
        else image_settings(given)
    )
    pack = Pack(**files.pack if files else {})
    sizes = [
        working_size(*size, s.size, pack.base_resolution, pack.size_by == "area")
        for size in pictures
    ]
    how = {"task": "i2i", "eta": s.eta, "method": s.method, "steps": s.steps}
    lora = find(resolve_lora, s.lora, model=files, **how) if files else None
    if files:
        with LOADING:
            check_model(files)
            if lora is not None:
                check_adapter(files, None, lora, s.allow_partial)
    s, lora = follow_lora(s, lora, given)
    schedule = choose_schedule(s, lora)
    if files:
        check_noise(s, schedule, files)
    return ImageRequest(
        sources, targets, folder, styles, references, files, lora, s, schedule, sizes, notices
    )


def load_pipeline(
    r: ImageRequest, device: "torch.device", dtype: "torch.dtype", on_notice: Callable[[str], None]
) -> "ImagePipeline":
    """Load what a request asks for, with its style."""
    assert r.files is not None
    with LOADING:
        from std_cli.diffusion.pipeline import ImagePipeline

        pipeline = ImagePipeline(
            r.files,
            r.lora,
            device,
            dtype,
            r.s.offload,
            r.s.compile,
            method=r.s.method,
            allow_partial=r.s.allow_partial,
        )
    for message in [*request_notices(r.s, r.lora), *pipeline.notices]:
        on_notice(message)
    pipeline.on_notice = on_notice
    pipeline.set_style(
        r.references, [weight for _, weight in r.styles], r.s.style_scale, r.s.style_blocks
    )
    return pipeline


def _sources(inputs: Any) -> tuple[list[Source], list[str]]:
    """The pictures that the inputs name or are, and what the user should know of those that are
    left out."""
    if isinstance(inputs, str | Path | Image.Image | np.ndarray) or not isinstance(
        inputs, Iterable
    ):
        inputs = [inputs]
    sources: list[Source] = []
    notices: list[str] = []
    for item in inputs:
        sources += (
            _pictures(item, notices) if isinstance(item, str | Path) else [_source(item, "input")]
        )
    if not sources:
        raise InputError(
            "no input: give pictures, folders of pictures, or patterns such as 'photos/*.jpg'"
        )
    return sources, notices


def _pictures(item: str | Path, notices: list[str]) -> list[Path]:
    """The pictures that a file, folder or pattern stands for, without the results of std next to
    other pictures."""
    found = expand_inputs([item], notices=notices)
    if found == [user_path(item, "input")]:  # named: wanted
        return found
    results = [path for path in found if _is_result(path)]
    if not results or len(results) == len(found):
        return found
    more = f" and {len(results) - 1} more" if len(results) > 1 else ""
    notices.append(
        f"{item}: left out: {results[0].name}{more}, which std wrote; name them to stylize them "
        f"again"
    )
    return [path for path in found if path not in set(results)]


def _is_result(path: Path) -> bool:
    if path.suffix.lower() not in OUTPUT_SUFFIXES:
        return False
    try:
        return read_metadata(path) is not None
    except InputError:  # it cannot be read: said where it is to be
        return False


def _source(item: object, what: str) -> Source:
    """An input or a reference of any kind that is taken; arrays become PIL images. Raises
    InputError."""
    if isinstance(item, np.ndarray):
        return image_of(item)
    if isinstance(item, str | Path):
        return user_path(item, what)
    if isinstance(item, Image.Image):
        return item
    raise InputError(
        f"{what} of type {type(item).__name__}: give a path, a PIL image or an array of uint8"
    )


def _targets(
    sources: list[Source], output: str | Path | None
) -> tuple[list[Path | None], Path | None]:
    """Where each result goes, the named file or NAME_stylized.png in the named folder; and that
    folder."""
    if output is None:
        return [None] * len(sources), None
    path = user_path(output, "-o")
    a_folder = path.is_dir() or names_folder(output)
    if path.suffix.lower() in OUTPUT_SUFFIXES and not a_folder:
        if len(sources) > 1:
            raise InputError(f"-o {output}: one file for {len(sources)} pictures: give a folder")
        return [path], None
    if path.suffix and not a_folder:
        raise InputError(
            f"-o {output}: {path.suffix} cannot be written: use {', '.join(OUTPUT_SUFFIXES)}, or "
            f"a folder that exists"
        )
    names = [s.stem if isinstance(s, Path) else f"picture{i}" for i, s in enumerate(sources, 1)]
    targets = [check_path(path / f"{name}_stylized.png", "-o") for name in names]
    if double := next((t for i, t in enumerate(targets) if t in targets[:i]), None):
        raise InputError(
            f"two inputs would both be written to {double}: rename one, or give them in two runs"
        )
    return list(targets), path


def _check_writable(targets: list[Path | None], overwrite: bool) -> None:
    for target in filter(None, targets):
        check_writable(target, overwrite)


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


def weigh_styles(style: Any) -> list[tuple[Source, float]]:
    """The references with their weights, which sum to 1."""
    one = isinstance(style, str | Path | Image.Image | np.ndarray | tuple) or not isinstance(
        style, Iterable
    )
    items = [style] if one else list(style)
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
    return [(_source(source, "--style"), weight / total) for source, weight in pairs]


def read_source(source: Source, flag: str = "", side: int | None = None) -> Picture:
    """Read a picture from its file or from memory; `side` as in `read_picture`. `flag` stands
    before the errors."""
    try:
        if isinstance(source, Image.Image):
            return take_picture(source, source_name(source), side)
        return read_picture(source, side=side)
    except InputError as e:
        raise InputError(f"{flag}{e}") from None


def read_references(styles: list[tuple[Source, float]]) -> tuple[list[Image.Image], list[str]]:
    """The references in RGB, over white where they are transparent, and what the user should know
    of them.

    Raises InputError for a reference that cannot be read, or of which nothing can be seen.
    """
    references, notices = [], []
    for source, _ in styles:
        picture = read_source(source, "--style ", side=_REFERENCE_SIDE)
        if picture.alpha is not None:
            name = source_name(source)
            if picture.alpha.getextrema() == (0, 0):
                raise InputError(
                    f"--style {name} is wholly transparent; give a picture that can be seen"
                )
            notices.append(f"--style {name} is transparent in parts: they count as white")
        references.append(over_white(picture.rgb, picture.alpha))
    return references, notices


def _read_again(source: Source, side: int) -> Picture:
    """What `prepare_images` read already."""
    try:
        return read_source(source, side=side)
    except InputError as e:
        raise InputError(
            f"{e} (it could be read when the run began, and was changed since)"
        ) from None


def follow_lora(s: S, lora: LoraFile | None, given: dict[str, Any]) -> tuple[S, LoraFile | None]:
    """Where the user named a LoRA but gave no eta or steps, those that its file says it was made
    for."""
    if lora is None or s.lora == "auto":
        return s, lora
    made_for: dict[str, Any] = {}
    if given.get("eta") is None and lora.eta is not None:
        made_for["eta"], lora = lora.eta, replace(lora, notice=None)
    told = lora.metadata.get("steps", "")
    if given.get("steps") is None and told.isdecimal() and 1 <= int(told) <= MAX_STEPS:
        made_for["steps"] = int(told)
    return s.model_copy(update=made_for), lora


def choose_schedule(s: ImageSettings, lora: LoraFile | None) -> "Schedule":
    """`auto` follows the LoRA's metadata, and is the published schedule without; a baseline has its
    own."""
    if s.method != "std":
        spacing = zoo().methods[s.method].spacing
        return "quickstart" if spacing == "grid" else spacing
    if s.schedule == "auto":
        return "aligned" if lora and lora.metadata.get("schedule") == "aligned" else "quickstart"
    return s.schedule


def check_noise(s: ImageSettings, schedule: "Schedule", files: ModelFiles) -> None:
    """Raises InputError where a model cannot be run by these timesteps, or by the method's
    scheduler."""
    method = zoo().methods[s.method]
    if (
        method.scheduler == "EulerDiscreteScheduler"
        and scheduler_config(files).get("prediction_type") == "sample"
    ):
        raise InputError(
            f"--method {s.method}: its scheduler (Euler) does not know the prediction_type "
            f"'sample' of --model "
            f"{files.name}: use another method"
        )
    if (
        blind_at_the_end(files)
        and timesteps(s.steps, s.eta, schedule, method.grid)[0] == TRAIN_TIMESTEPS - 1
    ):
        raise InputError(
            f"--eta {s.eta:g}: the run begins at timestep {TRAIN_TIMESTEPS - 1}, where --model "
            f"{files.name} predicts "
            "nothing (its scheduler_config.json says epsilon and rescale_betas_zero_snr): use a "
            "smaller --eta, such "
            "as 0.95"
        )


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
    files: ModelFiles,
    lora: LoraFile | None,
    device: str,
    dtype: str,
    styles: list[tuple[Source, float]],
) -> Event:
    """The resolved request, as it is told at the start and kept in every output."""
    settings = s.model_dump(mode="json") | {
        "schedule": schedule,
        "device": device,
        "dtype": dtype,
        "model": {"name": files.name, "sha256": fingerprint(files.base)},
        "lora": {"name": lora.name, "scale": lora.scale, "sha256": fingerprint(lora.path)}
        if lora
        else None,
        "style": [
            {"name": source_name(source), "weight": round(weight, 6)} for source, weight in styles
        ],
    }
    return {
        "version": __version__,
        "model": files.name,
        "lora": lora.name if lora else None,
        "device": device,
        "dtype": dtype,
        "settings": settings,
    }


def source_name(source: Source) -> str:
    return "picture" if isinstance(source, Image.Image) else source.name
