"""The cells of a comparison: every combination of content, style, what is compared, what varies,
and seed; each is a file in the report's folder, named by all that it follows from."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import Any

from std_cli.comparison.config import MADE_WITH, CompareConfig, Contender
from std_cli.comparison.subjects import Kind, Subject, find_results
from std_cli.config import ImageSettings
from std_cli.errors import InputError, NotDownloaded
from std_cli.paths import check_path, replace_file
from std_cli.stylize.frames import input_fingerprint
from std_cli.stylize.options import ImageOptions, LoadOptions, VideoOptions
from std_cli.stylize.pictures import ImageRequest, prepare_images
from std_cli.stylize.request import request_facts, request_notices
from std_cli.stylize.videos import VideoRequest, prepare_video, video_facts
from std_cli.weights.fingerprints import fingerprint
from std_cli.weights.hub import without_downloads

MOST_CELLS = 20_000
LIBRARIES = ("torch", "diffusers", "transformers")
"""Whose versions may change the bits of a result."""
CLIP_SUFFIX = ".mkv"
"""Of a clip's result: Matroska holds every codec."""
OF_CLIPS: Mapping[str, Any] = {"audio": "none", "subtitles": "none"}
READ_WITH = ("start", "end", "max_frames", "fps", "deinterlace")
"""Settings that choose the frames of a clip."""
Facts = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """One row of the table: something that is compared, at one combination of what varies."""

    contender: str
    varied: Mapping[str, str]
    """The values of the settings that vary for it."""
    options: Mapping[str, Any]
    """Options of `Stylizer`, without seed; of results that another tool made those that choose the
    frames of a clip."""

    @property
    def label(self) -> str:
        """ "std, cfg 4, steps 8" """
        parts = [f"{name.replace('_', '-')} {value}" for name, value in self.varied.items()]
        return ", ".join([self.contender, *parts])


@dataclass(frozen=True)
class Checked:
    """What a variant runs with, for all contents of a kind."""

    settings: ImageSettings
    """Resolved; of clips `VideoSettings`."""
    facts: Facts
    """The resolved request, for the first of the contents."""
    weights: tuple[str, ...]
    """Files that are loaded in addition to the model's."""
    notices: tuple[str, ...]
    """What the user should know before it runs."""


@dataclass
class Cell:
    """One result."""

    variant: Variant
    content: Subject
    style: Subject
    seed: int | None
    """None of a result that another tool made."""
    path: Path
    """The result."""
    key: str
    """A hash of all that the result follows from."""
    record_path: Path
    facts: Facts = field(default_factory=dict)
    """The resolved request."""
    checked: Checked | None = None
    """What it runs with; None of a result that another tool made."""
    record: dict[str, Any] = field(default_factory=dict)
    """What is known of it when it is made: its cost, its figures."""
    failure: str = ""
    """Why it could not be made or read."""

    @property
    def of_peer(self) -> bool:
        """Whether another tool made the result."""
        return self.seed is None

    @property
    def sample(self) -> str:
        """What it has in common with the same picture and style of others."""
        return f"{self.content.name}--{self.style.name}"

    @property
    def options(self) -> dict[str, Any]:
        """What makes it, without its seed."""
        return options_for(self.content.kind, self.variant.options)

    @property
    def loaded_by(self) -> dict[str, Any]:
        """The options of its `Stylizer`."""
        return {k: v for k, v in self.options.items() if k in LoadOptions.__annotations__}

    @property
    def thumbnail(self) -> Path:
        """What the report shows of it."""
        return self.record_path.with_suffix(".jpg")

    def is_made(self) -> bool:
        """Whether its result is here, whole, with its record; reads that."""
        try:
            kept = json.loads(self.record_path.read_text(encoding="utf-8"))
            here = kept["key"] == self.key and kept["result"] == fingerprint(self.path)
        except (OSError, ValueError, KeyError, TypeError):
            return False
        if here and isinstance(kept.get("figures"), dict):
            self.record = kept
            return True
        return False

    def save(self) -> None:
        """Keep the record."""
        replace_file(self.record_path, json.dumps(self.record, ensure_ascii=False).encode())


@dataclass(frozen=True)
class Skipped:
    """Something that is compared or measured, and cannot be here."""

    name: str
    reason: str
    pull: tuple[str, ...] = ()
    """Models that are to be downloaded for it."""


def make_cells(
    config: CompareConfig,
    contenders: Sequence[Contender],
    contents: Sequence[Subject],
    styles: Sequence[Subject],
    folder: Path,
) -> tuple[list[Cell], list[Skipped]]:
    """All cells, checked as `std stylize` checks its requests, and what cannot be made since its
    weights are not here. folder: of the cells.

    Raises InputError for every other problem of the request.
    """
    cells: list[Cell] = []
    skipped: list[Skipped] = []
    maker = _Maker(config, contents, styles, folder)
    for contender in contenders:
        if contender.folder is not None:
            cells += maker.of_peer(contender, contender.folder)
            continue
        variants = variants_of(config, contender)
        if len(cells) + len(variants) * maker.per_variant > MOST_CELLS:
            raise InputError(
                f"a comparison of more than {MOST_CELLS} cells: vary less, or compare in parts"
            )
        missing: dict[str, list[str]] = {}
        for variant in variants:
            try:
                cells += maker.of_variant(variant)
            except NotDownloaded as e:
                missing.setdefault(str(e), []).append(variant.label)
        for reason, labels in missing.items():
            whole = len(labels) == len(variants)
            skipped.append(Skipped(contender.name if whole else "; ".join(labels), reason))
    return cells, skipped


def variants_of(config: CompareConfig, contender: Contender) -> list[Variant]:
    """A contender at every combination of what varies for it."""
    common = {**MADE_WITH, **config.settings, **contender.options}
    names = [name for name in config.vary if name not in contender.options]
    found = []
    for values in product(*(dict.fromkeys(config.vary[name]) for name in names)):
        varied = dict(zip(names, values, strict=True))
        shown = {name: text_of(value) for name, value in varied.items()}
        found.append(Variant(contender.name, shown, common | varied))
    return found


def text_of(value: object) -> str:
    """The value of a setting as the report shows it: 4 for 4.0."""
    return f"{value:g}" if isinstance(value, float) else str(value)


class _Maker:
    """Makes the cells of variants: each is checked once, with one content of each kind; what cells
    differ in is a hash."""

    def __init__(
        self,
        config: CompareConfig,
        contents: Sequence[Subject],
        styles: Sequence[Subject],
        folder: Path,
    ) -> None:
        self.contents, self.styles, self.folder = contents, styles, folder
        self.seeds = range(config.seed, config.seed + config.seeds)
        self.hashes = {
            subject.path: input_fingerprint(subject.path) for subject in [*contents, *styles]
        }
        self.read_with = {k: v for k, v in config.settings.items() if k in READ_WITH}
        self.per_variant = len(contents) * len(styles) * config.seeds
        self.versions = {name: library_version(name) for name in LIBRARIES}

    def of_variant(self, variant: Variant) -> list[Cell]:
        """Raises InputError as of a request, NotDownloaded for missing weights."""
        cells = []
        requests = {
            kind: self.check(variant, kind)
            for kind in dict.fromkeys(content.kind for content in self.contents)
        }
        for style, content, seed in product(self.styles, self.contents, self.seeds):
            checked = requests[content.kind]
            settings = {
                **checked.facts["settings"], "seed": seed, "style": self.hashes[style.path]
            }  # fmt: skip
            follows = {**checked.facts, "settings": settings, "versions": self.versions}
            follows["content"] = self.hashes[content.path]
            suffix = ".png" if content.kind == "picture" else CLIP_SUFFIX
            cells.append(self.cell(variant, content, style, seed, follows, suffix, checked))
        return cells

    def check(self, variant: Variant, kind: Kind) -> Checked:
        """A request for one content of a kind, checked."""
        content = next(each for each in self.contents if each.kind == kind)
        style = self.styles[0].path
        try:
            with without_downloads():
                options = options_for(kind, variant.options)
                if kind == "picture":
                    request = prepare_images(content.path, style, **options)
                    return _checked(request, _facts(request))
                videos = _prepare_clip(content.path, style, self.folder, options)
                return _checked(videos, dict(video_facts(videos)))
        except NotDownloaded:
            raise
        except InputError as e:
            raise type(e)(f"{variant.label}: {e}") from None

    def of_peer(self, contender: Contender, folder: Path) -> list[Cell]:
        """The results of another tool as cells."""
        variant = Variant(contender.name, {}, self.read_with)
        results = find_results(folder, contender.name, self.contents, self.styles)
        cells = []
        for style, content in product(self.styles, self.contents):
            path = results[content.name, style.name]
            follows = {"result": input_fingerprint(path), "read": self.read_with}
            follows |= {"content": self.hashes[content.path], "style": self.hashes[style.path]}
            cell = self.cell(variant, content, style, None, follows, path.suffix, None)
            cell.path = path
            cells.append(cell)
        return cells

    def cell(
        self,
        variant: Variant,
        content: Subject,
        style: Subject,
        seed: int | None,
        follows: Facts,
        suffix: str,
        checked: Checked | None,
    ) -> Cell:
        """A cell with its name in the folder."""
        text = json.dumps(follows, sort_keys=True, default=str)
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        name = re.sub(r"[^\w.-]+", "_", f"{content.name}--{style.name}--{variant.contender}")[:80]
        path = check_path(self.folder / f"{name}--{key}{suffix}", "-o")
        record = path.with_suffix(".json")
        return Cell(variant, content, style, seed, path, key, record, follows, checked)


def prepare_clip(cell: Cell) -> VideoRequest:
    """The checked request of a clip's cell."""
    folder = cell.record_path.parent
    return _prepare_clip(cell.content.path, cell.style.path, folder, cell.options)


def _prepare_clip(
    content: Path, style: Path, folder: Path, options: dict[str, Any]
) -> VideoRequest:
    target = folder / f"draft{CLIP_SUFFIX}"
    return prepare_video(content, style, target, existing="note", **{**options, **OF_CLIPS})


def _facts(request: ImageRequest) -> Facts:
    assert request.files is not None
    return dict(
        request_facts(
            request.s, request.schedule, request.files, request.lora, request.styles,
            request.references,
        )
    )  # fmt: skip


def _checked(request: ImageRequest | VideoRequest, facts: Facts) -> Checked:
    lora = request.lora
    motion = request.motion.weights if isinstance(request, VideoRequest) and request.motion else ""
    weights = (str(lora.path) if lora else "", str(motion))
    return Checked(request.s, facts, weights, tuple(request_notices(request.s, lora)))


def options_for(kind: Kind, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a picture or a clip has."""
    known = (ImageOptions if kind == "picture" else VideoOptions).__annotations__
    return {name: value for name, value in options.items() if name in known}


def library_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
