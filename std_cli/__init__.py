"""`std`: stylize pictures and videos with few-step diffusion.

Single Trajectory Distillation, arXiv 2412.18945. What is named here is the public API.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    __version__: str
    from std_cli.comparison.run import compare
    from std_cli.errors import (
        Busy,
        Cancelled,
        InputError,
        NetworkError,
        NotDownloaded,
        OutputExists,
        StdError,
    )
    from std_cli.stylize.defaults import read_defaults
    from std_cli.stylize.settings import read_settings
    from std_cli.stylize.stylizer import Stylizer, stylize_image, stylize_images, stylize_video

__all__ = [
    "Busy",
    "Cancelled",
    "InputError",
    "NetworkError",
    "NotDownloaded",
    "OutputExists",
    "StdError",
    "Stylizer",
    "__version__",
    "compare",
    "read_defaults",
    "read_settings",
    "stylize_image",
    "stylize_images",
    "stylize_video",
]
_ERRORS = ("Busy", "Cancelled", "InputError", "NetworkError", "NotDownloaded", "OutputExists")
_MODULES = {
    **dict.fromkeys((*_ERRORS, "StdError"), "std_cli.errors"),
    "compare": "std_cli.comparison.run",
    "read_defaults": "std_cli.stylize.defaults",
    "read_settings": "std_cli.stylize.settings",
}


def __getattr__(name: str) -> object:
    """Import what is asked for when it is asked for: `std --help` loads nothing heavy."""
    if name not in __all__:
        raise AttributeError(f"module 'std_cli' has no attribute {name!r}")
    if name == "__version__":
        return _version()
    import importlib

    module = importlib.import_module(_MODULES.get(name, "std_cli.stylize.stylizer"))
    return getattr(module, name)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("std-cli")
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "0+unknown"
