"""What a worker holds from unit to unit."""

from typing import TYPE_CHECKING

from std_cli.storage.scratch import Scratch

if TYPE_CHECKING:
    from std_cli.stylize.stylizer import Stylizer


class Held:
    """The loaded model of a worker, and its copies of what URLs name, each made when it is first
    needed."""

    def __init__(self, verbose: bool) -> None:
        self._verbose = verbose
        self._scratch: Scratch | None = None
        self._stylizer: Stylizer | None = None

    @property
    def scratch(self) -> Scratch:
        if self._scratch is None:
            self._scratch = Scratch().__enter__()
        return self._scratch

    @property
    def stylizer(self) -> "Stylizer":
        if self._stylizer is None:
            from std_cli.stylize.stylizer import Stylizer

            self._stylizer = Stylizer(verbose=self._verbose)
        return self._stylizer

    def close(self) -> None:
        """Free the model's memory, and the copies of what URLs name."""
        if self._stylizer is not None:
            self._stylizer.close()
            self._stylizer = None
        if self._scratch is not None:
            self._scratch.__exit__(None, None, None)
            self._scratch = None
