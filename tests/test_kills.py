"""A short form of `python -m tests.bench.reliability`: one signal for each kind of work but videos,
of which tests/stylize/test_videos.py kills more."""

import os

import pytest

from tests.bench.reliability.kills import WORKS, measure
from tests.micro import micro

pytestmark = [pytest.mark.long, pytest.mark.skipif(os.name == "nt", reason="POSIX signals")]


@pytest.mark.parametrize("kind", [kind for kind in WORKS if kind != "video"])
def test_what_is_killed_ends_bit_for_bit_as_if_it_was_not(tmp_path, kind):
    counts = measure(kind, 1, 0, tmp_path, model=micro())
    assert counts.good and counts.equal and counts.killed == 1, counts
