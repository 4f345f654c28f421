"""Plans for several devices, against numbers by hand."""

import pytest

from std_cli.errors import InputError
from std_cli.spread.plan import plan_spread
from std_cli.stylize import video_run
from std_cli.stylize.plan import plan_video
from tests.micro import micro
from tests.stylize.test_videos import make_clip


@pytest.mark.parametrize(
    ("steady", "units"),
    [(0, 2), (0.5, 3)],  # with a filter a unit more makes the pictures of both
)
def test_one_shot_on_two_devices(tmp_path, reference, monkeypatch, steady, units):
    monkeypatch.setattr(video_run, "SEGMENT", 6)
    clip = tmp_path / "in.mp4"
    make_clip(clip, 24, (64, 48), sound=False)
    before = sorted(tmp_path.rglob("*"))
    plan = plan_video(
        clip,
        reference,
        tmp_path / "out.mp4",
        probe=False,
        spread=plan_spread("cpu:2", lambda event: None),
        model=micro(),
        size=64,
        steady=steady,
        palette=0,
        cuts="off",
    )
    assert plan["spread"] == {
        "devices": 2,
        "units": units,
        "pieces": 2,
        "computed": 24,
        "speedup": 2.0,
        "seconds": None,
        "copied": 2 * clip.stat().st_size,
        "lost": 6,
        "lost_seconds": None,
    }
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_no_number_of_devices():
    with pytest.raises(InputError, match="--devices two: give"):
        plan_spread("two", lambda event: None)
