"""Requests whose inputs and outputs URLs name."""

import io
import json

import pytest

from std_cli import InputError, OutputExists, StdError, Stylizer, stylize_images
from std_cli.stylize import video_run
from std_cli.stylize.plan import plan_video
from tests.micro import micro
from tests.storage.counted import counted
from tests.stylize.test_videos import make_clip

FAST = {"model": micro(), "steps": 1, "size": 64}


def png(photo):
    data = io.BytesIO()
    photo.resize((48, 32)).save(data, "PNG")
    return data.getvalue()


def test_no_secret_of_a_url_is_written_anywhere(photo, capfd):
    fs = counted(
        {"/box/in/a.png": png(photo), "/box/in/b.png": b"damaged", "/ref/r.png": png(photo)}
    )
    events = []
    box = "counted://anna:sesame@box"
    with pytest.raises(StdError, match="1 of 2 pictures failed") as error:
        for _ in stylize_images(
            f"{box}/in/",
            "counted://anna:sesame@ref/r.png",
            f"{box}/out/",
            keep_going=True,
            on_event=events.append,
            **FAST,
        ):
            pass
    said = json.dumps(events) + str(error.value) + "".join(capfd.readouterr())
    assert "sesame" not in said and ".std-" not in said
    assert (
        "counted://box/in/b.png" in said
        and events[-1]["output"] == "counted://box/out/a_stylized.png"
    )
    assert sorted(fs.find("/box/out")) == ["/box/out/a_stylized.png"]
    for path in fs.find("/box/out"):
        assert b"sesame" not in fs.cat(path) and b"counted://box/in/a.png" in fs.cat(path)


def test_nothing_is_copied_for_outputs_that_exist(photo):
    fs = counted(
        {"/box/in/a.png": png(photo), "/box/out/a_stylized.png": b"", "/box/r.png": png(photo)}
    )
    request = ("counted://box/in/*.png", "counted://box/r.png", "counted://box/out/")
    with pytest.raises(OutputExists, match="'counted://box/out/a_stylized.png' exists"):
        list(stylize_images(*request, **FAST))
    assert list(stylize_images(*request, skip_existing=True, **FAST)) == []
    assert fs.calls["open rb"] == 2, "the reference, twice"
    with pytest.raises(InputError, match="output 'counted://box/in/a.png' is an input"):
        list(
            stylize_images(
                "counted://box/in/a.png", *request[1:2], "counted://box/in/a.png", **FAST
            )
        )
    with pytest.raises(InputError, match="no pictures match 'counted://box/no/"):
        list(stylize_images("counted://box/no/*.png", *request[1:], **FAST))


class Killed(BaseException):
    pass


def test_a_video_resumes_on_another_machine(tmp_path, photo, monkeypatch):
    monkeypatch.setattr(video_run, "SEGMENT", 4)
    clip = make_clip(tmp_path / "in.mp4", 10, (64, 48))
    fs = counted({"/box/in.mp4": clip.read_bytes(), "/box/r.png": png(photo)})
    request = ("counted://box/in.mp4", "counted://box/r.png")

    def kill(event):
        if event["event"] == "progress" and event["stage"] == "video" and event["frame"] > 5:
            raise Killed

    plan = plan_video(*request, "counted://box/out.mp4", probe=False, **FAST)
    assert plan["frames"] == 10 and plan["inputs"][0]["input"] == "counted://box/in.mp4"
    assert sorted(fs.find("/box")) == ["/box/in.mp4", "/box/r.png"], "a plan writes nothing"

    with Stylizer(model=FAST["model"]) as stylizer:
        look = {"steps": 1, "size": 64}
        [whole] = stylizer.video(*request, "counted://box/whole.mp4", **look)
        assert whole["output"] == "counted://box/whole.mp4"
        with pytest.raises(Killed):
            stylizer.video(*request, "counted://box/out.mp4", on_event=kill, **look)
        kept = [path.rpartition("/")[2] for path in sorted(fs.find("/box/.out.mp4.std"))]
        assert kept == ["run.json", "segment-00000", "state.safetensors"]
        assert not fs.exists("/box/out.mp4")
        with pytest.raises(InputError, match="counted://box/out.mp4 was begun with another"):
            stylizer.video(*request, "counted://box/out.mp4", seed=1, **look)
        [result] = stylizer.video(*request, "counted://box/out.mp4", **look)
    assert result["resumed"] == 4
    assert fs.cat("/box/out.mp4") == fs.cat("/box/whole.mp4")
    assert sorted(fs.find("/box")) == [
        "/box/in.mp4",
        "/box/out.mp4",
        "/box/r.png",
        "/box/whole.mp4",
    ]
