"""The files of the table that are not on the Hub: each is known by its address and its hash."""

from dataclasses import dataclass
from pathlib import Path

from std_cli.errors import NotDownloaded
from std_cli.paths import cache_folder
from std_cli.weights.zoo import find_entry


@dataclass(frozen=True)
class WebFile:
    """A file on a server that is not the Hub."""

    model: str
    """What the table calls it."""
    url: str
    sha256: str
    name: str

    @property
    def path(self) -> Path:
        """Where it is kept once it was downloaded and its hash was right."""
        return cache_folder() / "downloads" / self.sha256 / self.name

    def unreachable(self, why: str) -> NotDownloaded:
        """The error for a file that is not here while its server may not, or cannot, be asked."""
        return NotDownloaded(
            f"{self.model} is not downloaded, and {why}: run std models pull {self.model} with a "
            f"network"
        )


def web_file(model: str) -> WebFile | None:
    """The file of a model of the table; None if the model is on the Hub."""
    entry = find_entry(model)
    return WebFile(model, entry.url, entry.sha256, entry.files[0]) if entry.url else None
