"""Stylization as functions: what the commands call, and what a script or a notebook can.

What happens is told through `on_event`, one dictionary at a time, JSON-ready, with "event" one of

    start     model, lora (names), device, dtype, total (pictures), settings, version
    notice    message: something that the user should know
    progress  stage: "load" or "picture"; for a picture also input, index (1..total), total, step, steps
    result    input, output (null if not written), width, height, seconds, index, total
    error     message, code: the run ends here (told by the command line, not by these functions)
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from std_cli import __version__
from std_cli.config import ImageSettings, Pack, S, image_settings, parse_size, parse_style
from std_cli.errors import InputError
from std_cli.fingerprints import fingerprint
from std_cli.image import (
    OUTPUT_SUFFIXES,
    Picture,
    attach_alpha,
    check_writable,
    expand_inputs,
    fit_to,
    read_picture,
    save_picture,
    working_size,
)
from std_cli.lora import LoraFile, resolve_lora
from std_cli.parts import check_model
from std_cli.paths import check_path, names_folder, user_path
from std_cli.schedule import MAX_STEPS, TRAIN_TIMESTEPS, timesteps
from std_cli.weights import ModelFiles, blind_at_the_end, resolve_model, scheduler_config
from std_cli.zoo import cfg_range, zoo

if TYPE_CHECKING:
    import torch

    from std_cli.pipeline import ImagePipeline
    from std_cli.schedule import Schedule

Event = dict[str, Any]
OnEvent = Callable[[Event], None]
Source = Path | Image.Image
Style = str | Path | Image.Image | tuple[str | Path | Image.Image, float]
Find = Callable[..., Any]
"""(resolve, *arguments) -> the files that `resolve` of `weights` finds, or None where a plan can do without."""


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


def stylize_image(
    inputs: str | Path | Image.Image | Sequence[str | Path | Image.Image], *args: Any, **options: Any
) -> list[Image.Image]:
    """Stylize pictures and return them, RGB or RGBA, in the order of the inputs. Parameters as in `stylize_images`."""
    return list(stylize_images(inputs, *args, **options))


def stylize_images(
    inputs: str | Path | Image.Image | Sequence[str | Path | Image.Image],
    style: Style | Sequence[Style],
    output: str | Path | None = None,
    *,
    overwrite: bool = False,
    on_event: OnEvent = lambda event: None,
    size: str | int | tuple[int, int] | None = None,
    **settings: Any,
) -> Iterator[Image.Image]:
    """Stylize pictures one by one with one loaded model; each is written before the next is begun.

    inputs: files, folders, glob patterns, or PIL images. style: one or more references, each with an optional weight
    ("ref.png:0.5" or a pair); the weights are normalised. output: a file (one input), a folder, or None to write
    nothing.
    size: "768x512", the long side, or the model's own. The other settings are the fields of `config.ImageSettings`.

    Raises InputError, before a weight is loaded, for every problem of the request; StdError if the work fails.
    """
    r = prepare_images(inputs, style, output, overwrite=overwrite, size=size, **settings)
    sources, styles, files, lora, s, schedule = r.sources, r.styles, r.files, r.lora, r.s, r.schedule
    assert files is not None
    if r.folder is not None and not r.folder.exists():  # made last, so that no other error leaves it behind
        make_folder(r.folder)
        _check_writable(r.targets, overwrite)

    on_event({"event": "progress", "stage": "load", "model": files.name})
    from std_cli.pipeline import choose_device, choose_dtype, name_dtype

    device = choose_device(s.device)
    dtype = choose_dtype(s.dtype, device)
    facts = request_facts(s, schedule, files, lora, str(device), name_dtype(dtype), styles)
    on_event({"event": "start", "total": len(sources), **facts})
    pipeline = load_pipeline(r, device, dtype, lambda message: on_event({"event": "notice", "message": message}))

    for i, (source, target, working) in enumerate(zip(sources, r.targets, r.sizes, strict=True), 1):
        begin, about = time.monotonic(), {"input": source_name(source), "index": i, "total": len(sources)}

        def on_step(step: int, about: Event = about) -> None:
            on_event({"event": "progress", "stage": "picture", **about, "step": step, "steps": s.steps})

        on_step(0)
        picture = read_source(source)
        fit = fit_to(*picture.rgb.size, working)
        result = fit.undo(pipeline.stylize(fit.apply(picture.rgb), s, schedule, on_step))
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
    inputs: str | Path | Image.Image | Sequence[str | Path | Image.Image],
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
    sources = _sources(inputs)
    pictures = [
        read_source(source).rgb.size for source in sources
    ]  # decoded once here, so that a damaged one is known in time
    styles = weigh_styles(style)
    references = [read_source(source, "--style ").rgb for source, _ in styles]
    targets, folder = _targets(sources, output)
    if folder is None or folder.exists():
        _check_writable(targets, overwrite)
    files = find(resolve_model, asked.model, ip_adapter=asked.ip_adapter)
    s = image_settings(given, files.pack, f"{files.base}/std.json") if files else image_settings(given)
    pack = Pack(**files.pack if files else {})
    sizes = [working_size(*size, s.size, pack.base_resolution, pack.size_by == "area") for size in pictures]
    how = {"task": "i2i", "eta": s.eta, "method": s.method, "steps": s.steps}
    lora = find(resolve_lora, s.lora, model=files, **how) if files else None
    if files:
        check_model(files)
    s, lora = follow_lora(s, lora, given)
    schedule = choose_schedule(s, lora)
    if files:
        check_noise(s, schedule, files)
    return ImageRequest(sources, targets, folder, styles, references, files, lora, s, schedule, sizes)


def load_pipeline(
    r: ImageRequest, device: "torch.device", dtype: "torch.dtype", on_notice: Callable[[str], None]
) -> "ImagePipeline":
    """Load what a request asks for, with its style."""
    from std_cli.pipeline import ImagePipeline

    assert r.files is not None
    pipeline = ImagePipeline(
        r.files, r.lora, device, dtype, r.s.offload, r.s.compile, method=r.s.method, allow_partial=r.s.allow_partial
    )
    for message in [*request_notices(r.s, r.lora), *pipeline.notices]:
        on_notice(message)
    pipeline.on_notice = on_notice
    pipeline.set_style(r.references, [weight for _, weight in r.styles], r.s.style_scale, r.s.style_blocks)
    return pipeline


def _sources(inputs: Any) -> list[Source]:
    if isinstance(inputs, str | Path | Image.Image):
        inputs = [inputs]
    sources: list[Source] = []
    for item in inputs:
        sources += [item] if isinstance(item, Image.Image) else expand_inputs([item])
    if not sources:
        raise InputError("no input: give pictures, folders of pictures, or patterns such as 'photos/*.jpg'")
    return sources


def _targets(sources: list[Source], output: str | Path | None) -> tuple[list[Path | None], Path | None]:
    """Where each result goes, the named file or NAME_stylized.png in the named folder; and that folder."""
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
            f"-o {output}: {path.suffix} cannot be written: use {', '.join(OUTPUT_SUFFIXES)}, or a folder that exists"
        )
    names = [s.stem if isinstance(s, Path) else f"picture{i}" for i, s in enumerate(sources, 1)]
    targets = [check_path(path / f"{name}_stylized.png", "-o") for name in names]
    if double := next((t for i, t in enumerate(targets) if t in targets[:i]), None):
        raise InputError(f"two inputs would both be written to {double}: rename one, or give them in two runs")
    return list(targets), path


def _check_writable(targets: list[Path | None], overwrite: bool) -> None:
    for target in filter(None, targets):
        check_writable(target, overwrite)


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir()
    except OSError as e:
        raise InputError(f"-o {folder}: the folder cannot be made ({e.strerror}): choose another") from None


def weigh_styles(style: Any) -> list[tuple[Source, float]]:
    """The references with their weights, which sum to 1."""
    items = [style] if isinstance(style, str | Path | Image.Image | tuple) else list(style)
    if not items:
        raise InputError("--style is missing: give a reference picture, such as --style painting.png")
    pairs = [
        item if isinstance(item, tuple) else parse_style(item) if isinstance(item, str) else (item, 1.0)
        for item in items
    ]
    total = sum(weight for _, weight in pairs)
    if not all(0 < weight < math.inf for _, weight in pairs):
        raise InputError(f"--style weights {[weight for _, weight in pairs]}: each must be above 0")
    return [
        (source if isinstance(source, Image.Image) else user_path(source, "--style"), weight / total)
        for source, weight in pairs
    ]


def read_source(source: Source, flag: str = "") -> Picture:
    if not isinstance(source, Image.Image):
        try:
            return read_picture(source)
        except InputError as e:
            raise InputError(f"{flag}{e}") from None
    alpha = source.getchannel("A") if source.mode == "RGBA" else None
    return Picture(source.convert("RGB"), alpha, Path("picture"))


def follow_lora(s: S, lora: LoraFile | None, given: dict[str, Any]) -> tuple[S, LoraFile | None]:
    """Where the user named a LoRA but gave no eta or steps, those that its file says it was made for."""
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
    """`auto` follows the LoRA's metadata, and is the published schedule without; a baseline has its own."""
    if s.method != "std":
        spacing = zoo().methods[s.method].spacing
        return "quickstart" if spacing == "grid" else spacing
    if s.schedule == "auto":
        return "aligned" if lora and lora.metadata.get("schedule") == "aligned" else "quickstart"
    return s.schedule


def check_noise(s: ImageSettings, schedule: "Schedule", files: ModelFiles) -> None:
    """Raises InputError where a model cannot be run by these timesteps, or by the method's scheduler."""
    method = zoo().methods[s.method]
    if method.scheduler == "EulerDiscreteScheduler" and scheduler_config(files).get("prediction_type") == "sample":
        raise InputError(
            f"--method {s.method}: its scheduler (Euler) does not know the prediction_type 'sample' of --model "
            f"{files.name}: use another method"
        )
    if blind_at_the_end(files) and timesteps(s.steps, s.eta, schedule, method.grid)[0] == TRAIN_TIMESTEPS - 1:
        raise InputError(
            f"--eta {s.eta:g}: the run begins at timestep {TRAIN_TIMESTEPS - 1}, where --model {files.name} predicts "
            "nothing (its scheduler_config.json says epsilon and rescale_betas_zero_snr): use a smaller --eta, such "
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
        "lora": {"name": lora.name, "scale": lora.scale, "sha256": fingerprint(lora.path)} if lora else None,
        "style": [{"name": source_name(source), "weight": round(weight, 6)} for source, weight in styles],
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
