"""What must be set before the heavy libraries are imported, as they read it once."""

import logging
import os
import threading
import warnings

LOADING = threading.RLock()
"""Held while a model is loaded: diffusers, transformers and accelerate patch torch for the whole
process meanwhile."""


def hush() -> None:
    """Keep the libraries' warnings and progress bars from the user's terminal."""
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY", "HF_HUB_VERBOSITY"):
        os.environ.setdefault(name, "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)


def go_offline() -> None:
    """Let nothing open a connection: what is not in the cache is an error."""
    os.environ["HF_HUB_OFFLINE"] = "1"
