"""Small work for workers, in place of networks: what happens to it is what is tested."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Small:
    """A unit of `steps` short steps; what a worker does with it is in `how`."""

    id: str
    input: str = "in.mp4"
    frames: int = 3
    how: str = ""


@dataclass
class SmallWork:
    """Notes in a folder what is begun, each step, and what is finished."""

    folder: Path
    others_differ: bool = False
    """Whether all workers but the first have another version of torch."""

    def facts(self):
        differs = self.others_differ and not self.first("worker")
        return {"std": "1", "torch": "1" if differs else "2", "device": "none"}

    def run(self, unit, on_event):
        self.note("begun", unit.id)
        self.note("workers", os.getpid())
        marks = self.folder / f"{unit.id}.steps"
        done = len(marks.read_text()) if marks.exists() else 0
        for step in range(done, unit.frames):
            getattr(self, unit.how or "nothing")(unit, step)
            time.sleep(0.02)
            with marks.open("a") as file:
                file.write(".")
            on_event(
                {"event": "progress", "stage": "video", "progress": float(step + 1), "frame": step}
            )
        self.note("finished", unit.id)
        return {"frames": unit.frames, "resumed": done, "seconds": 0.0}

    def note(self, what, value):
        with (self.folder / what).open("a") as file:
            file.write(f"{value}\n")

    def nothing(self, unit, step):
        pass

    def kills(self, unit, step):
        """Ends its worker, whichever."""
        os.kill(os.getpid(), signal.SIGKILL)

    def kills_once(self, unit, step):
        if step == 1 and self.first(unit.id):
            os.kill(os.getpid(), signal.SIGKILL)

    def raises(self, unit, step):
        raise KeyError("a bug")

    def fails(self, unit, step):
        from std_cli import StdError

        raise StdError("the disk is full")

    def asked_to_end(self, unit, step):
        if step == 1 and self.first(unit.id):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    def waits(self, unit, step):
        if step == 1:
            time.sleep(0.5)

    def first(self, what):
        """Whether this is asked for the first time."""
        try:
            (self.folder / f"{what}.was").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True
