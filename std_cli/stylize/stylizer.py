"""The loaded model as an object: pictures and videos, one after another, without loading again."""

import hashlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, Unpack

from PIL import Image

from std_cli.config import ImageSettings, video_settings
from std_cli.environment import rest_waiting_threads, silent_libraries
from std_cli.errors import Cancelled, InputError, StdError, in_callers_words
from std_cli.events import Event, OnEvent, VideoResult
from std_cli.storage.scratch import Scratch
from std_cli.stylize.load import load_pipeline, set_style
from std_cli.stylize.options import (
    ClipOptions,
    ImageOptions,
    LoadOptions,
    LookOptions,
    VideoOptions,
    with_options,
)
from std_cli.stylize.outputs import Existing, existing_rule
from std_cli.stylize.pictures import ImageRequest, Output, prepare_images, run_images
from std_cli.stylize.report import reporting
from std_cli.stylize.request import Input, Style, request_notices
from std_cli.stylize.videos import VideoRequest, prepare_video, run_videos
from std_cli.weights.fingerprints import fingerprint

if TYPE_CHECKING:
    from std_cli.diffusion.pipeline import Pipeline


_PARAMETERS = {*VideoOptions.__annotations__, "style"}
_PARAMETERS |= {"overwrite", "skip_existing", "keep_going", "resume", "keep_work", "report"}
"""What messages name by flags."""


def _ignore(event: Event) -> None:
    pass


@dataclass
class _Loaded:
    """A pipeline, and what it was loaded and styled for."""

    weights: tuple[object, ...]
    style: tuple[object, ...]
    pipeline: "Pipeline"


class Stylizer:
    """A model that is loaded once, at the first call, and stylizes whatever it is given.

    Another style, prompt, seed, eta, size or number of steps from call to call does not load it
    again. Loaded again is what a call needs other weights for: another LoRA (with lora="auto" STD's
    follow eta), or videos after pictures, whose UNet has a motion adapter. Only one model is held
    at a time. Calls from several threads wait for each other, one picture or video at a time.

        with Stylizer(model="sdxl") as stylizer:
            for photo in photos:
                stylizer.image(photo, "painting.png", eta=0.65).save(...)
    """

    @with_options(LoadOptions)
    def __init__(self, *, verbose: bool = False, **options: Unpack[LoadOptions]) -> None:
        """Options that are not given are the defaults of the command line.

        verbose: let the libraries' own warnings and progress bars through.

        Raises InputError for a wrong value; a model that is not there is found at the first call.
        """
        rest_waiting_threads()
        self._options = options
        self._verbose = verbose
        self._lock = threading.RLock()
        self._loaded: _Loaded | None = None
        with _callers_words():
            video_settings(_joined(options, {}))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the memory. The next call loads again."""
        with self._lock:
            self._free()

    @with_options(LookOptions)
    def image(
        self, input: Input, style: Style | Sequence[Style], **options: Unpack[LookOptions]
    ) -> Image.Image:
        """Stylize one picture: RGB, or RGBA if it has transparency. As `images` without output."""
        [result] = self._images(
            input, style, None, "refuse", False, _ignore, options, only_one=True
        )
        return result

    @with_options(LookOptions)
    def images(
        self,
        inputs: Input | Sequence[Input],
        style: Style | Sequence[Style],
        output: Output = None,
        *,
        overwrite: bool = False,
        skip_existing: bool = False,
        keep_going: bool = False,
        on_event: OnEvent = _ignore,
        cancel: threading.Event | None = None,
        report: str | Path | None = None,
        **options: Unpack[LookOptions],
    ) -> Iterator[Image.Image]:
        """Stylize pictures one by one; each is written before the next is begun.

        inputs: files, folders, glob patterns, PIL images, the bytes of picture files, or arrays of
        uint8: (H, W), (H, W, 3) RGB or (H, W, 4) RGBA. A PIL image is treated as its file would be
        (EXIF orientation, ICC profile, 16 bits, alpha), and is not changed. Style references and
        results of std are left out of folders and patterns, with a notice.
        style: one or more references of the same kinds, each with an optional weight ("ref.png:0.5"
        or a pair); the weights are normalised. What is transparent in a reference counts as white;
        colours under alpha 0 have no effect anywhere.
        output: a file (one input), a folder, a binary stream that a PNG is written to (one input),
        or None to write nothing. An output is never an input or a reference. Inputs, references and
        outputs may be URLs that fsspec knows, such as "s3://bucket/in/*.png".
        overwrite: replace outputs that exist; skip_existing: leave out inputs whose outputs exist;
        else OutputExists is raised. keep_going: a picture that fails, as an "error" event reports,
        does not stop the others; a StdError at the end says how many did.
        on_event: receives `std_cli.events`; what it raises ends the run.
        cancel: when it is set, the run ends with Cancelled after the step at work.
        report: an .html file, written at the end: a page that shows results with their sources.

        Raises InputError, before a weight is loaded, for every problem of the request; StdError if
        the work fails. No file is left half written.
        """
        existing = existing_rule(overwrite, skip_existing)
        notify = _reporter(on_event, cancel)
        yield from self._images(
            inputs, style, output, existing, keep_going, notify, options, page=report
        )

    def _images(
        self,
        inputs: Input | Sequence[Input],
        style: Style | Sequence[Style],
        output: Output,
        existing: Existing,
        keep_going: bool,
        report: OnEvent,
        options: LookOptions,
        only_one: bool = False,
        page: str | Path | None = None,
    ) -> Iterator[Image.Image]:
        with ExitStack() as stack:
            scratch = stack.enter_context(Scratch(report))
            with self._quietly():
                every = _joined(_for_pictures(self._options), options)
                r = prepare_images(
                    inputs,
                    style,
                    output,
                    scratch=scratch,
                    existing=existing,
                    keep_going=keep_going,
                    **every,
                )
                if only_one and len(r.jobs) > 1:
                    raise InputError(
                        f"image takes one picture, and {len(r.jobs)} were named: use images"
                    )
                if page is not None and (output is None or r.stream is not None):
                    raise InputError(
                        "--report shows pictures that are written to files: give an output that is "
                        "one"
                    )
                on_event = stack.enter_context(
                    reporting(page, existing == "replace", report, r.jobs, r.s)
                )
                on_event = scratch.events(on_event, existing == "replace")
                self._announce(r, report)
            pictures = run_images(r, existing, keep_going, on_event, partial(self.use, r))
            stack.callback(pictures.close)  # type: ignore[attr-defined]
            while True:
                with self._quietly():
                    picture = next(pictures, None)
                if picture is None:
                    return
                yield picture

    @with_options(ClipOptions)
    def video(
        self,
        inputs: str | Path | Sequence[str | Path],
        style: Style | Sequence[Style],
        output: str | Path = ".",
        *,
        overwrite: bool = False,
        skip_existing: bool = False,
        keep_going: bool = True,
        resume: bool = True,
        keep_work: bool = False,
        on_event: OnEvent = _ignore,
        cancel: threading.Event | None = None,
        report: str | Path | None = None,
        **options: Unpack[ClipOptions],
    ) -> list[VideoResult]:
        """Stylize videos one by one; returns the result of each.

        inputs: video files, animated gif, webp or png, folders of videos, glob patterns; a folder
        of pictures is one video. style, overwrite, skip_existing, on_event, cancel and report: as
        of `images`. output: a file (one input), or a folder.
        resume: continue where the same request was interrupted (its work folder `.OUT.std/` is next
        to the output), else start over. keep_work: leave that folder.

        Raises InputError, before a weight is loaded, for every problem of the request; StdError if
        the work fails. Of several inputs one that fails does not stop the others, unless
        keep_going=False; a StdError at the end says how many did. A cancelled request resumes when
        it is made again.
        """
        notify = _reporter(on_event, cancel)
        with self._quietly(), Scratch(notify) as scratch:
            every = _joined(self._options, options)
            existing = existing_rule(overwrite, skip_existing)
            r = prepare_video(
                inputs,
                style,
                output,
                scratch=scratch,
                existing=existing,
                keep_going=keep_going,
                **every,
            )
            use = partial(self.use, r)
            with reporting(report, overwrite, notify, r.jobs, r.s) as notify:
                notify = scratch.events(notify, overwrite)
                self._announce(r, notify)
                found = run_videos(r, overwrite, resume, keep_work, keep_going, notify, use)
                return [scratch.shown(result) for result in found]

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        """With the libraries silent, and errors in the caller's words."""
        with nullcontext() if self._verbose else silent_libraries, _callers_words():
            yield

    # --- what is loaded ---

    def _announce(self, r: ImageRequest | VideoRequest, on_event: OnEvent) -> None:
        """Report the first load before the libraries are imported, which takes seconds."""
        if self._loaded is None and r.jobs:
            on_event({"event": "progress", "stage": "load", "model": r.s.model})

    @contextmanager
    def use(self, r: ImageRequest | VideoRequest, on_event: OnEvent) -> Iterator[Any]:
        """The pipeline for a checked request with its style: the one that is loaded if its weights
        are. For `std_cli.spread`; callers of the package need it not."""
        assert r.files is not None
        motion = r.motion if isinstance(r, VideoRequest) else None
        settings = r.s
        weights = (
            type(r),
            _identity(r.files.base),
            _identity(r.files.ip_adapter),
            (_identity(r.lora.path), r.lora.scale) if r.lora else None,
            _identity(motion.weights) if motion else None,
            (settings.method, settings.allow_partial),
            (settings.device, settings.dtype, settings.offload, settings.compile),
        )
        style = _style_key(r)

        def on_notice(message: str) -> None:
            on_event({"event": "notice", "message": message})

        with self._lock:
            if self._loaded is None or self._loaded.weights != weights:
                if self._loaded is not None:
                    self._free()
                    on_event({"event": "progress", "stage": "load", "model": r.files.name})
                self._loaded = _Loaded(weights, style, load_pipeline(r, on_notice))
            else:
                self._loaded.pipeline.on_notice = on_notice
                for message in request_notices(settings, r.lora):
                    on_notice(message)
            if self._loaded.style != style:
                self._loaded.style = ()  # should it be interrupted
                set_style(self._loaded.pipeline, r)
                self._loaded.style = style
            yield self._loaded.pipeline

    def _free(self) -> None:
        if self._loaded is None:
            return
        self._loaded = None
        import gc

        import torch

        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@with_options(ImageOptions)
def stylize_image(
    inputs: Input | Sequence[Input],
    style: Style | Sequence[Style],
    output: Output = None,
    *,
    overwrite: bool = False,
    skip_existing: bool = False,
    keep_going: bool = False,
    on_event: OnEvent = _ignore,
    cancel: threading.Event | None = None,
    verbose: bool = False,
    report: str | Path | None = None,
    **options: Unpack[ImageOptions],
) -> list[Image.Image]:
    """As `stylize_images`, but returns all results at once."""
    return list(
        stylize_images(
            inputs,
            style,
            output,
            overwrite=overwrite,
            skip_existing=skip_existing,
            keep_going=keep_going,
            on_event=on_event,
            cancel=cancel,
            verbose=verbose,
            report=report,
            **options,
        )
    )


@with_options(ImageOptions)
def stylize_images(
    inputs: Input | Sequence[Input],
    style: Style | Sequence[Style],
    output: Output = None,
    *,
    overwrite: bool = False,
    skip_existing: bool = False,
    keep_going: bool = False,
    on_event: OnEvent = _ignore,
    cancel: threading.Event | None = None,
    verbose: bool = False,
    report: str | Path | None = None,
    **options: Unpack[ImageOptions],
) -> Iterator[Image.Image]:
    """Stylize pictures one by one with a model that is loaded for them. See `Stylizer.images`."""
    load, look = _split(options)
    with Stylizer(verbose=verbose, **load) as stylizer:
        yield from stylizer.images(
            inputs,
            style,
            output,
            overwrite=overwrite,
            skip_existing=skip_existing,
            keep_going=keep_going,
            on_event=on_event,
            cancel=cancel,
            report=report,
            **look,
        )


@with_options(VideoOptions)
def stylize_video(
    inputs: str | Path | Sequence[str | Path],
    style: Style | Sequence[Style],
    output: str | Path = ".",
    *,
    overwrite: bool = False,
    skip_existing: bool = False,
    keep_going: bool = True,
    resume: bool = True,
    keep_work: bool = False,
    on_event: OnEvent = _ignore,
    cancel: threading.Event | None = None,
    verbose: bool = False,
    report: str | Path | None = None,
    **options: Unpack[VideoOptions],
) -> list[VideoResult]:
    """Stylize videos one by one with a model that is loaded for them. See `Stylizer.video`."""
    load, look = _split(options)
    with Stylizer(verbose=verbose, **load) as stylizer:
        return stylizer.video(
            inputs,
            style,
            output,
            overwrite=overwrite,
            skip_existing=skip_existing,
            keep_going=keep_going,
            resume=resume,
            keep_work=keep_work,
            on_event=on_event,
            cancel=cancel,
            report=report,
            **look,
        )


def _split(options: Any) -> tuple[Any, Any]:
    """(the options of the constructor, those of a call)."""
    known = LoadOptions.__annotations__
    load = {name: value for name, value in options.items() if name in known}
    return load, {name: value for name, value in options.items() if name not in known}


def _joined(load: Mapping[str, object], look: Mapping[str, object]) -> dict[str, Any]:
    """The options of the constructor and of a call; InputError for one at the wrong place."""
    for name in (look.keys() | load.keys()) - VideoOptions.__annotations__.keys():
        raise InputError(f"{name}: there is no such option: help(std_cli.stylize_video) lists all")
    for name in look.keys() & LoadOptions.__annotations__.keys():
        raise InputError(f"{name}: is said when a Stylizer is made: make another one for it")
    return {**load, **look}


def _for_pictures(options: LoadOptions) -> dict[str, object]:
    """Without the motion adapter, which pictures do not have."""
    return {k: v for k, v in options.items() if k in ImageSettings.model_fields}


def _identity(path: Path) -> tuple[Path, str]:
    """A file that is replaced is another one; a folder is known by its weights."""
    return path, fingerprint(path)


def _style_key(r: ImageRequest | VideoRequest) -> tuple[object, ...]:
    """What the embeddings of the references follow from."""
    pictures = tuple(
        (picture.size, hashlib.sha256(picture.tobytes()).digest()) for picture in r.references
    )
    shares = tuple(weight for _, weight in r.styles)
    return pictures, shares, r.s.style_scale, r.s.style_blocks


def _reporter(on_event: OnEvent, cancel: threading.Event | None) -> OnEvent:
    def report(event: Event) -> None:
        if cancel is not None and cancel.is_set():
            raise Cancelled("cancelled by the caller")
        if event["event"] in ("notice", "error"):
            event = event | {"message": in_callers_words(event["message"], _PARAMETERS)}
        on_event(event)

    return report


@contextmanager
def _callers_words() -> Iterator[None]:
    try:
        yield
    except StdError as e:
        e.args = (in_callers_words(str(e), _PARAMETERS),)
        raise
