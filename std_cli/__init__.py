"""`std`: stylize pictures and videos with few-step diffusion (Single Trajectory Distillation, arXiv
2412.18945)."""

from importlib.metadata import PackageNotFoundError, version
from typing import Any

try:
    __version__ = version("std-cli")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+unknown"

__all__ = [
    "InputError",
    "StdError",
    "__version__",
    "stylize_image",
    "stylize_images",
    "stylize_video",
]


def __getattr__(name: str) -> Any:
    """The functions, imported when they are first asked for: `std --help` loads nothing heavy."""
    if name in ("stylize_image", "stylize_images"):
        from std_cli.stylize import pictures

        return getattr(pictures, name)
    if name == "stylize_video":
        from std_cli.stylize import videos

        return videos.stylize_video
    if name in ("InputError", "StdError"):
        from std_cli import errors

        return getattr(errors, name)
    raise AttributeError(f"module 'std_cli' has no attribute {name!r}")
