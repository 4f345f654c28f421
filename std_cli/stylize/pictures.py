"""Stylization of pictures: a request checked, then one picture after another."""

import io
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Unpack, cast

import numpy as np
from PIL import Image

from std_cli.config import ImageSettings, Pack, image_settings
from std_cli.errors import Cancelled, InputError, StdError, at_work
from std_cli.events import Error, OnEvent, Place, RequestFacts
from std_cli.media.compare import Comparison
from std_cli.media.fit import fit_to, seen, working_size
from std_cli.media.keep_colors import keep_colors
from std_cli.media.palette import ColorMix, rounded, with_palette
from std_cli.media.picture_kinds import PICTURE_SUFFIXES
from std_cli.media.pictures import Picture
from std_cli.media.transparency import attach_alpha
from std_cli.media.write_picture import (
    MOST_SIDE,
    OUTPUT_SUFFIXES,
    check_writable,
    encode_picture,
    save_picture,
)
from std_cli.paths import names_folder, remove_stale_drafts, user_path, write_stream
from std_cli.storage.scratch import LOCAL_ONLY, Scratch
from std_cli.stylize.inputs import files_of
from std_cli.stylize.model_choice import Find, call, choose_model
from std_cli.stylize.options import ImageOptions
from std_cli.stylize.outputs import (
    Existing,
    check_outputs,
    distinct_targets,
    existing_notice,
    exists_already,
)
from std_cli.stylize.parameters import parameters_text
from std_cli.stylize.request import (
    Encoded,
    Input,
    Source,
    Style,
    Use,
    failure,
    mix_of_references,
    new_folder,
    origin,
    read_references,
    read_source,
    request_facts,
    some_failed,
    source_name,
    take_source,
    try_folder,
    weigh_styles,
)
from std_cli.weights.fingerprints import fingerprint
from std_cli.weights.lora import LoraFile
from std_cli.weights.resolve import ModelFiles

if TYPE_CHECKING:
    from std_cli.diffusion.pipeline import ImagePipeline
    from std_cli.schedule import Schedule

Output = str | Path | BinaryIO | None
"""A file, a folder, a binary stream that a PNG is written to, or None to write nothing."""


@dataclass(frozen=True)
class PictureJob:
    """One picture, checked before a weight is loaded. Sizes are (width, height)."""

    source: Source
    name: str
    """The input as it was given."""
    target: Path | None
    """None if the result is not written to a file."""
    output: str | None
    """The target as it was given; "-" is a stream."""
    index: int = 0
    """From 1."""
    working: tuple[int, int] = (0, 0)
    """Size that the network sees."""
    size: tuple[int, int] = (0, 0)
    """Of the stylized picture; --compare side makes the result twice as wide."""


@dataclass(frozen=True)
class ImageRequest:
    """Pictures to stylize, checked before a weight is loaded."""

    jobs: list[PictureJob]
    failed: list[Error]
    """Error events of those that cannot be stylized."""
    folder: Path | None
    """Of the targets, where it was named; made if it is not there."""
    stream: BinaryIO | None
    """What the only result is written to in place of a file."""
    styles: list[tuple[Source, float]]
    references: list[Image.Image]
    """In RGB, over white where they are transparent."""
    mix: ColorMix | None
    """Of their colours, for --palette."""
    files: ModelFiles | None
    """None in a plan for a model that is not downloaded, and where nothing is left to stylize."""
    lora: LoraFile | None
    s: ImageSettings
    schedule: "Schedule"
    notices: list[str]
    """What the user should know of inputs, references and outputs."""
    given: Mapping[str, Any]
    """The options that the user gave."""
    scratch: Scratch
    """The copies of what URLs name."""


def run_images(
    r: ImageRequest,
    existing: Existing,
    keep_going: bool,
    on_event: OnEvent,
    use: "Use[ImagePipeline]",
) -> Iterator[Image.Image]:
    """Stylize the pictures of a request one by one; each is written before the next is begun.

    keep_going: one that fails does not stop the others; a StdError at the end says how many did.
    use: gives the loaded pipeline for as long as one picture takes.
    """
    failed = [error["input"] for error in r.failed]
    total = len(r.jobs) + len(failed)
    with new_folder(r.folder if r.jobs else None):
        _check_writable(r.jobs, existing)
        for folder in {job.target.parent for job in r.jobs if job.target}:
            remove_stale_drafts(folder)
        if r.jobs:
            facts = request_facts(r.s, r.schedule, r.files, r.lora, r.styles, r.references)
            on_event({"event": "start", "total": total, **facts})
        for message in r.notices:
            on_event({"event": "notice", "message": message})
        for error in r.failed:
            on_event(error)
        for job in r.jobs:
            if existing == "skip" and job.target and os.path.lexists(job.target):
                on_event({"event": "notice", "message": existing_notice([job.target], existing)})
                continue
            about: Place = {"input": job.name, "index": job.index, "total": total}
            with use(on_event) as pipeline:
                try:
                    with at_work():
                        result = _stylize_one(r, job, about, pipeline, facts, existing, on_event)
                except StdError as e:
                    if not keep_going or total == 1 or isinstance(e, Cancelled):
                        raise
                    failed.append(job.name)
                    on_event(failure(job.name, e))
                    continue
            yield result
    if failed:
        raise some_failed(failed, total, "pictures")


def _stylize_one(
    r: ImageRequest,
    job: PictureJob,
    about: Place,
    pipeline: "ImagePipeline",
    facts: RequestFacts,
    existing: Existing,
    on_event: OnEvent,
) -> Image.Image:
    begin = time.monotonic()

    def on_step(step: int) -> None:
        on_event(
            {
                "event": "progress",
                "stage": "picture",
                "input": about["input"],
                "index": about["index"],
                "total": about["total"],
                "step": step,
                "steps": r.s.steps,
            }
        )

    on_step(0)
    picture = _read_again(job.source, max(job.working))
    fit = fit_to(*picture.size, job.working)
    source = seen(picture, fit)
    levels = pipeline.stylize(source, r.s, r.schedule, on_step)
    if r.mix is not None:
        levels = with_palette(levels, r.mix, r.s.palette, fit.cover(picture.alpha))
    if r.s.keep_colors:
        levels = keep_colors(np.asarray(source), levels)
    result = fit.undo(Image.fromarray(rounded(levels)))
    if result.size != job.size:
        result = result.resize(job.size, Image.Resampling.LANCZOS)
    if max(job.size) > max(job.working) and (picture.alpha is not None or r.s.compare != "none"):
        picture = _read_again(job.source, max(job.size))  # it may have been made smaller
    if picture.alpha is not None:
        result = attach_alpha(result, picture.alpha)
    result = _compared(picture, result, r.s)
    sha256 = fingerprint(job.source) if isinstance(job.source, Path) else None
    record = {**facts, "input": source_name(job.source)}
    record["origin"] = origin(job.source, sha256, r.styles, r.given, r.scratch)
    parameters = parameters_text(facts, job.working)
    if r.stream is not None:
        write_stream(r.stream, encode_picture(result, "PNG", record, parameters))
    elif job.target is not None:
        save_picture(result, job.target, record, existing == "replace", parameters)
    on_event(
        {
            "event": "result",
            **about,
            "output": job.output,
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
    output: Output = None,
    *,
    scratch: Scratch = LOCAL_ONLY,
    existing: Existing = "refuse",
    keep_going: bool = False,
    find: Find = call,
    only: Callable[[Path], bool] | None = None,
    **options: Unpack[ImageOptions],
) -> ImageRequest:
    """Check everything before a weight is loaded, and leave nothing behind.

    scratch: what receives copies of the inputs and references that URLs name. only: as of
    `prepare_video`. Other parameters and errors as of `Stylizer.images`.
    """
    given: dict[str, Any] = dict(options)
    asked = image_settings(given)  # raises what is wrong whatever the model says
    styles = weigh_styles(scratch.style(style))
    named = [path for path, _ in styles if isinstance(path, Path)]
    output = scratch.output(output, try_it=existing != "note")
    sources, notices = _sources(scratch.inputs(inputs), named, output is not None, scratch)
    scratch.fetch(named)
    pictures, white = read_references(styles)
    notices += white
    jobs, folder, stream = _jobs(sources, output, notices)
    reads = [*named, *(job.source for job in jobs if isinstance(job.source, Path))]
    check_outputs([job.target for job in jobs if job.target], folder, reads)
    jobs = _to_do(jobs, existing, notices)
    needed = bool(jobs)
    if only is not None:
        jobs = [job for job in jobs if job.target and only(job.target)]
    wanted = [
        j for j in jobs if existing != "refuse" or not (j.target and os.path.lexists(j.target))
    ]
    scratch.fetch(job.source for job in wanted if isinstance(job.source, Path))
    jobs, sizes, failed = _read_once(jobs, existing, keep_going, notices, scratch)
    if try_folder(folder) is None:
        _check_writable(jobs, existing)
    choice = choose_model(given, asked, needed and (only is not None or bool(jobs)), find)
    s, files = choice.s, choice.files
    pack = Pack(**files.pack if files else {})
    jobs = [_sized(job, size, s, pack) for job, size in zip(jobs, sizes, strict=True)]
    return ImageRequest(
        jobs,
        failed,
        folder,
        stream,
        styles,
        [picture.on_white() for picture in pictures],
        mix_of_references(pictures, [weight for _, weight in styles]) if s.palette else None,
        files,
        choice.lora,
        s,
        choice.schedule,
        notices,
        given,
        scratch,
    )


def _sources(
    inputs: object, references: Sequence[Path], once: bool, scratch: Scratch
) -> tuple[list[tuple[Source, str]], list[str]]:
    """The pictures that the inputs name or are, with their names as given, and what the user should
    know of those that are left out.

    once: a file that is named several times is taken once.
    """
    if isinstance(
        inputs, str | Path | bytes | Encoded | Image.Image | np.ndarray
    ) or not isinstance(inputs, Iterable):
        inputs = [inputs]
    sources: list[tuple[Source, str]] = []
    paths: set[Path] = set()
    notices: list[str] = []
    for item in inputs:
        if isinstance(item, str | Path):
            files = files_of(item, PICTURE_SUFFIXES, "picture", references, notices, scratch)
            named = files == [user_path(item, "input")]
            found: list[tuple[Source, str]] = [
                (file, str(item if named else file)) for file in files
            ]
        else:
            source = take_source(item, "input")
            found = [(source, source_name(source))]
        for source, name in found:
            if once and isinstance(source, Path) and source in paths:
                notices.append(f"{name} is named more than once: it is stylized once")
                continue
            sources.append((source, name))
            if isinstance(source, Path):
                paths.add(source)
    if not sources:
        raise InputError(
            "no input: give pictures, folders of pictures, or patterns such as 'photos/*.jpg'"
        )
    return sources, notices


def _jobs(
    sources: list[tuple[Source, str]], output: Output, notices: list[str]
) -> tuple[list[PictureJob], Path | None, BinaryIO | None]:
    """Where each result goes: the named file, NAME_stylized.png in the named folder, or a stream;
    and that folder or stream."""
    if output is None:
        return [PictureJob(*source, None, None) for source in sources], None, None
    if not isinstance(output, str | Path) and hasattr(output, "write"):
        if isinstance(output, io.TextIOBase):
            raise InputError("output is a stream of text: give a binary one")
        _only_one(sources, "-")
        return [PictureJob(*sources[0], None, "-")], None, output
    path = user_path(cast(str | Path, output), "-o")
    a_folder = path.is_dir() or names_folder(cast(str | Path, output))
    if path.suffix.lower() in OUTPUT_SUFFIXES and not a_folder:
        _only_one(sources, str(output))
        return [PictureJob(*sources[0], path, str(output))], None, None
    if path.suffix and not a_folder:
        raise InputError(
            f"-o {output}: {path.suffix} cannot be written: use {', '.join(OUTPUT_SUFFIXES)}, or "
            f"a folder that exists"
        )
    names = [
        s if isinstance(s, Path) else Path(f"picture{i}") for i, (s, _) in enumerate(sources, 1)
    ]
    targets = distinct_targets(names, lambda _, name: path / f"{name}_stylized.png", notices)
    jobs = [
        PictureJob(*source, target, str(target))
        for source, target in zip(sources, targets, strict=True)
    ]
    return jobs, path, None


def _only_one(sources: Sequence[object], output: str) -> None:
    if len(sources) > 1:
        raise InputError(f"-o {output}: one file for {len(sources)} pictures: give a folder")


def _to_do(jobs: list[PictureJob], existing: Existing, notices: list[str]) -> list[PictureJob]:
    """Without those that are skipped because their outputs exist."""
    there = [job.target for job in jobs if job.target and os.path.lexists(job.target)]
    if there and existing in ("skip", "note"):
        notices.append(existing_notice(there, existing))
    skipped = set(there)
    return jobs if existing != "skip" else [job for job in jobs if job.target not in skipped]


def _read_once(
    jobs: list[PictureJob],
    existing: Existing,
    keep_going: bool,
    notices: list[str],
    scratch: Scratch,
) -> tuple[list[PictureJob], list[tuple[int, int]], list[Error]]:
    """(those that can be stylized, the sizes of their pictures, errors of the others): each picture
    is decoded once, so that a damaged one is known before the work.

    Raises the first error unless `keep_going`.
    """
    ready, sizes, failed = [], [], []
    for i, job in enumerate(jobs, 1):
        try:
            if existing == "refuse" and job.target and os.path.lexists(job.target):
                raise exists_already(job.target)
            if isinstance(job.source, Path):
                scratch.check(job.source)
            picture = read_source(job.source, side=1)
        except InputError as e:
            if len(jobs) == 1:
                raise
            if not keep_going:
                raise type(e)(f"{e}; --keep-going stylizes the others") from None
            failed.append(failure(job.name, e))
            continue
        ready.append(replace(job, index=i))
        sizes.append(picture.size)
        if picture.alpha is not None and picture.alpha.getextrema() == (0, 0):
            name = source_name(job.source)
            notices.append(f"{name} is wholly transparent: so is what is made of it")
    return ready, sizes, failed


def _sized(job: PictureJob, size: tuple[int, int], s: ImageSettings, pack: Pack) -> PictureJob:
    """With the sizes that the network sees and that the result has, of a picture of `size`.

    Raises InputError for a result that its format cannot hold.
    """
    working = working_size(*size, s.size, pack.base_resolution, pack.size_by == "area")
    left, top, right, bottom = fit_to(*size, working).box
    wanted = {"source": size, "model": (right - left, bottom - top)}
    result = s.output_size if isinstance(s.output_size, tuple) else wanted[s.output_size]
    side = max(Comparison(s.compare, s.labels).size(*result))
    suffix = job.target.suffix.lower() if job.target else ""
    if side > MOST_SIDE.get(suffix, side):
        raise InputError(
            f"output {str(job.target)!r} would be {side} pixels long, and {suffix} holds "
            f"{MOST_SIDE[suffix]}: write a .png, or give --output-size model"
        )
    return replace(job, working=working, size=result)


def _check_writable(jobs: list[PictureJob], existing: Existing) -> None:
    for job in jobs:
        if job.target is not None:
            check_writable(job.target, overwrite=existing in ("replace", "note"))


def _read_again(source: Source, side: int) -> Picture:
    """What `prepare_images` read already."""
    try:
        return read_source(source, side=side)
    except InputError as e:
        raise InputError(
            f"{e} (it could be read when the run began, and was changed since)"
        ) from None
