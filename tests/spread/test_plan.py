"""Plans for several devices, against numbers by hand."""

import pytest

from std_cli.errors import InputError
from std_cli.spread.plan import how_many, plan_spread
from std_cli.stylize import video_run
from std_cli.stylize.plan import plan_images, plan_video
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
        spread=plan_spread(2, lambda event: None),
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


def test_pictures_on_two_devices(tmp_path, reference, photo):
    """33 pictures: 16 chunks of two and one of one, so 17 pictures on the busier device."""
    (tmp_path / "in").mkdir()
    for i in range(33):
        photo.resize((48, 32)).save(tmp_path / "in" / f"{i:02d}.png")
    size = sum(file.stat().st_size for file in (tmp_path / "in").iterdir())
    options = {"model": micro(), "size": 64, "steps": 1}
    spread = plan_spread(2, lambda event: None)
    plan = plan_images(tmp_path / "in", reference, f"{tmp_path}/out/", spread=spread, **options)
    took, spread = plan["time"], plan["spread"]
    of_picture = (took["seconds"] - took["load"]) / 33
    assert spread.pop("seconds") == pytest.approx(17 * of_picture + took["load"], abs=0.051)
    assert spread.pop("lost_seconds") == pytest.approx(of_picture, abs=0.051)
    assert spread == {
        "devices": 2,
        "units": 17,
        "pieces": 0,
        "computed": 33,
        "speedup": 1.94,
        "copied": size,
        "lost": 1,
    }
    assert not (tmp_path / "out").exists()


def test_the_number_of_devices_or_shards():
    assert how_many("cpu:3", None) == how_many("3", "0/2") == how_many(None, "2/3") == 3
    assert how_many(None, None) is None
    with pytest.raises(InputError, match="--devices two: give"):
        how_many("two", None)
