"""Damaged files through the command line: every one must be taken, or refused in one line.

    python -m tests.bench.reliability.fuzz [--weights N] [--configs N] [--clips N] [--seed S]

A case is a function of its kind, the seed and its number: one small file that the harness made, or
that the tiny pack has, with bits flipped, cut, with other values, keys, types or lengths, or in
another's place. It runs through the public commands in a worker process that is watched from
outside. Counted are

    taken    the command did its work: a flipped bit may only change a value
    refused  one line, exit code 1 or 2
    raw      any other exception, or an error of several lines
    hang     more seconds of processor time than SECONDS
    memory   more memory than MEMORY beyond what a worker has
    died     the worker ended, as by a fault of a library in C

The exit code is 1 if any of the last four is not 0; each such case is printed with what repeats it:
--only KIND:NUMBER.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import psutil

from tests.micro import tiny_with_motion

SECONDS = 60.0
MEMORY = 2 * 2**30
KINDS = ("weights", "configs", "clips")
PACK = Path(tiny_with_motion())
WEIGHTS = sorted(path.relative_to(PACK).as_posix() for path in PACK.rglob("*.safetensors"))
CONFIGS = sorted(path.relative_to(PACK).as_posix() for path in PACK.rglob("*.json"))
EXTREMES = (
    0, -1, 1, 2, 3, 7, 1000, 65536, 2**31, 2**31 - 1, 2**63, 10**12, 10**19, 10**30, 0.5, -0.5,
    1e-300, 1e308,
    float("nan"), float("inf"), "@1e400@", True, False, None, "", "a", "a" * 10_000, "../../x",
    "/etc/passwd",
    "\x1b[31m", "\ud83d", "é\u202e", [], [[]], {}, [1], [1, 2, 3], [10**12] * 3, [0] * 3, [None],
    ["a"], {"a": 1},
    [1] * 5000,
    [[[[[[[[1]]]]]]]],
)  # fmt: skip
DANGEROUS = {
    "auto_map": {"AutoModel": "code.Model"}, "custom_pipeline": "owner/name",
    "attn_implementation": "owner/kernel",
    "_attn_implementation": "owner/kernel", "quantization_config": {"load_in_4bit": True},
    "transformers_weights": "../x",
    "num_labels": 10**9, "return_dict": False, "__class__": "x", "to_dict": 1,
    "tie_word_embeddings": 3,
}  # fmt: skip


# --- damage ------------------------------------------------------------------------------------


def damage_bytes(rng: random.Random, data: bytes, head: int = 4096) -> bytes:
    """Bits flipped, a part cut out, zeroed, repeated, filled at random; the end cut; half of it
    near the beginning."""
    out = bytearray(data)
    reach = len(out) if rng.random() < 0.5 else min(head, len(out))
    at = rng.randrange(reach or 1)
    length = min(rng.choice((1, 2, 8, 64, 1000, 10_000)), len(out) - at)
    match rng.randrange(7):
        case 0 | 1:
            for _ in range(rng.choice((1, 2, 16, 64))):
                out[rng.randrange(reach or 1)] ^= 1 << rng.randrange(8)
        case 2:
            del out[at:]
        case 3:
            del out[at : at + length]
        case 4:
            out[at : at + length] = bytes(length)
        case 5:
            out[at:at] = out[at : at + length]
        case _:
            out[at : at + length] = rng.randbytes(length)
    return bytes(out)


def damage_safetensors(rng: random.Random, data: bytes) -> bytes:
    """The bytes, or the header: names, types, shapes, offsets, metadata, its length."""
    if rng.random() < 0.35:
        return damage_bytes(rng, data, int.from_bytes(data[:8], "little"))
    size = int.from_bytes(data[:8], "little")
    header, rest = json.loads(data[8 : 8 + size]), data[8 + size :]
    keys = [key for key in header if key != "__metadata__"]
    key = rng.choice(keys)
    entry = header[key]
    match rng.randrange(10):
        case 0:
            del header[key]
        case 1:
            header[f"{key}.x"] = header.pop(key)
        case 2:
            entry["dtype"] = rng.choice(
                ("F64", "F32", "BF16", "I64", "BOOL", "U8", "F8_E4M3", "C64", "X", "", 3)
            )
        case 3:
            entry["shape"] = rng.choice(
                ([], [0], [-1], [2**63], [1] * 70, [10**9, 10**9], entry["shape"][::-1], "x", 3)
            )
        case 4:
            entry["data_offsets"] = rng.choice(
                ([0, 0], [5, 2], [0, 2**63], [-1, 1], [0], "x", [0, len(rest)])
            )
        case 5:
            header["__metadata__"] = rng.choice(
                ({"a": "b" * 100_000}, {"a": 1}, [], {"\x1b[2J": "\x1b[31m"}, None, {})
            )
        case 6:  # another tensor's bytes
            entry["data_offsets"] = header[rng.choice(keys)]["data_offsets"]
        case 7:
            other = rng.choice(keys)
            header[key], header[other] = header[other], header[key]
        case 8:  # not a number, somewhere
            start, end = entry["data_offsets"]
            two = rng.choice((b"\x00\x7e", b"\x00\x7c", b"\x00\xfc", b"\xff\xff"))
            at = start + rng.randrange(max(1, (end - start) // 2)) * 2
            rest = rest[:at] + two + rest[at + 2 :]
        case _:
            kept = rng.sample(keys, max(1, len(keys) // 2))
            header = {k: v for k, v in header.items() if k in kept}
    text = json.dumps(header).encode()
    length = (
        len(text)
        if rng.random() < 0.9
        else rng.choice((0, 1, 2**40, 2**63, len(text) - 1, len(text) + 8))
    )
    return length.to_bytes(8, "little") + text + rest


def damage_json(rng: random.Random, data: bytes) -> bytes:
    """Values, keys, nesting, encoding, or the bytes of a JSON file."""
    if rng.random() < 0.15:
        return damage_bytes(rng, data)
    content = json.loads(data)
    inner, key = content, rng.choice(list(content) or ["x"])
    while (
        isinstance(inner.get(key) if isinstance(inner, dict) else inner[key], dict | list)
        and rng.random() < 0.6
    ):
        deeper = inner[key]
        if not deeper:
            break
        inner = deeper
        key = rng.choice(list(inner)) if isinstance(inner, dict) else rng.randrange(len(inner))
    how = rng.randrange(12)
    if how <= 5:
        inner[key] = rng.choice(EXTREMES)
    elif how == 6 and isinstance(inner, dict):
        inner.pop(key, None)
    elif how == 7 and isinstance(inner, dict):
        inner[f"{key}x"] = inner.pop(key, 1)
    elif how == 8:
        name = rng.choice(list(DANGEROUS))
        content[name] = DANGEROUS[name]
    text = json.dumps(content).replace('"@1e400@"', "1e400")
    if how == 9:
        first = json.dumps(next(iter(content), "x"))
        text = text.replace("{", "{" + first + ": 1, ", 1)
    elif how == 10:
        return rng.choice(
            (b"\xef\xbb\xbf" + text.encode(), text.encode("utf-16"), b"", b"null", b"[]", b"{}")
        )
    elif how == 11:
        text = rng.choice(
            (
                "[" * 100_000,
                '{"a":' * 5000 + "1" + "}" * 5000,
                "[" * 500 + "]" * 500,
                " " * 20_000_000,
            )
        )
    return (
        text.encode("utf-8", "surrogatepass")
        if rng.random() < 0.5
        else text.encode("ascii", "replace")
    )


# --- what is damaged ---------------------------------------------------------------------------


def make_files(folder: Path) -> None:
    """Pictures, LoRAs of several spellings, and clips of several containers, by seed alone."""
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(0)
    pictures = [
        Image.fromarray(noise.integers(0, 256, (48, 64, 3), dtype=np.uint8)) for _ in range(5)
    ]
    pictures[0].save(folder / "in.png")
    pictures[1].save(folder / "style.png")
    _make_loras(folder / "loras")
    clips = folder / "clips"
    clips.mkdir()
    for name, codec in (
        ("a.mp4", "libx264"), ("b.mkv", "ffv1"), ("c.mov", "mjpeg"), ("d.avi", "mpeg4"), ("e.ts",
        "mpeg2video"),
        ("f.webm", "libvpx-vp9"), ("g.flv", "flv"), ("h.mpg", "mpeg1video"), ("i.mp4", "libx265"),
    ):  # fmt: skip
        _make_clip(clips / name, codec)
    for suffix in ("gif", "webp", "png"):
        pictures[0].save(
            clips / f"j.{suffix}",
            save_all=True,
            append_images=pictures[1:],
            duration=[40, 80, 0, 200, 40],
            loop=0,
        )
    for suffix in ("jpg", "tiff", "bmp", "png", "webp"):
        pictures[2].save(clips / f"still.{suffix}", exif=_exif())


def _exif() -> "Image.Exif":  # noqa: F821
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6  # orientation
    return exif


def _make_clip(path: Path, codec: str) -> None:
    """Five frames of 64 x 48 with a second of sound, where the container takes both."""
    import av
    import numpy as np

    noise = np.random.default_rng(len(path.name))
    with av.open(str(path), "w") as container:
        pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        video = container.add_stream(codec, rate=25, width=64, height=48, pix_fmt=pixels)
        sound = {"webm": "libopus", "mpg": "mp2", "ts": "mp2", "avi": "pcm_s16le"}.get(
            path.suffix[1:], "aac"
        )
        rate = 48000 if sound == "libopus" else 44100
        audio = container.add_stream(sound, rate=rate, layout="stereo")
        container.metadata["title"] = "noise"
        for i in range(5):
            image = noise.integers(0, 256, (48, 64, 3), dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pixels)
            frame.pts = i
            container.mux(video.encode(frame))
        container.mux(video.encode())
        size = audio.codec_context.frame_size or 1024
        kind = audio.codec_context.format.name
        resampler = av.AudioResampler(format=kind, layout="stereo", rate=rate)
        for i in range(8):
            samples = noise.integers(-3000, 3000, (1, size * 2), dtype=np.int16)
            part = av.AudioFrame.from_ndarray(samples, format="s16", layout="stereo")
            part.sample_rate, part.pts = rate, i * size
            for ready in resampler.resample(part):
                container.mux(audio.encode(ready))
        container.mux(audio.encode())


def _make_loras(folder: Path) -> None:
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    (folder / "peft").mkdir(parents=True)
    with safe_open(PACK / "unet" / "diffusion_pytorch_model.safetensors", "pt") as file:
        names = [name for name in sorted(file.keys()) if ".to_" in name and name.endswith("weight")]
        shapes = {name: file.get_slice(name).get_shape() for name in names}
    torch.manual_seed(0)
    pairs: dict[str, tuple[torch.Tensor, torch.Tensor]] = {
        key.removesuffix(".weight"): (
            torch.randn(2, shape[1]) * 0.01,
            torch.randn(shape[0], 2) * 0.01,
        )
        for key, shape in list(shapes.items())[:12]
    }
    spellings: dict[str, Callable[[str, str], str]] = {
        "diffusers": lambda m, half: f"unet.{m}.lora_{'AB'[half == 'up']}.weight",
        "old": lambda m, half: f"unet.{m}.lora.{half}.weight",
        "kohya": lambda m, half: f"lora_unet_{m.replace('.', '_')}.lora_{half}.weight",
        "peft/adapter_model": lambda m, half: (
            f"base_model.model.{m}.lora_{'AB'[half == 'up']}.weight"
        ),
    }
    for name, spell in spellings.items():
        tensors = {
            spell(m, half): t
            for m, pair in pairs.items()
            for half, t in zip(("down", "up"), pair, strict=True)
        }
        if name == "kohya":
            tensors |= {f"lora_unet_{m.replace('.', '_')}.alpha": torch.tensor(1.0) for m in pairs}
        config = {
            "unet.r": 2,
            "unet.lora_alpha": 2,
            "unet.target_modules": sorted(pairs),
            "unet.alpha_pattern": {},
        }
        metadata = {
            "format": "pt",
            **({"lora_adapter_metadata": json.dumps(config)} if name == "diffusers" else {}),
        }
        save_file(tensors, folder / f"{name}.safetensors", metadata)
    config = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "alpha_pattern": {next(iter(pairs)): 1},
        "use_rslora": False,
    }
    (folder / "peft" / "adapter_config.json").write_text(json.dumps(config))


# --- a case ------------------------------------------------------------------------------------


def make_case(kind: str, seed: int, number: int, files: Path, work: Path) -> list[str]:
    """Write the damaged file of a case into `work`, and return the command that meets it."""
    rng = random.Random(f"{kind} {seed} {number}")
    if kind == "clips":
        return _clip_case(rng, files, work)
    picture = [
        "stylize",
        "image",
        str(files / "in.png"),
        "--size",
        "64",
        "--steps",
        "1",
        "-o",
        str(work / "out.png"),
    ]
    style = ["--style", str(files / "style.png")]
    loras = sorted((files / "loras").rglob("*.safetensors"))
    if kind == "weights" and rng.random() < 0.4:
        origin = rng.choice(loras)
        shutil.copytree(origin.parent, work / "loras")
        file = work / "loras" / origin.name
        file.write_bytes(damage_safetensors(rng, origin.read_bytes()))
        commands = (
            ["models", "inspect", str(file)],
            [
                "models",
                "convert",
                str(file),
                "-o",
                str(work / "out"),
                "--to",
                rng.choice(("kohya", "diffusers", "peft")),
            ],
            [*picture, *style, "--model", "tiny", "--lora", str(file)],
            [*picture, *style, "--model", "tiny", "--lora", str(file), "--allow-partial"],
        )
        return rng.choice(commands)
    if kind == "configs" and rng.random() < 0.1:
        shutil.copytree(files / "loras" / "peft", work / "peft")
        file = work / "peft" / "adapter_config.json"
        file.write_bytes(damage_json(rng, file.read_bytes()))
        return [
            *picture,
            *style,
            "--model",
            "tiny",
            "--lora",
            str(work / "peft" / "adapter_model.safetensors"),
        ]
    name = rng.choice(WEIGHTS if kind == "weights" else CONFIGS)
    pack = _linked(work / "model")
    data = (PACK / name).read_bytes()
    if kind == "weights":
        swapped = (PACK / rng.choice(WEIGHTS)).read_bytes()
        damaged = swapped if rng.random() < 0.1 else damage_safetensors(rng, data)
    elif rng.random() < 0.08:
        name = f"{rng.choice(('unet', 'vae'))}/diffusion_pytorch_model.safetensors.index.json"
        index = {
            "metadata": {"total_size": 1},
            "weight_map": {"a": "diffusion_pytorch_model.safetensors"},
        }
        damaged = damage_json(rng, json.dumps(index).encode())
    else:
        damaged = damage_json(rng, data)
    (pack / name).unlink(missing_ok=True)
    (pack / name).write_bytes(damaged)
    if name.startswith("motion_adapter/"):
        clip = [str(files / "clips" / "b.mkv"), "--size", "64", "--steps", "1", "--max-frames", "2"]
        more = [
            "--motion",
            str(pack / "motion_adapter"),
            "-o",
            str(work / "out.mp4"),
            "--model",
            str(pack),
        ]
        return ["stylize", "video", *clip, *more, *style]
    plan = ["--dry-run", "--no-probe"] if rng.random() < 0.2 else []
    return [*picture, *style, "--model", str(pack), *plan]


def _clip_case(rng: random.Random, files: Path, work: Path) -> list[str]:
    origin = rng.choice(sorted((files / "clips").iterdir()))
    file = work / f"damaged{origin.suffix}"
    file.write_bytes(damage_bytes(rng, origin.read_bytes(), 600))
    common = [
        "--size",
        "64",
        "--steps",
        "1",
        "--model",
        "tiny",
        "--style",
        str(files / "style.png"),
    ]
    if origin.stem == "still":
        if rng.random() < 0.3:  # as a reference
            return [
                "stylize",
                "image",
                str(files / "in.png"),
                *common[:-1],
                str(file),
                "-o",
                str(work / "out.png"),
            ]
        return ["stylize", "image", str(file), *common, "-o", str(work / "out.png")]
    suffix = rng.choice((".mp4", ".mkv", ".mov", ".webm", ".gif", ".webp"))
    more = rng.choice(
        (
            [],
            [],
            ["--start", "0.05"],
            ["--end", "0.1"],
            ["--fps", "10"],
            ["--dry-run", "--no-probe"],
        )
    )
    return ["stylize", "video", str(file), *common, "-o", str(work / f"out{suffix}"), *more]


def _linked(folder: Path) -> Path:
    """The tiny pack as links."""
    for path in PACK.rglob("*"):
        if path.is_file():
            target = folder / path.relative_to(PACK)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path)
    return folder


def run_case(kind: str, seed: int, number: int, files: Path) -> tuple[str, str]:
    """("taken", ""), ("refused", the line) or ("raw", the traceback) of one case, in this
    process."""
    from std_cli.cli.commands import run
    from std_cli.errors import StdError

    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        arguments = make_case(kind, seed, number, files, Path(folder))
        os.environ["STD_DEBUG"] = "1"  # errors are raised
        try:
            with (
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()),
            ):
                code = run([*arguments, *(["-q"] if arguments[0] == "stylize" else [])])
            return (
                ("taken", "")
                if code == 0
                else ("raw", f"exit code {code} without an error: {arguments}")
            )
        except StdError as error:
            line = str(error)
            printed = all(c.isprintable() or c in "\u200c\u200d\u00a0" for c in line)
            return (
                ("refused", line)
                if printed and len(line) < 2100
                else ("raw", f"not one clean line: {line!r}")
            )
        except Exception:  # of any kind: that is what is looked for
            return "raw", traceback.format_exc()
        finally:
            os.environ.pop("STD_DEBUG")


def share_pipelines() -> None:
    """Load the tiny pack once for all clips: it is not what they test."""
    from std_cli.stylize import stylizer

    load, kept = stylizer.load_pipeline, {}  # type: ignore[var-annotated]

    def once(request, on_notice):  # type: ignore[no-untyped-def]
        kind = type(request)
        if kind not in kept:
            kept[kind] = load(request, on_notice)
        return kept[kind]

    stylizer.load_pipeline = once  # type: ignore[assignment]


# --- the watch ---------------------------------------------------------------------------------


def _work(pipe: Connection, files: Path) -> None:
    """A worker: runs what it is sent, until it is sent nothing."""
    import warnings

    warnings.simplefilter("ignore")
    from std_cli.environment import go_offline

    go_offline()
    pipe.send(("ready", ""))
    shared = False
    while (case := pipe.recv()) is not None:
        if case[0] == "clips" and not shared:
            share_pipelines()
            shared = True
        pipe.send(run_case(*case, files))


class Worker:
    """A process of its own, and what it may take."""

    def __init__(self, files: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, files), daemon=True)
        self.process.start()
        theirs.close()
        self.pipe.recv()
        self.cases = 0

    def run(self, kind: str, seed: int, number: int) -> tuple[str, str]:
        watched = psutil.Process(self.process.pid)
        begin, base = sum(watched.cpu_times()[:2]), max(watched.memory_info().rss, 2**30)
        limit = SECONDS + (30 if self.cases == 0 else 0)  # the first imports the libraries
        self.cases += 1
        start = time.monotonic()
        self.pipe.send((kind, seed, number))
        try:
            while not self.pipe.poll(0.05):
                if not self.process.is_alive():
                    return self._stop("died", f"exit code {self.process.exitcode}")
                if (
                    sum(watched.cpu_times()[:2]) - begin > limit
                    or time.monotonic() - start > 10 * limit
                ):
                    return self._stop("hang", f"more than {limit:.0f} s")
                if (size := watched.memory_info().rss - base) > MEMORY:
                    return self._stop("memory", f"{size >> 20} MiB")
            return self.pipe.recv()  # type: ignore[no-any-return]
        except (EOFError, psutil.NoSuchProcess):
            self.process.join(5)
            return self._stop("died", f"exit code {self.process.exitcode}")

    def _stop(self, outcome: str, message: str) -> tuple[str, str]:
        self.process.kill()
        self.process.join()
        return outcome, message


def fuzz(
    counts: dict[str, int], seed: int, files: Path, only: int | None = None
) -> dict[str, Counter[str]]:
    """Run so many cases of each kind; prints what is not right, and returns how many came out
    how."""
    results: dict[str, Counter[str]] = {}
    worker = Worker(files)
    for kind, count in counts.items():
        results[kind] = Counter()
        for number in range(count) if only is None else [only]:
            outcome, message = worker.run(kind, seed, number)
            results[kind][outcome] += 1
            if outcome not in ("taken", "refused") or only is not None:
                print(f"--- {outcome}: --seed {seed} --only {kind}:{number}\n{message}", flush=True)
            # what a worker keeps must not add up
            if not worker.process.is_alive() or worker.cases >= 150:
                worker.process.kill()
                worker = Worker(files)
        print(kind, dict(results[kind]), flush=True)
    worker.process.kill()
    return results


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=int, default=300)
    parser.add_argument("--configs", type=int, default=300)
    parser.add_argument("--clips", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--only", metavar="KIND:NUMBER", help="Run one case, and print what it says."
    )
    options = parser.parse_args()
    counts = {kind: getattr(options, kind) for kind in KINDS if getattr(options, kind)}
    number = None
    if options.only:
        kind, _, text = options.only.partition(":")
        counts, number = {kind: 1}, int(text)
    with tempfile.TemporaryDirectory() as folder:
        make_files(Path(folder))
        begin = time.monotonic()
        results = fuzz(counts, options.seed, Path(folder), number)
    total: Counter[str] = sum(results.values(), Counter())
    print(f"in all {dict(total)} in {time.monotonic() - begin:.0f} s")
    return int(any(total[name] for name in ("raw", "hang", "memory", "died")))


if __name__ == "__main__":
    sys.exit(main())
