"""Processes side by side on one machine: each runs for a moment while the others stand still.

What else the machine does, and how fast it is just now, falls on all of them alike.
"""

import math
import os
import signal
import subprocess
import threading
import time


class _Process:
    """A command with a clock that runs only while the command runs."""

    def __init__(self, command):
        self.active, self.since, self.lines = 0.0, None, []
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        os.kill(self.process.pid, signal.SIGSTOP)
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self):
        for line in self.process.stdout:
            running = 0.0 if self.since is None else time.monotonic() - self.since
            self.lines.append((self.active + running, line.rstrip()))

    def run(self, seconds):
        """For so long at most. True while there is more to do."""
        self.since = time.monotonic()
        os.kill(self.process.pid, signal.SIGCONT)
        try:
            self.process.wait(seconds if seconds < math.inf else None)
        except subprocess.TimeoutExpired:
            os.kill(self.process.pid, signal.SIGSTOP)
        self.active, self.since = self.active + time.monotonic() - self.since, None
        return self.process.returncode is None


def in_turns(commands, seconds=1.0):
    """{name: command} -> {name: [(seconds on its own clock, line), ...]}, of what each printed.
    POSIX only."""
    processes = {name: _Process(command) for name, command in commands.items()}
    running = list(processes.values())
    try:
        while running:
            running = [p for p in running if p.run(seconds)]
    finally:
        for p in running:
            p.process.kill()
    for name, p in processes.items():
        p.reader.join()
        if p.process.returncode:
            raise SystemExit(f"{name}: exit code {p.process.returncode}")
    return {name: p.lines for name, p in processes.items()}
