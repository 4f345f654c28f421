"""Stylization of pictures: a request checked, then one picture after another."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
from PIL import Image

from std_cli.config import ImageSettings, Pack, image_settings
from std_cli.environment import LOADING
from std_cli.errors import InputError, at_work
from std_cli.events import OnEvent, Place, RequestFacts
from std_cli.media.compare import Comparison
from std_cli.media.pictures import (
    OUTPUT_SUFFIXES,
    Picture,
    check_writable,
    expand_inputs,
    fit_to,
    read_metadata,
    save_picture,
    seen,
    working_size,
)
from std_cli.media.transparency import attach_alpha
from std_cli.paths import check_path, names_folder, remove_stale_drafts, user_path
from std_cli.stylize.options import ImageOptions
from std_cli.stylize.parameters import parameters_text
from std_cli.stylize.request import (
    Find,
    Input,
    Source,
    Style,
    Use,
    check_noise,
    choose_schedule,
    follow_lora,
    new_folder,
    origin,
    read_references,
    read_source,
    request_facts,
    source_name,
    take_source,
    try_folder,
    weigh_styles,
)
from std_cli.weights.fingerprints import fingerprint
from std_cli.weights.lora import LoraFile, resolve_lora
from std_cli.weights.parts import check_adapter, check_model
from std_cli.weights.resolve import ModelFiles, resolve_model

if TYPE_CHECKING:
    from std_cli.diffusion.pipeline import ImagePipeline
    from std_cli.schedule import Schedule


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
    given: Mapping[str, Any]
    """The options that the user gave."""


def run_images(
    r: ImageRequest, overwrite: bool, on_event: OnEvent, use: "Use[ImagePipeline]"
) -> Iterator[Image.Image]:
    """Stylize the pictures of a request one by one; each is written before the next is begun.

    use: gives the loaded pipeline for as long as one picture takes.
    """
    with new_folder(r.folder):
        _check_writable(r.targets, overwrite)
        for folder in {target.parent for target in r.targets if target}:
            remove_stale_drafts(folder)
        facts = request_facts(r.s, r.schedule, r.files, r.lora, r.styles, r.references)
        on_event({"event": "start", "total": len(r.sources), **facts})
        for message in r.notices:
            on_event({"event": "notice", "message": message})
        for i in range(len(r.sources)):
            with use(on_event) as pipeline, at_work():
                result = _stylize_one(r, i, pipeline, facts, overwrite, on_event)
            yield result


def _stylize_one(
    r: ImageRequest,
    i: int,
    pipeline: "ImagePipeline",
    facts: RequestFacts,
    overwrite: bool,
    on_event: OnEvent,
) -> Image.Image:
    begin, target, working = time.monotonic(), r.targets[i], r.sizes[i]
    about: Place = {"input": source_name(r.sources[i]), "index": i + 1, "total": len(r.sources)}

    def on_step(step: int) -> None:
        on_event(
            {"event": "progress", "stage": "picture", **about, "step": step, "steps": r.s.steps}
        )

    on_step(0)
    picture = _read_again(r.sources[i], max(working))
    fit = fit_to(*picture.size, working)
    result = fit.undo(pipeline.stylize(seen(picture, fit), r.s, r.schedule, on_step))
    if picture.alpha is not None:
        result = attach_alpha(result, picture.alpha)
    result = _compared(picture, result, r.s)
    if target is not None:
        source = r.sources[i]
        sha256 = fingerprint(source) if isinstance(source, Path) else None
        made = origin(source, sha256, r.styles, r.given)
        record = {**facts, "input": about["input"], "origin": made}
        save_picture(result, target, record, overwrite, parameters_text(facts, working))
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
    return result


def _compared(picture: Picture, result: Image.Image, settings: ImageSettings) -> Image.Image:
    """The result as it is written, with its source where they are compared."""
    comparison = Comparison(settings.compare, settings.labels)
    if comparison.mode == "none":
        return result
    source = picture.rgb.resize(result.size, Image.Resampling.LANCZOS)
    if picture.alpha is not None:
        source = attach_alpha(source, picture.alpha)
    composed = comparison.compose(np.asarray(source), np.asarray(result))
    return Image.fromarray(composed)


def prepare_images(
    inputs: Input | Sequence[Input],
    style: Style | Sequence[Style],
    output: str | Path | None = None,
    *,
    overwrite: bool = False,
    find: Find = lambda resolve, *args, **options: resolve(*args, **options),
    **options: Unpack[ImageOptions],
) -> ImageRequest:
    """Check everything before a weight is loaded, and leave nothing behind.

    Parameters and errors as of `Stylizer.images`.
    """
    given: dict[str, Any] = dict(options)
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
        sources,
        targets,
        folder,
        styles,
        references,
        files,
        lora,
        s,
        schedule,
        sizes,
        notices,
        given,
    )


def _sources(inputs: object) -> tuple[list[Source], list[str]]:
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
            _pictures(item, notices)
            if isinstance(item, str | Path)
            else [take_source(item, "input")]
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


def _read_again(source: Source, side: int) -> Picture:
    """What `prepare_images` read already."""
    try:
        return read_source(source, side=side)
    except InputError as e:
        raise InputError(
            f"{e} (it could be read when the run began, and was changed since)"
        ) from None
