"""A request as JSON has it: what another process, or a later one, prepares it again from."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, Self

from std_cli.errors import InputError
from std_cli.paths import is_url, names_folder
from std_cli.storage.scratch import LOCAL_ONLY, Scratch
from std_cli.stylize.outputs import Existing
from std_cli.stylize.pictures import ImageRequest, prepare_images
from std_cli.stylize.request import Style
from std_cli.stylize.videos import VideoRequest, prepare_video

_FILES = ("model", "lora", "motion", "cuts")
"""Options that may name a file."""


@dataclass(frozen=True)
class SavedRequest:
    """The arguments of `stylize_image` or `stylize_video`, those of their work folder apart."""

    task: Literal["image", "video"]
    folder: str
    """The working folder that relative paths start from."""
    inputs: list[str]
    style: list[list[Any]]
    """Each reference: [as it was given], or [path, weight]."""
    output: str
    keep_going: bool
    options: dict[str, Any]
    """Settings that were given; fractions as {"fraction": "1/2"}."""

    @classmethod
    def of(
        cls,
        task: Literal["image", "video"],
        inputs: str | Path | Sequence[str | Path],
        style: Style | Sequence[Style],
        output: str | Path,
        keep_going: bool,
        options: Mapping[str, Any],
    ) -> Self:
        """Raises InputError for pictures that are given in memory: only files have a name."""
        return cls(
            task,
            os.getcwd(),
            [_named(path, "input") for path in _several(inputs)],
            [
                [_named(item[0], "--style"), item[1]]
                if isinstance(item, tuple)
                else [_named(item, "--style"), *([1.0] if isinstance(item, Path) else [])]
                for item in _several(style)
            ],
            str(output) + ("/" if names_folder(output) and isinstance(output, Path) else ""),
            keep_going,
            {name: _plain(value) for name, value in options.items() if value is not None},
        )

    @property
    def output_here(self) -> str:
        """-o, from the working folder of this process."""
        return self._here(self.output)

    def prepare(
        self,
        existing: Existing,
        scratch: Scratch = LOCAL_ONLY,
        only: Callable[[Path], bool] | None = None,
    ) -> "VideoRequest | ImageRequest":
        """Check the request as `prepare_video` and `prepare_images` do; raises their errors. only:
        whether a result, by its path on this machine, is of interest."""
        style: list[Style] = [
            (self._here(item[0]), item[1]) if len(item) == 2 else self._here(item[0])
            for item in self.style
        ]
        options = {name: self._value(name, value) for name, value in self.options.items()}
        prepare: Any = prepare_video if self.task == "video" else prepare_images
        request: VideoRequest | ImageRequest = prepare(
            [self._here(item) for item in self.inputs],
            style,
            self.output_here,
            scratch=scratch,
            only=only,
            existing=existing,
            keep_going=self.keep_going,
            **options,
        )
        return request

    def json(self) -> dict[str, Any]:
        """What `from_json` takes; without what may be secret in URLs, since it is kept."""
        kept: dict[str, Any] = LOCAL_ONLY.shown(asdict(self))
        return kept

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Self:
        return cls(**saved)

    def _here(self, name: str) -> str:
        """A path as it was given, or where that is now that the working folder is another."""
        if is_url(name) or os.path.isabs(name) or name.startswith("~"):
            return name
        if os.getcwd() == self.folder:
            return name
        return os.path.join(self.folder, name)

    def _value(self, name: str, value: Any) -> Any:
        if isinstance(value, dict):
            return Fraction(value["fraction"])
        if isinstance(value, list):
            return tuple(value)
        if name in _FILES and isinstance(value, str):
            there = self._here(value)
            return there if os.path.exists(there.rpartition(":")[0] or there) else value
        return value


def _several(given: Any) -> list[Any]:
    one = isinstance(given, str | tuple) or not isinstance(given, Sequence)
    return [given] if one else list(given)


def _named(item: object, what: str) -> str:
    if isinstance(item, str | Path):
        return str(item)
    raise InputError(
        f"{what} of type {type(item).__name__}: units are made of files, in several processes: "
        f"give a path"
    )


def _plain(value: object) -> object:
    if isinstance(value, Fraction):
        return {"fraction": str(value)}
    return list(value) if isinstance(value, tuple) else value
