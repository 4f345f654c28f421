"""Training data: every caption format, hostile names, crops, damage, and an order that depends on
the seed alone."""

import csv
import io
import json
import os
import tarfile
import threading
import warnings
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image

from std_cli.distill import dataset as samples
from std_cli.distill import shards
from std_cli.distill.dataset import Dataset, find_pictures, fingerprint_samples
from std_cli.distill.find_samples import LINK, MISSING, UNCAPTIONED, UNKNOWN, find_samples
from std_cli.distill.loader import Loader, Order, check_data
from std_cli.errors import InputError, StdError
from std_cli.media.video.clip import Part
from std_cli.media.video.opening import open_clip
from std_cli.media.video.read import read_frames


def picture(path, colour=(200, 30, 60), size=(48, 32)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def gradient(path, size=(64, 48)):
    """Red tells the column, green the row: 3 levels a pixel, blue is 100."""
    x, y = np.meshgrid(3 * np.arange(size[0]), 3 * np.arange(size[1]))
    Image.fromarray(np.stack([x, y, np.full_like(x, 100)], -1).astype(np.uint8)).save(path)
    return path


def clip(path, frames=12, size=(64, 48), rate=25, sar=None, g="5", **options):
    """Grey frames: 20 levels apart, modulo 240."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(f"file:{path}", "w", options=options) as out:
        stream = out.add_stream("libx264", rate=rate, options={"crf": "1", "bf": "2", "g": g})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv444p"
        if sar:
            stream.sample_aspect_ratio = stream.codec_context.sample_aspect_ratio = sar
        for i in range(frames):
            pixels = np.full((size[1], size[0], 3), 20 * i % 240, np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        out.mux(stream.encode())
    return path


def levels(sample):
    """Which frame of `clip` each is."""
    return [round(float((frame + 1) * 127.5) / 20) for frame in sample.pixels.mean((1, 2, 3))]


def tar(path, members):
    """members: (name or TarInfo, bytes)."""
    with tarfile.open(path, "w") as out:
        for name, data in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return path


def png(colour=(1, 2, 3), size=(40, 40)):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def captions(found):
    return [(e.path.name, e.kind, e.caption) for e in found.entries]


def folder_of(tmp_path, count, bad=()):
    """Pictures 00.png... with captions c0...; those in `bad` cannot be read."""
    for i in range(count):
        path = tmp_path / f"{i:02}.png"
        picture(path, (i, 2 * i, 3 * i), (40 + i, 40))
        if i in bad:
            path.write_bytes(b"no picture")
        path.with_suffix(".txt").write_text(f"c{i}")
    return tmp_path


def data_of(folder, size=(32, 32), frames=1, stride=1, flip=0.5, **options):
    return Dataset(find_samples([folder]), size, frames=frames, stride=stride, flip=flip, **options)


def load(
    data, count, lanes=(0,), lane_count=1, batch=1, start_step=0, seed=3, workers=0, **options
):
    """`count` batches."""
    with Loader(
        data, lanes=list(lanes), lane_count=lane_count, batch=batch, start_step=start_step,
        seed=seed,
        workers=workers, **options,
    ) as loader:  # fmt: skip
        return [next(loader) for _ in range(count)]


def same(a, b):
    return (
        (a.positions, a.captions, a.keys) == (b.positions, b.captions, b.keys)
        and torch.equal(a.crop, b.crop)
        and torch.equal(a.pixels, b.pixels)
        and torch.equal(a.original_size, b.original_size)
    )


# --- formats -----------------------------------------------------------------------------------


def test_text_next_to_each_file(tmp_path):
    picture(tmp_path / "b.png").with_suffix(".txt").write_text(
        "\ufeff a  red\npicture ", encoding="utf-8"
    )
    clip(tmp_path / "in" / "a.mp4").with_suffix(".txt").write_text("ein Fluß", encoding="utf-8")
    picture(tmp_path / "bare.png")
    picture(tmp_path / "empty.png").with_suffix(".txt").write_text(" \n")
    picture(tmp_path / ".hidden.png").with_suffix(".txt").write_text("no")
    found = find_samples([tmp_path])
    assert captions(found) == [("b.png", "picture", "a red picture"), ("a.mp4", "clip", "ein Fluß")]
    assert sorted(found.skipped[UNCAPTIONED]) == [
        str(tmp_path / "bare.png"),
        str(tmp_path / "empty.png"),
    ]
    assert found.captioned == 0.5


@pytest.mark.parametrize("key", ["text", "caption"])
@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_metadata(tmp_path, suffix, key):
    for name in ("train/a.png", "train/deep/b.png", "test/c.png", "test/unlisted.png"):
        picture(tmp_path / name)
    rows = {
        "train": [("a.png", "one"), ("deep/b.png", 'two, "quoted"'), ("gone.png", "three")],
        "test": [("c.png", "")],
    }
    for folder, listed in rows.items():
        path = tmp_path / folder / f"metadata.{suffix}"
        if suffix == "jsonl":
            path.write_text(
                "\n".join(json.dumps({"file_name": f, key: t}) for f, t in listed) + "\n\n"
            )
        else:
            with path.open("w", newline="") as file:
                csv.writer(file).writerows([("file_name", key), *listed])
    found = find_samples([tmp_path])
    assert captions(found) == [("a.png", "picture", "one"), ("b.png", "picture", 'two, "quoted"')]
    assert found.skipped == {
        MISSING: [str(tmp_path / "train/gone.png")],
        UNCAPTIONED: [str(tmp_path / "test/c.png"), str(tmp_path / "test/unlisted.png")],
    }


def test_open_sora_plan(tmp_path):
    clip(tmp_path / "videos/a b.mp4")
    clip(tmp_path / "videos/c.mp4")
    rows = [
        {"path": "a b.mp4", "cap": ["A 3.5 m wave. It breaks. Foam.", "other"], "size": 3},
        {"path": "./c.mp4", "cap": "Whole? yes"},
    ]
    (tmp_path / "list.json").write_text(json.dumps(rows))
    found = find_samples([tmp_path / "list.json"], root=tmp_path / "videos")
    assert captions(found) == [("a b.mp4", "clip", "A 3.5 m wave."), ("c.mp4", "clip", "Whole?")]


def test_csv_of_video_ids_and_json_lines(tmp_path):
    clip(tmp_path / "17.mp4")
    picture(tmp_path / "p.png")
    (tmp_path / "a.csv").write_text(
        "videoid,contentUrl,name\n17,https://nowhere,A river\n18,,Gone\n"
    )
    (tmp_path / "b.jsonl").write_text(
        '{"source": "p.png", "caption": "A plate"}\n{"source": "x.npy", "caption": "?"}\n'
    )
    picture(tmp_path / "x.npy.png").rename(tmp_path / "x.npy")
    found = find_samples([tmp_path / "a.csv", tmp_path / "b.jsonl"])
    assert captions(found) == [("17.mp4", "clip", "A river"), ("p.png", "picture", "A plate")]
    assert found.skipped == {
        MISSING: [str(tmp_path / "18.mp4")],
        UNKNOWN: [str(tmp_path / "x.npy")],
    }
    assert captions(find_samples([tmp_path])) == captions(found)  # a folder that holds lists


def test_shards(tmp_path):
    video = clip(tmp_path / "v.mp4").read_bytes()
    link = tarfile.TarInfo("0/link.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    device = tarfile.TarInfo("0/null.png")
    device.type = tarfile.CHRTYPE
    long = "0/" + "n" * 150  # in a header of its own
    (tmp_path / "d").mkdir()
    shard = tar(tmp_path / "d" / "0.tar", [
        ("./0/a.png", png((9, 8, 7))), ("./0/a.txt", b"first\n"), ("0/._a.png", b"resource fork"),
        ("0/b.mp4", video), ("0/b.json", b'{"caption": "second", "more": [1]}'),
        (f"{long}.png", png()), (f"{long}.txt", "dritt\u00e9".encode()), ("0/bare.png", png()),
        (link, b""), (device, b""), ("0/a.cls", b"3"),
    ])  # fmt: skip
    found = find_samples([tmp_path / "d"])
    assert [e.caption for e in found.entries] == ["first", "second", "dritté"]
    assert found.entries[0].path == shard / "0/a.png"
    assert found.skipped == {
        LINK: [str(shard / "0/link.png"), str(shard / "0/null.png")],
        UNCAPTIONED: [str(shard / "0/bare.png")],
    }
    data = Dataset(found, (40, 40), frames=1, stride=1, flip=0)
    first = data.read(0, np.random.default_rng(0))
    assert np.allclose((first.pixels[0, :, 0, 0] + 1) * 127.5, [9, 8, 7], atol=1e-4)
    # nothing was unpacked
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["0.tar", "d", "v.mp4"]


def test_a_clip_in_a_shard_is_that_in_a_file(tmp_path):
    path = clip(tmp_path / "v.mp4", 30)
    shard = tar(
        tmp_path / "a,b: %.tar",
        [("x.png", png()), ("x.txt", b"x"), ("v.mp4", path.read_bytes()), ("v.txt", b"v")],
    )
    [entry] = [e for e in find_samples([shard]).entries if e.kind == "clip"]
    for start in (None, Fraction(1, 2)):
        want = list(read_frames(open_clip(path), start=start))[::3]
        got = list(read_frames(open_clip(entry.path, part=entry.part), start=start, step=3))
        assert len(got) == (10 if start is None else 6)
        assert all(
            a.pts == b.pts and np.array_equal(a.rgb, b.rgb) for a, b in zip(want, got, strict=True)
        )


# --- what is wrong with them -------------------------------------------------------------------


def error_of(call, kind=InputError):
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind and "\n" not in str(caught.value)
    return str(caught.value)


def test_nothing_to_train_on(tmp_path):
    (tmp_path / "empty").mkdir()
    message = error_of(lambda: find_samples([tmp_path / "empty"]))
    assert all(word in message for word in ("metadata.jsonl", "tar", ".txt", "videoid", "'"))
    picture(tmp_path / "bare/a.png")
    picture(tmp_path / "bare/b.png")
    assert "(2 without a caption)" in error_of(lambda: find_samples([tmp_path / "bare"]))
    assert "no such data" in error_of(lambda: find_samples([tmp_path / "nowhere"]))
    assert "no data" in error_of(lambda: find_samples([]))
    picture(tmp_path / "good/a.png").with_suffix(".txt").write_text("a")
    assert "'empty'" in error_of(
        lambda: find_samples([tmp_path / "good", tmp_path / "empty"])
    ).replace(f"{tmp_path}/", "")
    assert "is no list and no tar shard" in error_of(
        lambda: find_samples([picture(tmp_path / "a.png")])
    )


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "metadata.jsonl",
            b'{"file_name": "a.png", "text": "x"}\n{"file_name": \n',
            "line 2 is not JSON",
        ),
        ("metadata.jsonl", b'["a.png", "x"]\n', "line 1: ['a.png', 'x'] is not an object"),
        ("metadata.jsonl", b'{"text": "x"}\n', "line 1: no file is named"),
        ("metadata.jsonl", b'{"file_name": "a.png", "text": 3}\n', "line 1: text is 3"),
        (
            "metadata.jsonl",
            b'{"file_name": ["a.png"], "text": "x"}\n',
            "line 1: file_name is ['a.png']",
        ),
        ("metadata.jsonl", b"\xff\xfe\x00x", "cannot be read as jsonl"),
        ("metadata.jsonl", b"[" * 200_000, "line 1 is not JSON"),
        ("metadata.csv", b'file_name,text\na.png,"x\n', "cannot be read as csv"),
        ("metadata.csv", b"picture,words\na.png,x\n", "line 2: no file is named"),
        (
            "metadata.csv",
            b"file_name,text\na.png," + b"x" * 200_000,
            "field larger than field limit",
        ),
        ("list.json", b'{"path": "a.png"}', "holds no list"),
        ("list.json", b'[{"path": "a.png", "cap": [3]}]', "entry 1: cap is 3"),
        ("list.json", b'[{"path": "a.png"', "cannot be read as json"),
        ("a.txt", b"\xff\xfea\x00", "not text in UTF-8"),
        ("a.txt", b"x" * (1 << 20) + b"x", "too many for a caption"),
    ],
)
def test_bad_caption_files(tmp_path, name, content, said):
    picture(tmp_path / "a.png")
    (tmp_path / name).write_bytes(content)
    message = error_of(lambda: find_samples([tmp_path]))
    assert said in message and name in message and len(message) < 400


@pytest.mark.parametrize(
    "name", ["../secret.png", "in/../../secret.png", "ABSOLUTE", "..", "a\0.png"]
)
@pytest.mark.parametrize("key", ["file_name", "path", "source"])
def test_lists_do_not_lead_out_of_their_folder(tmp_path, key, name):
    secret = picture(tmp_path / "secret.png")
    name = name.replace("ABSOLUTE", str(secret))
    (tmp_path / "root").mkdir()
    path = tmp_path / "root" / "a.jsonl"
    path.write_text(json.dumps({key: name, "text": "x"}))
    message = error_of(lambda: find_samples([path]))
    assert "leads out of" in message or "write the path of a file" in message
    if "leads out of" in message:
        assert "set data.root" in message
    if name == str(secret):
        found = find_samples([path], root=tmp_path)
        assert captions(found) == [("secret.png", "picture", "x")]
        assert found.entries[0].name == "secret.png", "relative to the root"


def test_a_video_id_is_no_path_and_an_absolute_path_may_stay_inside(tmp_path):
    clip(tmp_path / "a.mp4")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.csv").write_text("videoid,name\n../a,x\n")
    assert "leads out of" in error_of(lambda: find_samples([tmp_path / "in/a.csv"]))
    (tmp_path / "b.jsonl").write_text(
        json.dumps({"source": str(tmp_path / "a.mp4"), "caption": "x"})
    )
    assert len(find_samples([tmp_path / "b.jsonl"]).entries) == 1


@pytest.mark.parametrize("name", ["../a.png", "/a.png", "x/../../a.png"])
def test_shards_with_names_that_lead_out(tmp_path, name):
    shard = tar(tmp_path / "0.tar", [("ok.png", png()), ("ok.txt", b"x"), (name, png())])
    assert "leads out of the shard" in error_of(lambda: find_samples([shard]))


@pytest.mark.parametrize("how", ["cut in data", "header", "no tar", "empty", "gzip", "backwards"])
def test_damaged_shards(tmp_path, how):
    shard = tar(
        tmp_path / "0.tar",
        [(f"{i}.{s}", d) for i in range(4) for s, d in (("png", png()), ("txt", b"x"))],
    )
    whole = shard.read_bytes()
    if how == "cut in data":
        shard.write_bytes(whole[: 512 + 40])
    elif how == "header":
        shard.write_bytes(whole[:2048] + b"\x55" * 512 + whole[2560:])
    elif how == "no tar":
        shard.write_bytes(b"x" * 5000)
    elif how == "empty":
        shard.write_bytes(b"")
    elif how == "gzip":
        with tarfile.open(shard, "w:gz") as out:
            out.addfile(tarfile.TarInfo("a.png"))
    else:  # a size below zero: base 256, sign bit set
        header = bytearray(whole[1024:1536])
        header[124:136] = (-1024).to_bytes(12, "big", signed=True)
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        shard.write_bytes(whole[:1024] + header + whole[1536:])
    message = error_of(lambda: find_samples([shard]))
    assert "0.tar" in message


def test_a_pipe_is_not_waited_for(tmp_path):
    if not hasattr(os, "mkfifo"):
        pytest.skip("needs named pipes")
    for name in ("metadata.jsonl", "a.txt", "b.png"):
        os.mkfifo(tmp_path / name)
    picture(tmp_path / "a.png")
    os.mkfifo(tmp_path / "0.tar")
    assert "1 without a caption" in error_of(lambda: find_samples([tmp_path]))
    assert "no such data" in error_of(lambda: find_samples([tmp_path / "0.tar"]))


# --- one sample --------------------------------------------------------------------------------


class Fixed:
    """Draws that are given: integers in order, each below its bound, and random() = 0 or 1 for flip
    or not."""

    def __init__(self, *integers, flip=False):
        self.integers_, self.flip, self.bounds = list(integers), flip, []

    def integers(self, high):
        self.bounds.append(high)
        return self.integers_.pop(0)

    def random(self):
        return 0.0 if self.flip else 0.999

    def permutation(self, count):
        return np.arange(count)


@pytest.mark.parametrize("flip", [False, True])
def test_the_crop_by_hand(tmp_path, flip):
    """64x48 scaled by 1/2 to cover 16x24 is 32x24: 17 places across, one down."""
    gradient(tmp_path / "a.png").with_suffix(".txt").write_text("x")
    rng = Fixed(5, 0, flip=flip)
    sample = data_of(tmp_path, (16, 24)).read(0, rng)
    assert rng.bounds == [17, 1]
    assert sample.original_size == (48, 64) and sample.crop == (0, 5)
    assert sample.pixels.shape == (1, 3, 24, 16) and sample.pixels.dtype == np.float32
    red = (sample.pixels[0, 0, 12] + 1) * 127.5
    # column i of the scaled picture lies at 2 i + 1/2 of the original; mirrored, column i is 31 - i
    columns = np.arange(5, 21) if not flip else 31 - np.arange(5, 21)
    assert np.abs(red - 3 * (2 * columns + 0.5)).max() < 2
    assert np.abs((sample.pixels[0, 2] + 1) * 127.5 - 100).max() < 1e-3


def test_the_crop_is_that_of_the_scaled_picture(tmp_path, photo):
    """Scaling what is cut out equals cutting out of the scaled picture."""
    image = photo.resize((301, 173))
    image.save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("x")
    for seed in range(6):
        sample = data_of(tmp_path, (120, 96), flip=seed % 2).read(0, np.random.default_rng(seed))
        scaled = image.resize((167, 96), Image.Resampling.LANCZOS)
        if seed % 2:
            scaled = scaled.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        top, left = sample.crop
        want = np.asarray(scaled.crop((left, top, left + 120, top + 96)), float)
        assert np.abs((sample.pixels[0].transpose(1, 2, 0) + 1) * 127.5 - want).max() <= 1.01
    crops = {data_of(tmp_path, (120, 96)).read(0, np.random.default_rng(s)).crop for s in range(30)}
    assert len(crops) > 10


def test_small_thin_and_transparent_pictures(tmp_path):
    thin = picture(tmp_path / "a.png", size=(3000, 2))
    Image.new("RGBA", (8, 8), (10, 20, 30, 0)).save(tmp_path / "b.png")
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(name)
    data = data_of(tmp_path, (64, 48))
    a, b = (data.read(i, np.random.default_rng(0)) for i in range(2))
    assert a.original_size == (2, 3000) and a.crop[0] == 0 and 0 <= a.crop[1] <= 24 * 3000 - 64
    assert thin.exists() and a.pixels.shape == b.pixels.shape == (1, 3, 48, 64)
    assert np.all(b.pixels == 1)


@pytest.mark.parametrize("stride", [1, 3])
def test_frames_of_a_clip(tmp_path, stride):
    clip(tmp_path / "a.mp4").with_suffix(".txt").write_text("x")
    data = data_of(tmp_path, (32, 32), frames=3, stride=stride)
    starts = set()
    for seed in range(40):
        sample = data.read(0, np.random.default_rng(seed))
        got = levels(sample)
        starts.add(got[0])
        assert got == [got[0], got[0] + stride, got[0] + 2 * stride]
        assert sample.pixels.shape == (3, 3, 32, 32) and sample.original_size == (48, 64)
    assert starts == set(range(12 - 2 * stride))


def test_one_frame_of_a_clip(tmp_path):
    clip(tmp_path / "a.mp4").with_suffix(".txt").write_text("x")
    data = data_of(tmp_path)
    assert {levels(data.read(0, np.random.default_rng(seed)))[0] for seed in range(80)} == set(
        range(12)
    )


@pytest.mark.parametrize(
    ("frames", "want"), [(12, [0, 1, 2, 3]), (6, None), (4, [0, 1, 2, 3]), (8, [0, 2, 4, 6])]
)
def test_short_clips(tmp_path, frames, want):
    """4 frames, 4 apart, take 13; with 8 there is room for a stride of 2."""
    want = {12: [0, 3, 6, 9], 6: [0, 1, 2, 3]}.get(frames, want)
    clip(tmp_path / "a.mp4", frames).with_suffix(".txt").write_text("x")
    data = data_of(tmp_path, frames=4, stride=4)
    seen = [levels(data.read(0, np.random.default_rng(seed))) for seed in range(8)]
    assert want in seen and all(np.diff(s).tolist() == np.diff(want).tolist() for s in seen)


def test_a_clip_with_too_few_frames(tmp_path):
    clip(tmp_path / "a.mp4", 3).with_suffix(".txt").write_text("x")
    data = data_of(tmp_path, frames=4, stride=2)
    assert "has only 3 frames, fewer than 4" in error_of(
        lambda: data.read(0, np.random.default_rng(0))
    )


def test_a_container_that_does_not_know_its_length(tmp_path):
    """Matroska for a live stream; and frames at uneven times, where the last ones fall short of the
    count."""
    clip(tmp_path / "a.mkv", 5, live="1").with_suffix(".txt").write_text("x")
    assert open_clip(tmp_path / "a.mkv").duration is None
    data = data_of(tmp_path, frames=3, stride=4)
    assert levels(data.read(0, np.random.default_rng(0))) == [0, 2, 4]
    assert "only 5 frames" in error_of(
        lambda: data_of(tmp_path, frames=6).read(0, np.random.default_rng(0))
    )


def test_frames_at_uneven_times(tmp_path):
    """Ten frames in the first 0.4 seconds, then one after 10: most starts leave less than is
    needed."""
    with av.open(str(tmp_path / "a.mp4"), "w", options={"video_track_timescale": "600"}) as out:
        stream = out.add_stream("libx264", rate=25, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv444p"
        stream.codec_context.time_base = Fraction(1, 600)
        for i in range(11):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 * i, np.uint8), "rgb24")
            frame.pts, frame.time_base = 24 * i if i < 10 else 6000, Fraction(1, 600)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    (tmp_path / "a.txt").write_text("x")
    data = data_of(tmp_path, frames=4, stride=2)
    for seed in range(12):
        got = levels(data.read(0, np.random.default_rng(seed)))
        assert np.diff(got).tolist() == [2, 2, 2]


def test_pixels_that_are_not_square(tmp_path):
    clip(tmp_path / "a.mp4", size=(32, 48), sar=Fraction(2)).with_suffix(".txt").write_text("x")
    rng = Fixed(9, 0, 0)
    sample = data_of(tmp_path, (16, 24)).read(0, rng)
    assert sample.original_size == (48, 64) and sample.crop == (0, 9) and rng.bounds[:2] == [17, 1]


def test_pictures_are_left_out_of_video_training(tmp_path):
    folder_of(tmp_path, 3)
    assert "give clips" in error_of(lambda: data_of(tmp_path, frames=4))
    clip(tmp_path / "v.mp4").with_suffix(".txt").write_text("v")
    assert [e.caption for e in data_of(tmp_path, frames=4).entries] == ["v"]


def test_style_references(tmp_path):
    (tmp_path / "data").mkdir()
    data = folder_of(tmp_path / "data", 4)
    for i in range(5):
        picture(tmp_path / "styles" / f"{i}.png", (50 * i, 0, 0))
    (tmp_path / "styles/2.png").write_bytes(b"broken")
    references = find_pictures(tmp_path / "styles")
    notices = []
    batches = load(data_of(data, references=references), 30, workers=2, on_notice=notices.append)
    chosen = [b.references[0].getpixel((0, 0))[0] // 50 for b in batches]
    assert set(chosen) == {0, 1, 3, 4}
    again = load(data_of(data, references=references), 10, start_step=20)
    assert [b.references[0].getpixel((0, 0))[0] // 50 for b in again] == chosen[20:]
    assert len(notices) == 1 and "2.png" in notices[0]
    assert load(data_of(data), 1)[0].references is None
    assert "styles" in error_of(lambda: find_pictures(tmp_path / "styles/0.png"))
    for path in references:
        path.write_bytes(b"broken")
    assert "style reference" in error_of(
        lambda: load(data_of(data, references=references), 1), StdError
    )


# --- order -------------------------------------------------------------------------------------


def test_order():
    order = Order(7, 5)
    epochs = [[order.at(7 * e + i) for i in range(7)] for e in range(4)]
    for e, epoch in enumerate(epochs):
        assert {k for k, _ in epoch} == {e} and sorted(i for _, i in epoch) == list(range(7))
    assert len({tuple(i for _, i in epoch) for epoch in epochs}) > 1
    flat = [pair for epoch in epochs for pair in epoch]
    assert [Order(7, 5).at(p) for p in range(28)] == flat
    assert [Order(7, 6).at(p) for p in range(28)] != flat


def mixed(tmp_path):
    """Pictures and clips in a folder and in a shard, one of each broken."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    folder_of(folder, 6, bad=[2])
    for name in ("x", "y"):
        clip(folder / f"{name}.mp4").with_suffix(".txt").write_text(name)
    (folder / "y.mp4").write_bytes(b"\0" * 3000)
    shard = tar(
        tmp_path / "s.tar",
        [
            (f"{i}.{s}", d)
            for i in range(3)
            for s, d in (("png", png((i, i, i))), ("txt", b"t%d" % i))
        ],
    )
    return Dataset(find_samples([folder, shard]), (32, 32), frames=1, stride=1, flip=0.5)


def test_the_workers_do_not_matter(tmp_path):
    want_notices, notices = [], []
    want = load(mixed(tmp_path), 12, batch=3, on_notice=want_notices.append)
    assert len(want_notices) == 2 and all(len({*b.positions}) == 3 for b in want)
    data = Dataset(
        find_samples([tmp_path / "mixed", tmp_path / "s.tar"]),
        (32, 32),
        frames=1,
        stride=1,
        flip=0.5,
    )
    for workers in (1, 4):
        notices.clear()
        got = load(data, 12, batch=3, workers=workers, on_notice=notices.append)
        assert all(map(same, got, want)) and notices == want_notices
    assert not same(load(data, 1, batch=3, seed=4)[0], want[0])


def test_resumed_equals_uninterrupted(tmp_path):
    data = mixed(tmp_path)
    whole = load(data, 24, lanes=[0, 1], lane_count=2, batch=2, workers=2)
    for step in (1, 5, 7):
        again = load(
            data, 24 - 2 * step, lanes=[0, 1], lane_count=2, batch=2, workers=2, start_step=step
        )
        assert all(map(same, again, whole[2 * step :]))


def test_two_ranks_are_one_with_twice_the_lanes(tmp_path):
    data = data_of(folder_of(tmp_path, 24))
    one = load(data, 12, lanes=[0, 1, 2, 3], lane_count=4, batch=2)  # 3 steps: an epoch
    ranks = [load(data, 6, lanes=lanes, lane_count=4, batch=2) for lanes in ([0, 1], [2, 3])]
    for step in range(3):
        both = ranks[0][2 * step : 2 * step + 2] + ranks[1][2 * step : 2 * step + 2]
        assert all(map(same, both, one[4 * step : 4 * step + 4]))
    assert [b.positions for b in one] == [[i, i + 1] for i in range(0, 24, 2)]
    for batches in (one, ranks[0] + ranks[1]):
        assert sorted(c for b in batches for c in b.captions) == sorted(f"c{i}" for i in range(24))


def fresh(step, lane):
    """0, 1 or 2 of 2."""
    return (3 * step + lane) % 3


def taken(lanes, steps):
    return {lane: sum(fresh(step, lane) for step in range(steps)) for lane in lanes}


def test_only_what_is_needed_is_read(tmp_path, opened):
    data = data_of(folder_of(tmp_path, 30))
    how = {"lane_count": 3, "batch": 2, "fresh": fresh}
    one = load(data, 12, lanes=[0, 1, 2], **how)
    assert [len(b.captions) for b in one] == 4 * [0, 1, 2]
    assert sum(opened.values()) == 12, "of 24"
    assert one[0].pixels.shape == (0, 1, 3, 32, 32) and one[0].crop.shape == one[
        0
    ].original_size.shape == (0, 2)
    # lane 1 of 3 has, two by two, the positions 2, 3, 8, 9, 14, 15...
    assert [b.positions for b in one[1::3]] == [[2], [3], [8], [9]]
    assert [b.positions for b in one[2::3]] == [[4, 5], [10, 11], [16, 17], [22, 23]]
    for workers in (0, 3):
        ranks = [
            load(data, 4 * len(lanes), lanes=lanes, workers=workers, **how)
            for lanes in ([0, 1], [2])
        ]
        for step in range(4):
            both = ranks[0][2 * step : 2 * step + 2] + ranks[1][step : step + 1]
            assert all(map(same, both, one[3 * step : 3 * step + 3]))
        again = load(
            data,
            6,
            lanes=[0, 1, 2],
            workers=workers,
            start_step=2,
            taken=taken([0, 1, 2], 2),
            **how,
        )
        assert all(map(same, again, one[6:]))
    never = load(data, 500, workers=2, fresh=lambda step, lane: 0)
    assert not any(b.captions for b in never)


def test_shapes_and_true_sizes(tmp_path):
    data = data_of(folder_of(tmp_path, 5), (24, 32))
    for batch in load(data, 3, batch=4):
        assert batch.pixels.shape == (4, 1, 3, 32, 24) and batch.pixels.dtype == torch.float32
        assert (
            batch.crop.shape == (4, 2)
            and batch.crop.dtype == batch.original_size.dtype == torch.int64
        )
        for caption, (height, width) in zip(
            batch.captions, batch.original_size.tolist(), strict=True
        ):
            assert (height, width) == (40, 40 + int(caption[1:]))
        assert batch.pixels.abs().max() <= 1


def test_lanes_must_exist(tmp_path):
    data = data_of(folder_of(tmp_path, 2))
    for lanes in ([], [2], [0, 0], [-1]):
        with pytest.raises(ValueError, match="lanes"):
            load(data, 1, lanes=lanes, lane_count=2)


def test_closing_stops_the_threads(tmp_path):
    def threads():
        return [t for t in threading.enumerate() if t.name.startswith("data")]

    data = data_of(folder_of(tmp_path, 8))
    loader = Loader(data, lanes=[0], lane_count=1, batch=1, start_step=0, seed=0, workers=3)
    next(loader)
    assert threads()
    loader.close()
    assert not threads() and list(loader) == []
    with pytest.raises(KeyError), Loader(
        data, lanes=[0], lane_count=1, batch=1, start_step=0, seed=0, workers=3
    ) as loader:  # fmt: skip
        next(loader)
        raise KeyError
    assert not threads()


# --- damage ------------------------------------------------------------------------------------


@pytest.fixture
def opened(monkeypatch):
    """How often each picture is opened."""
    counts = {}
    read = samples.read_picture

    def counting(path, *rest):
        counts[path.name] = counts.get(path.name, 0) + 1
        return read(path, *rest)

    monkeypatch.setattr(samples, "read_picture", counting)
    return counts


def test_a_broken_file_is_replaced_named_once_and_not_opened_again(tmp_path, opened):
    data = data_of(folder_of(tmp_path, 6, bad=[1, 4]))
    notices = []
    batches = load(data, 30, workers=0, on_notice=notices.append)  # five epochs
    assert (
        len(notices) == 2
        and "'" in notices[0]
        and {n.split("/")[-1][:6] for n in notices} == {"01.png", "04.png"}
    )
    assert opened["01.png"] == opened["04.png"] == 1
    order = Order(6, 3)
    for batch in batches:
        index = order.at(batch.positions[0])[1]
        assert batch.captions[0] == f"c{index}" or index in (1, 4)
        assert batch.captions[0] not in ("c1", "c4")
    with Loader(data, lanes=[0], lane_count=1, batch=6, start_step=0, seed=3, workers=0) as loader:
        next(loader)
        assert sorted(loader.failed) == [str(tmp_path / "01.png"), str(tmp_path / "04.png")]
        assert len(loader.seen) > 2


def test_too_many_broken_files(tmp_path):
    data = data_of(folder_of(tmp_path, 40, bad=range(28)))
    messages = {error_of(lambda w=w: load(data, 200, workers=w), StdError) for w in (0, 3)}
    [message] = messages
    assert "cannot be used; check the data" in message and ".png'" in message
    failed, seen, *_ = [int(word) for word in message.split() if word.isdigit()]
    assert failed > 0.5 * seen >= 10


@pytest.mark.parametrize("workers", [0, 2])
def test_all_files_broken(tmp_path, workers, opened):
    data = data_of(folder_of(tmp_path, 5, bad=range(5)))
    message = error_of(lambda: load(data, 1, workers=workers), StdError)
    assert (
        message.startswith("5 of 5 training files")
        and "is not a picture that can be read" in message
    )
    if not workers:
        assert set(opened.values()) == {1}


def test_tries_run_out(tmp_path, opened):
    data = data_of(folder_of(tmp_path, 30, bad=range(30)))
    message = error_of(lambda: load(data, 1, max_tries=3), StdError)
    assert message.startswith("3 of 3") and sum(opened.values()) == 3


def test_a_folder_of_clips_that_cannot_be_read(tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.mp4").write_bytes(bytes(range(256)) * 20)
        (tmp_path / f"{i}.txt").write_text("x")
    message = error_of(lambda: load(data_of(tmp_path, frames=8, stride=4), 1, workers=2), StdError)
    assert message.startswith("4 of 4") and "cannot be read as a video" in message


def test_damage_within_a_clip_does_not_condemn_it(tmp_path):
    """Starts that cannot be decoded are replaced; whether others of that clip are used does not
    depend on the past."""
    for name in ("a", "b"):
        clip(tmp_path / f"{name}.mp4", 90, g="1").with_suffix(".txt").write_text(name)
    with av.open(str(tmp_path / "a.mp4")) as container:
        entries = [(e.pos, e.size) for e in container.streams.video[0].index_entries]
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    for pos, size in entries[20:80]:
        data[pos : pos + size] = bytes(size)
    (tmp_path / "a.mp4").write_bytes(data)

    notices = []
    whole = load(data_of(tmp_path), 60, on_notice=notices.append)
    assert len(notices) == 1 and "more than 25 frames in a row" in notices[0]
    used = [b.captions[0] for b in whole].count("a")
    assert 5 < used < 25
    assert all(map(same, load(data_of(tmp_path), 25, start_step=35), whole[35:]))


def test_a_shard_that_became_shorter(tmp_path):
    shard = tar(tmp_path / "0.tar", [("a.png", png()), ("a.txt", b"x")])
    data = data_of(shard)
    shard.write_bytes(shard.read_bytes()[:600])
    assert "cut short" in error_of(lambda: data.read(0, np.random.default_rng(0)))
    with pytest.raises(EOFError):
        shards.read_part(Part(shard, 512, 1000))
    shard.unlink()
    assert "No such file" in error_of(lambda: data.read(0, np.random.default_rng(0)))


def test_pictures_are_read_the_same_in_threads(tmp_path, recwarn):
    """Pillow warns of some; the process's filters stay as they are."""
    folder_of(tmp_path, 6)
    for i in range(3):  # a palette with transparency in bytes, of which Pillow warns
        image = Image.new("P", (40, 40), 1)
        image.putpalette([i * 9] * 768)
        image.save(tmp_path / f"{i:02}.png", transparency=bytes(range(256)))
    before = [f for f in warnings.filters if f[0] == "error"]
    batches = load(data_of(tmp_path), 24, workers=4)
    assert {c for b in batches for c in b.captions} == {f"c{i}" for i in range(6)}
    assert [f for f in warnings.filters if f[0] == "error"] == before and not recwarn.list


# --- the dry run -------------------------------------------------------------------------------


def test_check(tmp_path):
    data = folder_of(tmp_path, 10, bad=[3])
    picture(tmp_path / "bare.png")
    clip(tmp_path / "v.mp4").with_suffix(".txt").write_text("v")
    report = check_data(data_of(data), 100)
    assert (report.pictures, report.clips, report.sampled) == (10, 1, 11)
    assert report.captioned == pytest.approx(11 / 12) and list(report.skipped) == [UNCAPTIONED]
    assert report.sizes == ((40, 40), (46, 40), (64, 48))  # 40 to 49 without 43, and the clip
    assert (
        list(report.failed) == [str(tmp_path / "03.png")]
        and "not a picture" in report.failed[str(tmp_path / "03.png")]
    )
    some = check_data(data_of(data), 4)
    assert some.sampled == 4 and some == check_data(data_of(data), 4)


def test_the_fingerprint_tells_other_data(tmp_path):
    folder_of(tmp_path, 3)
    before = fingerprint_samples(data_of(tmp_path).entries)
    assert fingerprint_samples(data_of(tmp_path).entries) == before
    (tmp_path / "01.txt").write_text("other")
    assert fingerprint_samples(data_of(tmp_path).entries) != before


@pytest.mark.parametrize("kind", ["folder", "metadata", "list", "shard"])
def test_the_fingerprint_is_of_the_data_not_of_where_they_lie(tmp_path, kind, monkeypatch):
    first = tmp_path / "first"
    for name in ("a", "in/a"):
        picture(first / f"{name}.png").with_suffix(".txt").write_text(name)
    if kind == "metadata":
        rows = [{"file_name": "a.png", "text": "one"}, {"file_name": "in/a.png", "text": "two"}]
        (first / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = first
    if kind == "list":
        source = first / "list.csv"
        # an absolute path inside
        source.write_text(f"source,caption\na.png,one\n{first / 'in/a.png'},two\n")
    if kind == "shard":
        source = tar(first / "0.tar", [("a.png", png()), ("a.txt", b"x")])

    def of(path):
        return fingerprint_samples(find_samples([path]).entries)

    before = of(source)
    monkeypatch.chdir(first)
    assert of(os.path.relpath(source)) == before
    os.symlink(first, tmp_path / "link")
    assert kind == "list" or of(tmp_path / "link" / source.relative_to(first)) == before
    first.rename(tmp_path / "second")
    moved = tmp_path / "second" / source.relative_to(first)
    if kind == "list":
        moved.write_text(moved.read_text().replace(str(first), str(tmp_path / "second")))
    assert of(moved) == before
    if kind != "shard":
        picture(tmp_path / "second/a.png", size=(49, 32))  # another picture of the same name
    else:
        tar(moved, [("a.png", png(size=(41, 40))), ("a.txt", b"x")])
    assert of(moved) != before
    if kind == "folder":
        (tmp_path / "second/in").rename(tmp_path / "second/on")
        assert of(moved) != of(tmp_path / "second/on")
