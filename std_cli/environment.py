"""What the libraries do to the process: what they print, whether they connect, when they load."""

import importlib
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

LOADING = threading.RLock()
"""Held while a model is loaded: diffusers, transformers and accelerate patch torch for the whole
process meanwhile."""


_LIBRARIES = ("accelerate", "diffusers", "huggingface_hub", "peft", "torch", "transformers")
_BARS = ("diffusers.utils.logging", "transformers.utils.logging")
_silent = 0
_restore = ExitStack()
_COUNT = threading.Lock()


def silence_libraries() -> None:
    """Keep the libraries' warnings and progress bars from the terminal, for the whole process.

    To be called before they are imported, as they read some of it once.
    """
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY", "HF_HUB_VERBOSITY"):
        os.environ.setdefault(name, "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)


def go_offline() -> None:
    """Let nothing open a connection: what is not in the cache is an error."""
    os.environ["HF_HUB_OFFLINE"] = "1"


@contextmanager
def silent_libraries() -> Iterator[None]:
    """Keep the libraries' warnings and progress bars from the caller's terminal and logs, inside.

    What the caller had set is as before afterwards. Threads may overlap: the last one restores.
    """
    global _silent
    with _COUNT:
        if _silent == 0:
            _silence(_restore)
        _silent += 1
    try:
        yield
    finally:
        with _COUNT:
            _silent -= 1
            if _silent == 0:
                _restore.close()


def _silence(stack: ExitStack) -> None:
    stack.enter_context(warnings.catch_warnings())
    warnings.simplefilter("ignore")
    for name in _LIBRARIES:
        logger = logging.getLogger(name)
        stack.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.ERROR)
    for name in _BARS:
        # imported here: a library that is imported inside would draw its bars
        module = sys.modules.get(name) or importlib.import_module(name)
        if module.is_progress_bar_enabled():
            stack.callback(module.enable_progress_bar)
            module.disable_progress_bar()
