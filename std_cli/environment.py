"""What the libraries do to the process: what they print, whether they connect, when they load."""

import logging
import os
import sys
import threading
import warnings
from contextlib import ExitStack

LOADING = threading.RLock()
"""Held while a model is loaded: diffusers, transformers and accelerate patch torch for the whole
process meanwhile."""

_QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
}
"""What the libraries read when they are imported."""
_LOGGING = {
    "DIFFUSERS": "diffusers.utils.logging",
    "TRANSFORMERS": "transformers.utils.logging",
}


def silence_libraries() -> None:
    """Keep the libraries' warnings and progress bars from the terminal, for the whole process.

    To be called before they are imported, as they read some of it once.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)


def rest_waiting_threads() -> None:
    """Let torch's threads that wait for each other sleep after a moment.

    By itself GNU's OpenMP, which torch uses on Linux, lets them look for work without a pause for
    milliseconds: on a core that another program needs, the one that they wait for does not get its
    turn. With both of 2 cores in use by others, a picture of `tiny` took 16.9 s so, and 0.8 s with
    this; with idle cores both take the same. To be called before torch is imported. Variables that
    the user has set stay: https://gcc.gnu.org/onlinedocs/libgomp/GOMP_005fSPINCOUNT.html
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def go_offline() -> None:
    """Let nothing open a connection: what is not in the cache is an error."""
    os.environ["HF_HUB_OFFLINE"] = "1"


class _Silence:
    """Silences the libraries inside `with`, and restores what the caller had set.

    Nothing is imported for that: a library that is imported inside reads the environment, and
    `renew` silences it after that. Threads may overlap: the last one restores.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._depth = 0
        self._before = ExitStack()
        self._silenced: set[str] = set()
        self._set: set[str] = set()
        """Of the environment; what the caller had set there stays."""

    def __enter__(self) -> None:
        with self._lock:
            self._depth += 1
            if self._depth == 1:
                self._before.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore")
                self._silence(fresh=False)
                self._set = _QUIET.keys() - os.environ.keys()
                for name in self._set:
                    os.environ[name] = _QUIET[name]
                    self._before.callback(os.environ.pop, name, None)

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._depth -= 1
            if self._depth == 0:
                self._silence(fresh=True)  # so that what was imported inside gets its default back
                self._before.close()
                self._silenced.clear()

    def renew(self) -> None:
        """Silence what was imported since."""
        with self._lock:
            if self._depth:
                self._silence(fresh=True)

    def _silence(self, fresh: bool) -> None:
        """fresh: the library was imported inside, and the caller expects its own default."""
        for library, name in _LOGGING.items():
            module = sys.modules.get(name)
            if module is None or name in self._silenced:
                continue
            self._silenced.add(name)
            ours = fresh and f"{library}_VERBOSITY" in self._set
            level = logging.WARNING if ours else module.get_verbosity()
            self._before.callback(module.set_verbosity, level)
            module.set_verbosity_error()
            ours = fresh and "HF_HUB_DISABLE_PROGRESS_BARS" in self._set
            if ours or module.is_progress_bar_enabled():
                self._before.callback(module.enable_progress_bar)
                module.disable_progress_bar()


silent_libraries = _Silence()
"""`with silent_libraries:` keeps the libraries' warnings and bars from the caller's terminal."""
