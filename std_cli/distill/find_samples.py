"""Which pictures and clips the sources hold, and their captions. Nothing is decoded here.

A source is a folder or a file, of one of these formats; a folder is taken as the first of them that
it has:

    metadata     folders with a metadata.jsonl or metadata.csv: file_name, and text or caption
                 (the Hub's imagefolder)
    webdataset   uncompressed tars of NAME.jpg, .png, .mp4..., each with NAME.txt or NAME.json
                 (text or caption)
    txt          NAME.txt next to each file
    list         .json, .jsonl or .csv: file_name, path, source or videoid (of VIDEOID.mp4), and
                 text, caption, cap or name. A cap may be a list; the first sentence of its first
                 caption counts (Open-Sora-Plan)
"""

import csv
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from std_cli.distill.shards import members, read_part
from std_cli.errors import InputError
from std_cli.media.picture_kinds import PICTURE_SUFFIXES
from std_cli.media.video.clip import VIDEO_SUFFIXES, Part

MISSING = "not there"
UNCAPTIONED = "without a caption"
UNKNOWN = "neither picture nor clip"
LINK = "links or devices in a shard"

_METADATA = ("metadata.jsonl", "metadata.csv")
_LISTS = (".json", ".jsonl", ".csv")
_FILE_KEYS = ("file_name", "path", "source", "videoid")
_CAPTION_KEYS = ("text", "caption", "cap", "name")
_WANTED = (
    "metadata.jsonl or metadata.csv with file_name and text; tar shards of NAME.jpg and NAME.txt; "
    "NAME.txt next to each file; a .json, .jsonl or .csv list (path and cap, source and caption, "
    "videoid and name)"
)
_MAX_CAPTION = 1 << 20
"""Bytes of a file that holds one caption."""


@dataclass(frozen=True, slots=True)
class SampleFile:
    """A captioned picture or clip."""

    path: Path
    """The file's; of a member of a shard SHARD/MEMBER, which is only a name."""
    kind: Literal["picture", "clip"]
    """Animated pictures count as pictures: their first frame."""
    caption: str
    part: Part | None = None
    """Where the bytes of a shard's member are."""
    name: str = ""
    """The path inside the source, with slashes: the same wherever the source lies."""


@dataclass
class FoundSamples:
    """What the sources hold."""

    entries: list[SampleFile] = field(default_factory=list)
    """The captioned files, in an order that depends on the files alone."""
    skipped: dict[str, list[str]] = field(default_factory=dict)
    """What is not used: names by reason (MISSING, UNCAPTIONED, UNKNOWN, LINK)."""

    def skip(self, reason: str, name: str | Path) -> None:
        """Note a file that is not used."""
        self.skipped.setdefault(reason, []).append(str(name))

    def add(self, path: Path, base: Path, caption: str | None, part: Part | None = None) -> None:
        """Take a file with its caption, or skip it. base: the folder that its name is relative
        to."""
        kind = _kind(path)
        caption = " ".join((caption or "").split())
        # JSON can hold half a surrogate pair, which cannot be encoded
        caption = caption.encode(errors="replace").decode()
        if kind is None:
            self.skip(UNKNOWN, path)
        elif not caption:
            self.skip(UNCAPTIONED, path)
        else:
            name = Path(os.path.relpath(path, base)).as_posix()
            self.entries.append(SampleFile(path, kind, caption, part, name))

    @property
    def captioned(self) -> float:
        """The share of the files that have a caption."""
        without = len(self.skipped.get(UNCAPTIONED, []))
        return len(self.entries) / max(1, len(self.entries) + without)


def find_samples(sources: Sequence[str | Path], root: Path | None = None) -> FoundSamples:
    """The captioned pictures and clips of folders, lists and shards.

    root: the folder that the paths in lists start from; without it each list's own. Paths may not
    lead out of it, nor those of a metadata file out of its folder. Raises InputError for a source
    that is missing or has no captioned file, and for damaged caption files and shards.
    """
    if not sources:
        raise InputError(
            "no data: give folders of captioned pictures or clips, lists or tar shards"
        )
    found = FoundSamples()
    for source in map(Path, sources):
        entries = len(found.entries)
        skipped = {reason: len(names) for reason, names in found.skipped.items()}
        if source.is_dir():
            _search_folder(source, root, found)
        else:
            _search_file(source, root, found)
        if len(found.entries) == entries:
            counts = [
                (len(names) - skipped.get(reason, 0), reason)
                for reason, names in found.skipped.items()
            ]
            seen = ", ".join(f"{count} {reason}" for count, reason in counts if count)
            raise InputError(
                f"no captioned pictures or clips in {str(source)!r}{f' ({seen})' if seen else ''}; "
                f"looked for {_WANTED}"
            )
    return found


def _search_folder(folder: Path, root: Path | None, found: FoundSamples) -> None:
    files = _walk(folder)
    # where a folder has both, the jsonl counts
    by_folder = {f.parent: f for name in reversed(_METADATA) for f in files if f.name == name}
    shards = [f for f in files if f.suffix.lower() == ".tar"]
    lists = [
        f
        for f in files
        if f.suffix.lower() in _LISTS and f.parent == folder and f.name not in _METADATA
    ]
    names = set(files)
    media = [f for f in files if _kind(f)]
    texts = any(f.with_suffix(".txt") in names for f in media)

    if by_folder:
        used: set[str] = set()
        for path in by_folder.values():
            used |= _read_list(path, path.parent, folder, found)
        for path in media:
            if os.path.abspath(path) not in used:
                found.skip(UNCAPTIONED, path)
    elif shards:
        for path in shards:
            _read_shard(path, folder, found)
    elif lists and not texts:
        for path in lists:
            _read_list(path, root or folder, root or folder, found)
    else:
        for path in media:
            text = path.with_suffix(".txt")
            caption = _text(_read_small(text), text) if text in names else None
            found.add(path, folder, caption)


def _search_file(path: Path, root: Path | None, found: FoundSamples) -> None:
    if not path.is_file():
        raise InputError(f"no such data: {str(path)!r}; give a folder, a list or a tar shard")
    suffix = path.suffix.lower()
    if suffix == ".tar":
        _read_shard(path, path.parent, found)
    elif suffix in _LISTS:
        folder = root or path.parent
        _read_list(path, folder, folder, found)
    else:
        raise InputError(f"{str(path)!r} is no list and no tar shard; looked for {_WANTED}")


def _walk(folder: Path) -> list[Path]:
    """Every regular file below, without hidden ones, in the order of names. Links to folders are
    not followed."""

    def fail(e: OSError) -> None:
        raise InputError(f"cannot list folder {e.filename!r}: {e.strerror}; check its permissions")

    found = []
    for place, folders, names in os.walk(folder, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(place, name) for name in sorted(names) if not name.startswith(".")]
    return [path for path in found if path.is_file()]  # a pipe would be waited on for ever


def _kind(path: Path) -> Literal["picture", "clip"] | None:
    suffix = path.suffix.lower()
    return "picture" if suffix in PICTURE_SUFFIXES else "clip" if suffix in VIDEO_SUFFIXES else None


# --- lists -------------------------------------------------------------------------------------


def _read_list(path: Path, root: Path, base: Path, found: FoundSamples) -> set[str]:
    """Add the files that a list names, below `root`; returns their absolute paths."""
    named = set()
    for place, row in _rows(path):
        if not isinstance(row, dict):
            raise InputError(
                f"{place}: {_short(row)} is not an object; write one with path and caption"
            )
        key = next((key for key in _FILE_KEYS if row.get(key)), None)
        if key is None:
            raise InputError(f"{place}: no file is named; give one of {', '.join(_FILE_KEYS)}")
        name = f"{row[key]}.mp4" if key == "videoid" else row[key]
        file = _place(name, root, f"{place}: {key}")
        named.add(os.path.abspath(file))
        if os.path.isfile(file):  # false, not an error, for a name too long for the system
            found.add(file, base, _caption(row, place))
        else:
            found.skip(MISSING, file)
    return named


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    """(its place, for messages; row) of each row."""
    kind = path.suffix.lower()
    try:
        with path.open(encoding="utf-8-sig", newline="" if kind == ".csv" else None) as file:
            if kind == ".json":
                rows = json.load(file)
                if not isinstance(rows, list):
                    raise InputError(
                        f'{str(path)!r} holds no list; write [{{"path": ..., "cap": [...]}}, ...]'
                    )
                for i, row in enumerate(rows, 1):
                    yield f"{str(path)!r}, entry {i}", row
            elif kind == ".csv":
                reader = csv.DictReader(file, strict=True)
                for row in reader:
                    yield f"{str(path)!r}, line {reader.line_num}", row
            else:
                for i, line in enumerate(file, 1):
                    if line.strip():
                        yield f"{str(path)!r}, line {i}", _json(line, f"{str(path)!r}, line {i}")
    except (ValueError, RecursionError, csv.Error) as e:
        raise InputError(
            f"{str(path)!r} cannot be read as {kind[1:]} ({e}); write it again, in UTF-8"
        ) from None
    except OSError as e:
        raise InputError(
            f"{str(path)!r} cannot be read ({e.strerror}); check its permissions"
        ) from None


def _json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as e:
        raise InputError(f"{place} is not JSON ({e}); write it again") from None


def _caption(row: dict[str, Any], place: str) -> str | None:
    key = next((key for key in _CAPTION_KEYS if row.get(key)), None)
    if key is None:
        return None
    value = row[key]
    if key == "cap":
        value = value[0] if isinstance(value, list) else value
    if not isinstance(value, str):
        raise InputError(f"{place}: {key} is {_short(value)}; write a text")
    return re.split(r"(?<=[.!?])\s", value.strip(), maxsplit=1)[0] if key == "cap" else value


def _place(name: object, root: Path, what: str) -> Path:
    """The file that a list names, which must be below `root`. what: names the value in errors."""
    if not isinstance(name, str) or "\0" in name:
        raise InputError(f"{what} is {_short(name)}; write the path of a file")
    path = Path(os.path.normpath(name))
    if path.anchor:  # on Windows also a path that is relative to a drive
        if path.is_relative_to(os.path.abspath(root)):
            return path
    elif path.parts[:1] != ("..",):
        return root / path
    raise InputError(
        f"{what} {_short(name)} leads out of {str(root)!r}; move the file into that folder, or, in "
        "a list, set data.root to a folder that holds all files"
    )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


# --- one caption in a file ---------------------------------------------------------------------


def _read_shard(shard: Path, base: Path, found: FoundSamples) -> None:
    media: list[tuple[str, Part]] = []
    texts: dict[str, Part] = {}
    for name, part in members(shard, lambda link: found.skip(LINK, shard / link)):
        if _kind(Path(name)):
            media.append((name, part))
        elif name.endswith((".txt", ".json")):
            texts[name] = part
    for name, part in media:
        stem = os.path.splitext(name)[0]
        text = next((f"{stem}{end}" for end in (".txt", ".json") if f"{stem}{end}" in texts), None)
        caption = _read_caption(shard / text, texts[text]) if text is not None else None
        found.add(shard / name, base, caption, part)


def _read_caption(name: Path, part: Part) -> str | None:
    text = _text(_read_small(name, part), name)
    if name.suffix == ".txt":
        return text
    row = _json(text, repr(str(name)))
    if not isinstance(row, dict):
        raise InputError(f"{str(name)!r} holds {_short(row)}; write an object with text or caption")
    return _caption(row, repr(str(name)))


def _read_small(path: Path, part: Part | None = None) -> bytes:
    try:
        part = part or Part(path, 0, path.stat().st_size)
        if part.size > _MAX_CAPTION:
            raise InputError(
                f"{str(path)!r} has {part.size} bytes, too many for a caption; shorten it"
            )
        return read_part(part)
    except (OSError, EOFError) as e:
        raise InputError(
            f"{str(path)!r} cannot be read ({getattr(e, 'strerror', 'it is cut short')})"
        ) from None


def _text(data: bytes, name: Path) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{str(name)!r} is not text in UTF-8; save it as that") from None
