"""Videos end to end on the embedded pack: what goes in and comes out, interruption, refusals."""

import itertools
import json
import math
import os
import random
import shutil
import signal
import time
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from std_cli import InputError, StdError, stylize_video
from std_cli.cli.commands import run
from std_cli.cli.console import Reporter
from std_cli.config import VideoSettings
from std_cli.diffusion import video_pipeline
from std_cli.diffusion.video_pipeline import VideoPipeline
from std_cli.interruption import event as exit_status
from std_cli.interruption import install
from std_cli.media.video.join import read_comment
from std_cli.media.video.opening import open_clip
from std_cli.media.video.read import read_frames
from std_cli.stylize import video_run
from std_cli.stylize.videos import _window
from tests.micro import micro
from tests.processes import Command, server

pytestmark = pytest.mark.long

FAST = {"model": micro(), "steps": 2, "size": 64, "motion": "none", "style_blocks": "all"}


def make_clip(path, frames=20, size=(64, 48), rate=25, sound=True, cut_at=None, vfr=False):
    """A gradient that slides to the left, with a tone; after `cut_at` another picture."""
    r = np.random.default_rng(0)
    pictures = [
        Image.fromarray(c).resize((2 * size[0], size[1]), Image.Resampling.BICUBIC)
        for c in r.integers(0, 256, (2, 6, 16, 3), dtype=np.uint8)
    ]
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=rate, options={"crf": "10"})
        video.width, video.height, video.pix_fmt = *size, "yuv420p"
        video.codec_context.time_base = Fraction(1, 1000)
        if sound:
            audio = out.add_stream("aac", rate=16000, layout="mono")
        for i in range(frames):
            picture = pictures[cut_at is not None and i >= cut_at]
            x = i % size[0]
            frame = av.VideoFrame.from_image(picture.crop((x, 0, x + size[0], size[1])))
            frame.pts, frame.time_base = (
                1000 * i // rate + (i % 3 * 7 if vfr else 0),
                Fraction(1, 1000),
            )
            out.mux(video.encode(frame))
        out.mux(video.encode())
        if sound:
            t = np.arange(16000 * frames // rate) / 16000
            for start in range(0, len(t), 1024):
                tone = np.sin(2 * np.pi * 440 * t[start : start + 1024]).astype(np.float32)[None]
                frame = av.AudioFrame.from_ndarray(tone, "fltp", "mono")
                frame.sample_rate, frame.pts, frame.time_base = 16000, start, Fraction(1, 16000)
                out.mux(audio.encode(frame))
            out.mux(audio.encode())
    return path


def frames_of(path):
    """(pts in seconds, RGB) of every frame."""
    with av.open(str(path)) as file:
        return [(f.pts * f.time_base, f.to_ndarray(format="rgb24")) for f in file.decode(video=0)]


def packets_of(path):
    with av.open(str(path)) as file:
        return [(p.pts * p.time_base, bytes(p)) for p in file.demux(audio=0) if p.size]


def same_frames(a, b):
    a, b = frames_of(a), frames_of(b)
    return len(a) == len(b) and all(
        s == t and np.array_equal(x, y) for (s, x), (t, y) in zip(a, b, strict=True)
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_clip(tmp_path_factory.mktemp("clip") / "in.mp4", vfr=True)


def test_frames_times_sound_and_request_are_kept(tmp_path, source, reference):
    events = []
    [result] = stylize_video(
        source, reference, tmp_path / "out.mp4", on_event=events.append, **FAST
    )
    out = tmp_path / "out.mp4"
    assert [t for t, _ in frames_of(out)] == [t for t, _ in frames_of(source)]
    assert packets_of(out) == packets_of(source)
    assert frames_of(out)[0][1].shape == (48, 64, 3)
    assert (result["frames"], result["resumed"], result["width"], result["height"]) == (
        20,
        0,
        64,
        48,
    )
    assert result["seam_ratio"] is None or result["seam_ratio"] > 0
    assert result["flicker"] >= 0
    comment = read_comment(out)
    assert (
        comment["settings"]["steps"] == 2
        and comment["frames"] == 20
        and comment["flicker"] == result["flicker"]
    )
    assert sorted(os.listdir(tmp_path)) == ["out.mp4", "style.png"]
    progress = [e for e in events if e.get("stage") == "video"]
    assert progress[-1]["frame"] <= 20 and all(e["frames"] == 20 for e in progress)
    assert [e["progress"] for e in progress] == sorted(e["progress"] for e in progress)
    json.dumps(events)


def test_the_result_is_the_styles_not_the_sources(tmp_path, source, reference):
    settings = FAST | {"model": "tiny", "max_frames": 4}
    stylize_video(source, reference, tmp_path / "a.mp4", **settings)
    stylize_video(source, reference, tmp_path / "b.mp4", **settings | {"style_scale": 0})
    a, b = frames_of(tmp_path / "a.mp4"), frames_of(tmp_path / "b.mp4")
    assert np.abs(np.asarray(a[3][1], int) - b[3][1]).mean() > 4


def test_colors_follow_the_reference_or_the_source(tmp_path, source, reference):
    """In every frame, the first of the clip included."""
    style = Image.new("RGB", (32, 32), "#2040a0")
    style.paste("#e0d080", (0, 0, 32, 12))
    wanted = np.asarray(style).mean((0, 1))
    made, looks = {}, {"plain": {"palette": 0}, "mixed": {"palette": 1}}
    looks["kept"] = {"palette": 1, "keep_colors": True}
    for name, look in looks.items():
        stylize_video(source, style, tmp_path / f"{name}.mkv", codec="ffv1", max_frames=4,
                      steady=0, **FAST, **look)  # fmt: skip
        made[name] = np.stack([rgb for _, rgb in frames_of(tmp_path / f"{name}.mkv")]).astype(float)
    for i in range(4):
        off = [np.abs(made[name][i].mean((0, 1)) - wanted).max() for name in ("plain", "mixed")]
        assert off[1] < 10 < off[0]
    sources = np.stack([rgb for _, rgb in frames_of(source)[:4]]).astype(float)
    colors = {k: v - v.mean(-1, keepdims=True) for k, v in (made | {"source": sources}).items()}
    away = [np.abs(colors[name] - colors["source"]).mean() for name in ("kept", "mixed")]
    assert away[0] < 0.5 * away[1]
    kept = read_comment(tmp_path / "kept.mkv")
    assert kept["settings"]["palette"] == 1 and kept["settings"]["keep_colors"] is True


def test_windows_do_not_cross_a_cut(tmp_path, reference):
    """With the cut known, the first shot is what it is alone."""
    clip = make_clip(tmp_path / "two.mp4", 24, sound=False, cut_at=11)
    (tmp_path / "cuts.txt").write_text("0.44\n")
    settings = FAST | {"motion": "auto", "codec": "ffv1"}
    stylize_video(
        clip, reference, tmp_path / "both.mkv", cuts=str(tmp_path / "cuts.txt"), **settings
    )
    stylize_video(clip, reference, tmp_path / "first.mkv", max_frames=11, **settings)
    both, first = frames_of(tmp_path / "both.mkv"), frames_of(tmp_path / "first.mkv")
    assert len(first) == 11
    assert all(np.array_equal(x, y) for (_, x), (_, y) in zip(both, first, strict=False))


def test_cuts_are_found(tmp_path, reference):
    clip = make_clip(tmp_path / "two.mp4", 24, sound=False, cut_at=11)
    events = []
    stylize_video(clip, reference, tmp_path / "o.mp4", on_event=events.append, **FAST)
    assert max(e.get("shot", 0) for e in events) == 2


@pytest.mark.parametrize(("own", "size"), [({}, (96, 72)), ({"video_resolution": 128}, (128, 96))])
def test_a_model_may_have_another_size_for_videos(tmp_path, source, reference, own, size):
    folder = tmp_path / "mine"
    shutil.copytree(micro(), folder)
    settings = json.loads((folder / "std.json").read_text()) | {"base_resolution": 96} | own
    (folder / "std.json").write_text(json.dumps(settings))
    [result] = stylize_video(
        source, reference, tmp_path / "o.mkv", model=str(folder), output_size="model", steps=1,
        motion="none", max_frames=1,
    )  # fmt: skip
    assert (result["width"], result["height"]) == size


def test_start_end_fps_and_size(tmp_path, source, reference):
    [result] = stylize_video(
        source,
        reference,
        tmp_path / "o.mkv",
        start="0.2",
        end="0.6",
        fps=10,
        output_size="model",
        **FAST,
    )
    times = [t for t, _ in frames_of(tmp_path / "o.mkv")]
    assert len(times) == 4
    assert all(
        abs(b - a - Fraction(1, 10)) < Fraction(1, 500) for a, b in itertools.pairwise(times)
    )
    assert (result["width"], result["height"]) == (64, 48)


def test_a_comparison_has_the_source_on_the_left(tmp_path, source, reference):
    stylize_video(
        source, reference, tmp_path / "o.mkv", compare="side", codec="ffv1", max_frames=5, **FAST
    )
    out, before = frames_of(tmp_path / "o.mkv"), [f.rgb for f in read_frames(open_clip(source))]
    assert out[0][1].shape == (48, 128, 3)
    assert np.array_equal(out[3][1][:, :64], before[3])


def test_a_wipe_has_a_line_that_moves_and_labels(tmp_path, source, reference):
    """The first frame and one at about 0.4 s: the source up to the line, then the result."""
    for name, more in (
        ("o", {}),
        ("w", {"compare": "wipe"}),
        ("l", {"compare": "wipe", "labels": True}),
    ):
        how = FAST | {"codec": "ffv1", "max_frames": 11} | more
        stylize_video(source, reference, tmp_path / f"{name}.mkv", **how)
    alone, wiped, labelled = (frames_of(tmp_path / f"{name}.mkv") for name in "owl")
    before = list(read_frames(open_clip(source)))
    assert np.array_equal(wiped[0][1], before[0].rgb)
    column = round(64 * (0.5 + 0.5 * math.cos(2 * math.pi * float(before[10].pts) / 4)))
    frame = wiped[10][1]
    assert 0 < column < 63
    assert np.array_equal(frame[:, : column - 1], before[10].rgb[:, : column - 1])
    assert (frame[:, column] == 255).all()
    assert np.array_equal(frame[:, column + 1 :], alone[10][1][:, column + 1 :])
    changed = (labelled[10][1] != frame).any(-1)
    assert changed[:12, :20].any() and not changed[20:].any()


def test_preview_has_the_start_of_each_shot(tmp_path, reference):
    clip = make_clip(tmp_path / "two.mp4", 40, sound=True, cut_at=20)
    events = []
    [result] = stylize_video(
        clip, reference, tmp_path / "o.mp4", preview="0.2", on_event=events.append, **FAST
    )
    # the whole result is not in its way, nor it in that of the whole result
    assert {p.name for p in tmp_path.iterdir()} == {
        "two.mp4", "style.png", "o_preview.mp4", "o_preview.mp4.jpg"
    }  # fmt: skip
    assert result["output"] == str(tmp_path / "o_preview.mp4")
    times = [t for t, _ in frames_of(result["output"])]
    assert len(times) == result["frames"] == 10
    assert all(b - a == Fraction(1, 25) for a, b in itertools.pairwise(times))
    assert result["thumbnail"] == str(tmp_path / "o_preview.mp4.jpg")
    with Image.open(result["thumbnail"]) as thumbnail:
        assert thumbnail.size == (64, 48)
    assert any("no sound" in e.get("message", "") for e in events)


def test_a_folder_of_pictures_in_and_out(tmp_path, reference):
    folder = tmp_path / "frames"
    folder.mkdir()
    for i in range(3):
        Image.new("RGB", (64, 48), (80 * i, 90, 30)).save(folder / f"f{i}.png")
    [result] = stylize_video(folder, reference, tmp_path / "out", codec="png", **FAST)
    pictures = sorted((tmp_path / "out").glob("*.png"))
    assert len(pictures) == result["frames"] == 3
    with Image.open(pictures[0]) as first:
        assert first.size == (64, 48)


def test_fps_is_the_rate_of_a_folder_of_pictures(tmp_path, reference, capsys):
    """Each picture once, a twelfth of a second long; without it 25 in a second."""
    folder = tmp_path / "frames"
    folder.mkdir()
    for i in range(3):
        Image.new("RGB", (64, 48), (80 * i, 90, 30)).save(folder / f"f{i}.png")
    common = ["stylize", "video", str(folder), "--style", str(reference), "--model", "tiny"]
    common += ["--steps", "1", "--size", "64", "--motion", "none"]
    for options, rate in ((["--fps", "12"], 12), ([], 25)):
        out = tmp_path / f"at{rate}.mp4"
        assert run([*common, "-o", str(out), *options]) == 0
        frames = list(read_frames(open_clip(out)))
        assert [f.pts for f in frames] == [Fraction(i, rate) for i in range(3)]
        assert {f.duration for f in frames} == {Fraction(1, rate)}


def test_many_inputs_one_model_one_failure(tmp_path, source, reference, capsys):
    (tmp_path / "bad.mp4").write_bytes(b"not a video")
    events = []
    inputs = [source, tmp_path / "bad.mp4", make_clip(tmp_path / "b.mp4", 4, sound=False)]
    with pytest.raises(StdError, match="1 of 3 videos failed: .*bad.mp4"):
        stylize_video(inputs, reference, tmp_path / "out", on_event=events.append, **FAST)
    assert sorted(os.listdir(tmp_path / "out")) == ["b_stylized.mp4", "in_stylized.mp4"]
    assert [e["input"] for e in events if e["event"] == "error"] == [str(inputs[1])]
    assert sum(e.get("stage") == "load" for e in events) == 1
    with Reporter() as report:
        for event in events:
            report(event)
    err = capsys.readouterr().err
    # the reason once; the table does not repeat it
    assert err.count("cannot be read") == 1 and "failed" in err, err


def test_the_command_tells_events(tmp_path, monkeypatch, source, reference, capsys):
    monkeypatch.chdir(tmp_path)
    fast = [
        "--model",
        "tiny",
        "--steps",
        "1",
        "--size",
        "64",
        "--motion",
        "none",
        "--max-frames",
        "3",
    ]
    assert run(["stylize", "video", str(source), "--style", str(reference), *fast, "--json"]) == 0
    out, err = capsys.readouterr()
    events = [json.loads(line) for line in out.splitlines()]
    assert (
        err == "" and events[-1]["event"] == "result" and events[-1]["output"] == "in_stylized.mp4"
    )
    assert {e["event"] for e in events} == {"start", "progress", "result"}
    again = [
        str(source),
        str(source.parent / "absent.mp4"),
        "--style",
        str(reference),
        *fast,
        "-o",
        ".",
    ]
    # a name that is not there is a slip of the pen, not a failure
    assert run(["stylize", "video", *again]) == 2


# --- interruption ------------------------------------------------------------------------------

LONG = FAST | {"motion": "auto", "steps": 2}


def work_in_child(
    source, reference, output, largest=None, killed_after_move=False, save_every=30.0, **more
):
    """One run of the command line's kind with short parts; `largest`: bytes that a file may
    have."""
    install()
    video_run.SEGMENT, video_run.SAVE_EVERY = 6, save_every
    if largest is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    if killed_after_move:
        move = video_run.move
        video_run.move = lambda *a: (move(*a), os.kill(os.getpid(), signal.SIGKILL))
    try:
        stylize_video(source, reference, output, **LONG | more)
    except StdError as error:
        (output.parent / "error.txt").write_text(str(error))
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        os._exit(exit_status()["code"])


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_bit_identical(tmp_path, reference):
    """Six signals, at a random moment each, over as many runs as it takes; some of them save at
    every frame."""
    source = make_clip(tmp_path / "in.mp4", 28, cut_at=17)
    context = server()

    def start(output):
        options = {"save_every": r.choice((0.0, 30.0))}
        how = {"args": (source, reference, output), "kwargs": options}
        child = context.Process(target=work_in_child, **how)
        child.start()
        return child

    r = random.Random(0)
    for i in range(2):  # the first waits for the server
        begin = time.monotonic()
        child = start(tmp_path / "whole.mp4")
        child.join()
        whole = time.monotonic() - begin
        assert child.exitcode == 0
        (tmp_path / "whole.mp4").rename(tmp_path / f"whole{i}.mp4")
    assert same_frames(tmp_path / "whole0.mp4", tmp_path / "whole1.mp4")

    kills, ends = 0, []
    while kills < 6:
        output = tmp_path / f"killed{len(ends)}.mp4"
        child = start(output)
        child.join(timeout=r.uniform(0.1, 0.8) * whole)
        if child.is_alive():
            os.kill(child.pid, r.choice((signal.SIGKILL, signal.SIGINT, signal.SIGTERM)))
            child.join()
            kills += 1
            work = tmp_path / f".{output.name}.std"
            # the run was over but for its empty folder
            if output.exists() and not (work / "result.json").exists():
                assert {f.name for f in work.glob("*")} <= {"lock"}
                shutil.rmtree(work, ignore_errors=True)
                ends.append(output)
        else:
            assert child.exitcode == 0
            ends.append(output)
    if output not in ends:
        child = start(output)
        child.join()
        assert child.exitcode == 0
    for end in {*ends, output}:
        assert same_frames(end, tmp_path / "whole0.mp4")
        assert packets_of(end) == packets_of(source)
    assert not list(tmp_path.glob(".*"))  # no work folder, no temporary file


@pytest.mark.parametrize("more", [{}, {"codec": "png"}], ids=["a file", "a folder"])
def test_killed_between_the_results_move_and_the_tidying_up(tmp_path, reference, more):
    """The same command finds its own result, says so, and tidies up; another one reports that there
    is an output."""
    source, out = make_clip(tmp_path / "in.mp4", 10), tmp_path / ("out" if more else "out.mp4")
    how = {"args": (source, reference, out), "kwargs": {"killed_after_move": True} | more}
    child = server().Process(target=work_in_child, **how)
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL and out.exists()
    before = out.stat().st_mtime_ns
    with pytest.raises(InputError, match=r"begun with another settings\.seed"):
        stylize_video(source, reference, out, **LONG | more | {"seed": 5})
    events = []
    [result] = stylize_video(source, reference, out, on_event=events.append, **LONG | more)
    assert [e["event"] for e in events if e.get("stage") != "load"] == ["result"] and events[
        -1
    ] == result
    assert (result["output"], result["frames"], result["resumed"]) == (str(out), 10, 0)
    assert out.stat().st_mtime_ns == before and not list(tmp_path.glob(".*"))
    if not more:  # a folder that is there is one to write into
        with pytest.raises(InputError, match="exists; pass --overwrite"):
            stylize_video(source, reference, out, **LONG)


def test_an_output_that_another_put_there_is_not_taken_for_ones_own(tmp_path, reference):
    source, out = make_clip(tmp_path / "in.mp4", 10), tmp_path / "out.mp4"
    how = {"args": (source, reference, out), "kwargs": {"killed_after_move": True}}
    child = server().Process(target=work_in_child, **how)
    child.start()
    child.join()
    out.write_bytes(b"another")
    with pytest.raises(InputError, match="exists; pass --overwrite"):
        stylize_video(source, reference, out, **LONG)
    assert out.read_bytes() == b"another"


def test_a_full_disk_is_one_line_and_the_run_goes_on(tmp_path, reference):
    """No file may grow beyond what the state or the result needs: as if the disk were full
    there."""
    source = make_clip(tmp_path / "in.mp4", 12)
    whole = tmp_path / "whole.mp4"
    context, out = server(), tmp_path / "o.mp4"

    def ends_with(*arguments):
        child = context.Process(target=work_in_child, args=(source, reference, *arguments))
        child.start()
        child.join()
        return child.exitcode

    assert ends_with(whole) == 0
    for largest in (1000, 9000, 27000):
        if ends_with(out, largest) == 0:
            break
        message = (tmp_path / "error.txt").read_text()
        assert "\n" not in message and ("cannot write" in message or "disk full" in message)
        assert not out.exists()
    assert out.exists() or ends_with(out) == 0
    assert same_frames(out, whole)
    assert not list(tmp_path.glob(".*"))


def test_ctrl_c_keeps_what_is_done_and_says_so(tmp_path, reference):
    source = make_clip(tmp_path / "in.mp4", 48)
    command = ["stylize", "video", source, "--style", reference, "-o", "o.mp4", "--json"]
    for name, value in LONG.items():
        command += [f"--{name.replace('_', '-')}", value]
    child = Command(*command, cwd=tmp_path)
    for line in child.stdout:
        if json.loads(line).get("stage") == "video":
            child.send_signal(signal.SIGINT)
            break
    out, err = child.communicate()
    assert child.returncode == 130
    assert json.loads(out.splitlines()[-1])["message"] == "interrupted" and "Traceback" not in err
    assert {p.name for p in tmp_path.iterdir()} <= {".o.mp4.std", "style.png", "in.mp4"}
    [result] = stylize_video(source, reference, tmp_path / "o.mp4", **LONG)
    assert result["frames"] == 48
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.mp4", "o.mp4", "style.png"]


def interrupted(source, reference, output, at=8, segment=4, **settings):
    """Leave the work folder of a run that stopped at frame `at`, with segments of such a length."""

    def stop(event):
        if event.get("stage") == "video" and event["frame"] >= at:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(video_run, "SEGMENT", segment)
        stylize_video(source, reference, output, on_event=stop, **FAST | settings)


def test_a_clip_whose_clock_is_reset_resumes_bit_for_bit(tmp_path, monkeypatch, reference):
    """Two recordings of MPEG-TS in one file, the second with times that begin again."""
    parts = [make_clip(tmp_path / f"{i}.ts", 6) for i in range(2)]
    source = tmp_path / "in.ts"
    source.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert len(open_clip(source).offsets) == 2
    monkeypatch.setattr(video_run, "SEGMENT", 4)
    settings = FAST | {"codec": "ffv1"}
    whole = tmp_path / "whole.mkv"
    stylize_video(source, reference, whole, **settings)
    times = [t for t, _ in frames_of(whole)]
    assert len(times) == 12 and times == sorted(set(times))

    for stop_at in (4, 9):  # before the reset, and after it
        resumed = tmp_path / f"resumed{stop_at}.mkv"
        interrupted(source, reference, resumed, stop_at, **settings)
        [result] = stylize_video(source, reference, resumed, **settings)
        assert (result["frames"], result["resumed"]) == (12, stop_at)
        assert same_frames(whole, resumed)
        assert packets_of(whole) == packets_of(resumed)


def test_frames_that_are_decoded_together_resume_bit_for_bit(tmp_path, monkeypatch, reference):
    """As on a GPU: the frames of a window's stride at once, and those of a run that resumes are
    divided otherwise."""
    monkeypatch.setitem(video_pipeline.DECODED, "cpu", 4)
    monkeypatch.setattr(video_run, "SEGMENT", 5)
    decode, together = VideoPipeline.begin_decoding, []

    def counting(pipeline, latents):
        together.append(len(latents))
        assert pipeline.savings.frames == 4
        return decode(pipeline, latents)

    monkeypatch.setattr(VideoPipeline, "begin_decoding", counting)
    source = make_clip(tmp_path / "in.mp4", 22, sound=False)
    settings = FAST | {"motion": "auto", "codec": "ffv1", "cuts": "off", "steps": 2}
    stylize_video(source, reference, tmp_path / "whole.mkv", **settings)
    assert together.count(4) >= 3 and sum(together) == 22
    for stop_at in (2, 9, 15):
        resumed = tmp_path / f"resumed{stop_at}.mkv"
        interrupted(source, reference, resumed, stop_at, segment=5, **settings)
        [result] = stylize_video(source, reference, resumed, **settings)
        assert result["frames"] == 22 and result["resumed"] >= stop_at
        assert same_frames(tmp_path / "whole.mkv", resumed)


def test_another_request_is_refused_by_name(tmp_path, source, reference):
    out = tmp_path / "o.mp4"
    how = FAST | {"max_frames": 12}
    interrupted(source, reference, out, **how)
    for changed, name in (
        ({"seed": 5}, r"settings\.seed: 0, now 5"),
        ({"crf": 30}, r"settings\.crf"),
    ):
        with pytest.raises(InputError, match=name):
            stylize_video(source, reference, out, **how | changed)
    other = make_clip(tmp_path / "in.mp4", 19)
    with pytest.raises(InputError, match=r"input\.sha256"):
        stylize_video(other, reference, out, **how)
    [result] = stylize_video(source, reference, out, **how)
    assert result["resumed"] >= 4 and result["frames"] == 12
    stylize_video(source, reference, tmp_path / "whole.mp4", **how)
    # another rhythm of segments: other key frames, so not the same bits, but the same pictures
    for (_, a), (_, b) in zip(frames_of(out), frames_of(tmp_path / "whole.mp4"), strict=True):
        assert np.abs(a.astype(int) - b).mean() < 6


def test_no_resume_starts_over(tmp_path, source, reference):
    out = tmp_path / "o.mp4"
    interrupted(source, reference, out)
    [result] = stylize_video(
        source, reference, out, resume=False, **FAST | {"seed": 3, "max_frames": 4}
    )
    assert result["resumed"] == 0
    assert not list(tmp_path.glob(".*"))


def test_keep_work_keeps_it(tmp_path, source, reference):
    stylize_video(source, reference, tmp_path / "o.mp4", keep_work=True, max_frames=4, **FAST)
    assert (tmp_path / ".o.mp4.std" / "run.json").exists()


def test_two_runs_on_one_output(tmp_path, source, reference):
    refused = []

    def second(event):
        if event.get("stage") == "video" and not refused:
            refused.append(1)
            with pytest.raises(InputError, match="another run is writing"):
                stylize_video(source, reference, tmp_path / "o.mp4", **FAST)

    how = FAST | {"max_frames": 4}
    stylize_video(source, reference, tmp_path / "o.mp4", on_event=second, **how)
    assert refused


# --- refusals ----------------------------------------------------------------------------------


def silent(path):
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 16000
        out.mux(stream.encode(frame))
        out.mux(stream.encode())


def test_windows_share_less_than_their_frames():
    with pytest.raises(InputError, match="--overlap 8: .*so it can be 0 to 7"):
        _window(VideoSettings(overlap=8), 8)
    assert _window(VideoSettings(overlap=7), 8) == (8, 7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.mp4"], "absent.mp4"),
        (["sound.m4a"], "video"),
        (["cut.mp4"], "cut.mp4"),
        (["in.mp4", "--start", "3"], "--start"),
        (["in.mp4", "--start", "0.5", "--end", "0.2"], "--end"),
        (["in.mp4", "--end", "soon"], "--end"),
        (["in.mp4", "-o", "o.webm", "--codec", "prores"], "prores"),
        (["in.mp4", "-o", "o.xyz"], "xyz"),
        (["in.mp4", "-o", "absent/o.mp4"], "absent"),
        (["in.mp4", "-o", "in.mp4", "--overwrite"], "input"),
        (["in.mp4", "--style", "absent.png"], "absent.png"),
        (["in.mp4", "--motion", "absent"], "motion"),
        (["in.mp4", "--lora", "lora.safetensors"], "lora.safetensors"),
        (["in.mp4", "--overlap", "4"], "name a motion adapter with --motion"),
        (["in.mp4", "--cuts", "absent.txt"], "absent.txt"),
        (["in.mp4", "--output-size", "big"], "--output-size"),
        (["in.mp4", "--codec", "h264_nvenc"], "h264_nvenc"),
        (["in.mp4", "--crf", "99"], "crf"),
    ],
)
def test_a_wrong_request_is_one_line_and_leaves_nothing(
    tmp_path, monkeypatch, source, reference, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.mp4").write_bytes(source.read_bytes())
    (tmp_path / "cut.mp4").write_bytes(source.read_bytes()[:900])
    silent(tmp_path / "sound.m4a")
    if "lora.safetensors" in arguments:
        import torch
        from safetensors.torch import save_file

        layer = "unet.down_blocks.1.attentions.0.proj_in"
        save_file(
            {
                f"{layer}.lora_A.weight": torch.zeros(4, 999),
                f"{layer}.lora_B.weight": torch.zeros(999, 4),
            },
            "lora.safetensors",
        )
    before = {p: p.stat().st_size for p in tmp_path.rglob("*")}
    style = [] if "--style" in arguments else ["--style", str(reference)]
    code = run(["stylize", "video", *arguments, *style, "--model", "tiny", "--size", "64"])
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    line = err.splitlines()[-1]
    assert line.startswith("error: ") and message in line, err
    assert {p: p.stat().st_size for p in tmp_path.rglob("*")} == before
