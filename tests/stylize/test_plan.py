"""What a plan says: work counted by hand, memory against SDXL's own shapes and the resident memory
of real runs."""

import json
import math
import os
import socket
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import psutil
import pytest
import torch
from diffusers import AutoencoderKL, MotionAdapter, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from std_cli.cli.commands import run
from std_cli.diffusion import memory
from std_cli.diffusion.memory import (
    activation_bytes,
    loading_bytes,
    model_parameters,
    offload_parts,
    weight_bytes,
)
from std_cli.errors import InputError
from std_cli.stylize import memory_needs
from std_cli.stylize.plan import plan_images, plan_video
from std_cli.weights.motion import HOTSHOT_CONFIG, resolve_motion
from std_cli.weights.resolve import ModelFiles, resolve_model, weight_files
from tests.micro import micro, tiny_with_motion
from tests.stylize.test_videos import make_clip
from tests.weights.sdxl import TEXT, TEXT_2, UNET, VAE, VISION

pytestmark = pytest.mark.long

GIB = 2**30
ROOT = Path(__file__).parents[2]
FAST = {"model": micro(), "size": 64, "device": "cpu"}


@pytest.fixture(autouse=True)
def no_downloads(tmp_path, monkeypatch):
    """An empty cache, and no plan opens a connection."""

    def connect(*args):
        raise AssertionError("a plan asked the network")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(socket.socket, "connect", connect)


@pytest.fixture(autouse=True)
def counted_once(monkeypatch):
    """What networks of one shape take is counted once for all tests: it takes seconds."""

    def remembered(*configs_and_size, **how):
        key = json.dumps([configs_and_size, how], sort_keys=True)
        if key not in COUNTED:
            COUNTED[key] = activation_bytes(*configs_and_size, **how)
        return COUNTED[key]

    monkeypatch.setattr(memory_needs, "activation_bytes", remembered)


COUNTED = {}


@pytest.fixture(autouse=True)
def no_half_precision(monkeypatch):
    """A processor without arithmetic in half precision, whatever this one is."""
    monkeypatch.setattr(memory_needs, "has_arithmetic", lambda device, dtype: device.type != "cpu")


@pytest.fixture
def main_memory(monkeypatch):
    """Lets the system report so much free main memory."""

    def report(gib):
        reported = SimpleNamespace(available=int(gib * GIB), total=int(gib * GIB))
        monkeypatch.setattr(psutil, "virtual_memory", lambda: reported)

    return report


# --- memory ------------------------------------------------------------------------------------


def test_the_table_is_sdxl():
    """The parameters of the networks as published, built without their weights; IP-Adapter-plus by
    hand."""

    def count(module):
        return sum(p.numel() for p in module.parameters())

    with torch.device("meta"):
        assert count(UNet2DConditionModel.from_config(UNET)) == memory.SDXL["unet"]
        assert count(UNet2DConditionModel.from_config(memory.SDXL_UNET)) == memory.SDXL["unet"]
        assert count(AutoencoderKL.from_config(VAE)) == memory.SDXL["vae"]
        assert count(AutoencoderKL.from_config(memory.SDXL_VAE)) == memory.SDXL["vae"]
        assert count(CLIPTextModel(CLIPTextConfig(**TEXT))) == memory.SDXL["text_encoder"]
        assert (
            count(CLIPTextModelWithProjection(CLIPTextConfig(**TEXT_2)))
            == memory.SDXL["text_encoder_2"]
        )
        assert (
            count(CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION)))
            == memory.SDXL["image_encoder"]
        )
        assert count(MotionAdapter.from_config(HOTSHOT_CONFIG)) == memory.SDXL["motion"]
    keys_and_values = 2 * 2048 * (10 * 640 + 60 * 1280)  # of the cross attentions
    # two norms, attention, norm, MLP
    layer = 4 * 1280 + 1280 * (1280 + 2560 + 1280) + 2 * 1280 + 2 * 1280 * 5120
    around = 16 * 1280 + (1280 + 1) * 1280 + (1280 + 1) * 2048 + 2 * 2048  # queries, in, out, norm
    assert keys_and_values + 4 * layer + around == memory.SDXL["ip_adapter"]


def test_parameters_come_from_the_files(tmp_path):
    files = resolve_model(tiny_with_motion())
    motion = resolve_motion("auto", files)
    counts = model_parameters(files, motion)
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(
            UNet2DConditionModel.load_config(files.base / "unet")
        )
        adapter = MotionAdapter.from_config(motion.config)
    assert counts["unet"] == sum(p.numel() for p in unet.parameters())
    assert counts["motion"] == sum(t.numel() for t in adapter.state_dict().values())
    assert counts.keys() == memory.SDXL.keys()

    starts = (
        "model.diffusion_model.",
        "first_stage_model.",
        "conditioner.embedders.0.",
        "conditioner.embedders.1.",
    )
    save_file(
        {f"{start}a": torch.zeros(n + 1, 10) for n, start in enumerate(starts)},
        tmp_path / "one.safetensors",
    )
    one = ModelFiles(
        "one",
        tmp_path / "one.safetensors",
        True,
        None,
        None,
        files.ip_adapter,
        files.image_encoder,
        {},
    )
    assert [model_parameters(one)[part] for part in weight_files(one)] == [10, 20, 30, 40]
    assert model_parameters(one)["ip_adapter"] == sum(
        t.numel() for t in load_file(files.ip_adapter).values()
    )


MEASURED = """
import json, sys
import torch
from PIL import Image
from std_cli.config import image_settings
from std_cli.diffusion.memory import PROCESS, activation_bytes, loading_bytes
from std_cli.diffusion.memory import model_parameters, network_configs
from std_cli.diffusion.video_pipeline import VideoPipeline
from std_cli.weights.motion import resolve_motion
from std_cli.weights.resolve import resolve_model
from tests.micro import tiny_with_motion

def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))

def measured(work):
    work()  # what is prepared once is not counted
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the high water mark falls to what is resident now
    before = status("VmRSS")
    work()
    return status("VmHWM") - before

files, size = resolve_model(tiny_with_motion()), (128, 64)
motion = resolve_motion("auto", files)
pipeline = VideoPipeline(files, None, torch.device("cpu"), torch.float32, motion=motion)
pipeline.set_style([Image.new("RGB", (64, 64))], [1.0], 1.0, "all")
conditions = pipeline.prepare(image_settings({"cfg": 4.0}, files.pack), "quickstart", size)
picture = Image.new("RGB", size)
latent = pipeline.encode(picture)
window = torch.stack([latent] * 8, 1)[None]
estimated = activation_bytes(
    *network_configs(files), size, dtype="fp32", frames=8, motion_config=motion.config, tokens=32
)
works = {"unet": lambda: pipeline.predict(conditions, window, [0], [range(8)]),
         "vae_encode": lambda: pipeline.encode(picture),
         "vae_decode": lambda: pipeline.decode(latent)}
found = {part: (estimated[part], measured(work)) for part, work in works.items()}
weights = loading_bytes(model_parameters(files, motion), "fp32")
print(json.dumps(found | {"resident": (PROCESS + weights, status("VmRSS"))}))
"""


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="needs the resident memory of Linux"
)
def test_activations_are_what_real_runs_take():
    # so that freed memory returns to the system and is counted again
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEASURED], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for part, (estimated, measured) in json.loads(done.stdout.splitlines()[-1]).items():
        assert estimated == pytest.approx(measured, rel=0.05 if part == "unet" else 0.2), part


def test_activations_grow_with_size_frames_guidance_and_precision():
    files = resolve_model(tiny_with_motion())
    configs, motion = memory.network_configs(files), resolve_motion("auto", files).config

    def of(size=(128, 128), **options):
        return activation_bytes(*configs, size, **{"dtype": "fp32"} | options)

    one = of()
    assert of(dtype="bf16")["vae_decode"] * 2 == one["vae_decode"]
    assert of(size=(256, 256))["unet"] == pytest.approx(4 * one["unet"], rel=0.03)
    assert of(guided=False)["unet"] == pytest.approx(one["unet"] / 2, rel=0.05)
    window = of(motion_config=motion, frames=8)["unet"]
    assert of(motion_config=motion, frames=16)["unet"] == pytest.approx(2 * window, rel=0.05)
    assert window > 8 * one["unet"]


def test_sdxl_in_fp16():
    """The VAE in fp32, and no matrix of attention weights is held: 2 x 10 x 4096 x 4096 x 2
    bytes are 0.6 GiB."""
    found = activation_bytes(UNET, VAE, (1024, 1024), dtype="fp16", vae_in_fp32=True)
    assert found["unet"] < 0.4 * GIB
    # 128 channels of 1024 x 1024 in fp32 are 0.5 GiB: three at the least are held where the VAE is
    # widest
    assert 1.5 * GIB <= found["vae_encode"] <= found["vae_decode"] <= 4 * GIB


def test_what_each_offload_mode_holds():
    weights = {
        "unet": 50,
        "motion": 5,
        "ip_adapter": 8,
        "vae": 3,
        "text_encoder": 2,
        "text_encoder_2": 13,
    }
    weights["image_encoder"] = 12
    activations = {"unet": 10, "vae_encode": 25, "vae_decode": 30}

    def total(**how):
        return {
            mode: sum(parts.values())
            for mode, parts in offload_parts(weights, activations, **how).items()
        }

    assert total(layer=4) == {
        "none": 66 + 27 + 30, "model": 76, "group": 3 + 8 + 30, "sequential": 30,
    }  # fmt: skip
    assert total(batch=4, encoders_leave=True) == {
        "none": 66 + 40, "model": 106, "group": 43, "sequential": 40,
    }  # fmt: skip
    assert total(together=True)["none"] == 66 + 27 + 65
    parts = offload_parts(weights, activations, encoders_leave=True)
    assert parts["none"] == {"unet": 50, "motion": 5, "ip_adapter": 8, "vae": 3, "at_work": 30}
    assert parts["model"] == {"unet": 50, "motion": 5, "ip_adapter": 8, "vae": 3, "at_work": 10}
    assert parts["sequential"] == {"at_work": 30}
    large = activations | {"vae_decode": 80}
    assert offload_parts(weights, large)["model"] == {"vae": 3, "at_work": 80}
    parameters = {"unet": 100, "vae": 10}
    assert weight_bytes(parameters, "fp16", vae_in_fp32=True) == {"unet": 200, "vae": 40}
    assert loading_bytes(parameters, "fp16") == 220
    assert loading_bytes(parameters | {"motion": 20}, "fp16") == 260


# --- plans -------------------------------------------------------------------------------------


def test_a_plan_of_pictures(tmp_path, photo, picture, reference):
    photo.resize((64, 96)).save(tmp_path / "b.png")
    before = sorted(tmp_path.rglob("*"))
    plan = plan_images(
        [picture, tmp_path / "b.png"], str(reference), tmp_path / "out", steps=4, cfg=3.0, **FAST
    )
    assert sorted(tmp_path.rglob("*")) == before
    assert json.loads(json.dumps(plan)) == plan
    assert plan["evaluations"] == 2 * 4 * 2 and plan["frames"] == 2
    assert [i["working"] for i in plan["inputs"]] == [[64, 64], [64, 64]]
    assert plan["inputs"][1]["output"] == str(tmp_path / "out" / "b_stylized.png")
    t = plan["time"]
    assert all(t[part] > 0 for part in ("load", "evaluation", "decode"))
    each = t["encode"] + t["decode"] + 4 * t["evaluation"]
    assert plan["inputs"][0]["seconds"] == pytest.approx(each, abs=2e-3)
    assert t["seconds"] == pytest.approx(t["load"] + 2 * each, abs=5e-3)
    assert plan["fits"] and plan["picks"]["flags"] == "" and plan["picks"]["offload"] == "none"


def windows_of(plan, *shots):
    """One for a shot that fits, else one more for every stride, or part of it, that it is
    longer."""
    length, stride = plan["window"], plan["window"] - plan["overlap"]
    assert length > 1
    return sum(1 + max(0, math.ceil((frames - length) / stride)) for frames in shots)


@pytest.mark.parametrize(("cuts", "shots"), [("auto", (20, 12)), ("off", (32,))])
def test_a_plan_of_a_video(tmp_path, reference, cuts, shots):
    clip = make_clip(tmp_path / "in.mp4", frames=32, cut_at=20)
    (tmp_path / "new").mkdir()  # a run could not make a folder by way of one that is not there
    before = sorted(tmp_path.rglob("*"))
    plan = plan_video(
        clip,
        str(reference),
        tmp_path / "new" / ".." / "out",
        cuts=cuts,
        steps=3,
        cfg=1.0,
        motion="auto",
        **FAST,
    )
    assert sorted(tmp_path.rglob("*")) == before
    windows = windows_of(plan, *shots)
    assert (plan["frames"], plan["shots"], plan["windows"]) == (32, len(shots), windows)
    assert plan["evaluations"] == windows * 3 and not plan["guided"]
    t = plan["time"]
    total = t["load"] + 32 * (t["encode"] + t["decode"]) + windows * 3 * t["evaluation"]
    assert t["seconds"] == pytest.approx(total, rel=0.01)
    assert plan["memory"]["modes"].keys() == {"none"} and plan["picks"]["batch"] == 1


def test_the_end_of_what_is_planned(tmp_path, reference):
    clip = make_clip(tmp_path / "in.mp4", frames=32, cut_at=20)
    options = FAST | {"probe": False, "motion": "none"}
    plan = plan_video(clip, str(reference), start="0.4", max_frames=15, **options)
    assert (plan["frames"], plan["shots"], plan["windows"]) == (15, 2, 15)
    assert plan["time"] is None and any("--no-probe" in note for note in plan["notes"])
    assert plan_video(clip, str(reference), preview="0.2", **options)["frames"] == 10


def test_a_long_video_is_not_decoded(tmp_path, reference, monkeypatch):
    clip = make_clip(tmp_path / "in.mp4", frames=24, cut_at=20)
    monkeypatch.setattr("std_cli.stylize.workload.COUNTED", 10)
    plan = plan_video(clip, str(reference), probe=False, motion="auto", **FAST)
    assert (
        plan["frames"] == 24 and plan["shots"] is None and plan["windows"] == windows_of(plan, 24)
    )
    assert any("are not counted" in note for note in plan["notes"])


def test_a_plan_counts_the_frames_of_the_source_and_of_the_result(tmp_path, reference):
    """On a CPU, in whose memory they are: 24 of each in RGB, whatever the working size."""

    def parts(*size, **options):
        clip = make_clip(tmp_path / f"{size[0]}.mp4", frames=4, size=size)
        plan = plan_video(clip, str(reference), tmp_path, probe=False, **FAST | options)
        return plan["memory"]["parts"]["none"]

    large = parts(1280, 720, output_size="source")
    assert large["frames"] == 24 * 3 * 2 * 1280 * 720
    small = parts(640, 360, output_size="source")
    assert small["frames"] * 4 == large["frames"] and small["process"] == large["process"]


def test_one_bad_video_of_two(tmp_path, reference):
    make_clip(tmp_path / "good.mp4", frames=8)
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    plan = plan_video(str(tmp_path / "*.mp4"), str(reference), tmp_path, probe=False, **FAST)
    assert [i["input"] for i in plan["inputs"]] == [str(tmp_path / "good.mp4")]
    assert any(note.startswith(f"{tmp_path / 'bad.mp4'} is left out") for note in plan["notes"])
    with pytest.raises(InputError, match=r"bad\.mp4"):
        plan_video(tmp_path / "bad.mp4", str(reference), tmp_path, probe=False, **FAST)


def folder_of_pictures(folder, numbers=range(4), mode="RGB"):
    folder.mkdir()
    for i in numbers:
        color = (60 * i % 256, 90, 30, 128 if i else 255)[: len(mode)]
        Image.new(mode, (64, 48), color).save(folder / f"f{i:02}.png")
    return folder


def gappy_clip(path):
    """Frames at 25 a second, of which the five after the twelfth are missing."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in [*range(12), *range(17, 30)]:
            frame = av.VideoFrame.from_image(Image.new("RGB", (64, 48), (8 * i, 90, 30)))
            frame.pts, frame.time_base = i, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


@pytest.mark.parametrize("counted", [2000, 2])
def test_a_plan_says_what_the_input_is_like(tmp_path, reference, monkeypatch, counted):
    """Gaps in the numbers of pictures and transparency, also of what is too long to be counted;
    gaps in the time stamps where the frames are counted."""
    monkeypatch.setattr("std_cli.stylize.workload.COUNTED", counted)
    options = FAST | {"probe": False, "motion": "none"}
    folder = folder_of_pictures(tmp_path / "frames", [0, 1, 2, 5], "RGBA")
    notes = plan_video(folder, str(reference), tmp_path / "o.mp4", **options)["notes"]
    assert sum("lacks 2 numbers of its sequence" in note for note in notes) == 1
    assert sum("transparent" in note and "show white" in note for note in notes) == 1
    prores = plan_video(folder, str(reference), tmp_path / "o.mov", codec="prores", **options)
    assert not any("transparent" in note for note in prores["notes"])
    clip = gappy_clip(tmp_path / "gaps.mp4")
    notes = plan_video(clip, str(reference), tmp_path / "o.mp4", **options)["notes"]
    assert any("5 frames" in note and "missing" in note for note in notes) == (counted == 2000)


ESTIMATED: dict[str, dict[str, int]] = {}


@pytest.fixture(autouse=True)
def estimated_once(monkeypatch):
    """What a network takes at work is estimated once for all tests here: it depends only on the
    arguments."""
    estimate = memory.activation_bytes

    def once(*about, **how):
        key = repr((about, sorted(how.items())))
        ESTIMATED[key] = ESTIMATED.get(key) or estimate(*about, **how)
        return ESTIMATED[key]

    monkeypatch.setattr("std_cli.stylize.memory_needs.activation_bytes", once)


def test_what_is_not_downloaded_is_estimated(tmp_path, reference, main_memory, monkeypatch):
    """SDXL in fp32 and bf16 on main memories of some sizes: as it is, in bf16, smaller, not at
    all."""
    clip = make_clip(tmp_path / "in.mp4", frames=8)
    main_memory(64)
    monkeypatch.setattr("std_cli.diffusion.devices._multiplies_bf16", lambda: False)
    plan = plan_video(clip, str(reference), tmp_path, size=512, device="cpu")
    assert not plan["downloaded"] and plan["time"] is None and plan["fits"]
    assert plan["window"] == 8 and plan["memory"]["weights"]["motion"] == 4 * memory.SDXL["motion"]
    Image.new("RGB", (96, 72)).save(tmp_path / "p.png")
    picks = []
    for gib in (24, 12, 6):
        main_memory(gib)
        plan = plan_images(tmp_path / "p.png", str(reference), tmp_path, size=2048, device="cpu")
        picks.append(plan["picks"])
    assert [p and p["flags"] for p in picks] == ["--dtype bf16", "--dtype bf16 --size 768", None]
    assert picks[1]["size"] == [768, 576]
    monkeypatch.setattr("std_cli.diffusion.devices._multiplies_bf16", lambda: True)
    assert plan_video(clip, str(reference), tmp_path, device="cpu")["dtype"] == "bf16"


def test_a_plan_finds_what_a_run_would_refuse(tmp_path, picture, reference):
    for options, message in [
        ({"model": str(tmp_path)}, "not a whole SDXL folder"),
        ({"lora": "gone.safetensors"}, "gone.safetensors"),
        ({"eta": 3.0}, "--eta"),
        *(
            []
            if torch.cuda.is_available()
            else [({"device": "auto", "offload": "model"}, "leave it out")]
        ),
    ]:
        with pytest.raises(InputError, match=message):
            plan_images(picture, str(reference), **FAST | options)
    clip = make_clip(tmp_path / "in.mp4", frames=8)
    with pytest.raises(InputError, match="no frames between"):
        plan_video(clip, str(reference), start="0.301", end="0.302", **FAST)


@pytest.fixture
def gpu(monkeypatch):
    """Lets a plan see a GPU with so much free memory."""

    def report(gib, kind="cuda"):
        monkeypatch.setattr(
            "std_cli.diffusion.devices.choose_device", lambda name: torch.device(kind)
        )
        monkeypatch.setattr(
            "std_cli.stylize.memory_needs.free_memory",
            lambda device: (int(gib * GIB), int(gib * GIB)),
        )

    monkeypatch.setattr("std_cli.stylize.plan.device_name", lambda device: "a device")
    return report


def test_a_processor_without_half_precision_works_in_fp32(tmp_path, reference, monkeypatch):
    """The weights are held in bf16, twice as small; what the networks need at work is not."""
    Image.new("RGB", (512, 512)).save(tmp_path / "p.png")

    def planned():
        plan = plan_images(
            tmp_path / "p.png", str(reference), tmp_path, size=512, dtype="bf16", device="cpu"
        )
        return plan["memory"]

    without = planned()
    monkeypatch.setattr(memory_needs, "has_arithmetic", lambda device, dtype: True)
    native = planned()
    assert without["weights"] == native["weights"]
    assert without["activations"]["unet"] == pytest.approx(
        2 * native["activations"]["unet"], rel=0.1
    )
    assert without["activations"]["vae_decode"] == 2 * native["activations"]["vae_decode"]


def test_the_table_of_hardware(tmp_path, reference, gpu):
    """What it says is what plans say: the options for each size of memory, and how many GiB that is
    with the margin."""
    Image.new("RGB", (2048, 2048)).save(tmp_path / "p.png")
    make_clip(tmp_path / "v.mp4", 8, (1920, 1080), sound=False)
    text = (ROOT / "examples" / "hardware.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.split("|")[1:4]]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    rows = {hardware: {"p.png": picture, "v.mp4": video} for hardware, picture, video in rows}

    def planned(file, **options):
        plan, cuts = (plan_images, {}) if file == "p.png" else (plan_video, {"cuts": "off"})
        about = tmp_path / file, str(reference), tmp_path / "out"
        return plan(*about, probe=False, **cuts, **options)

    def margin_included(plan, mode):
        return f"{plan['memory']['modes'][mode] * memory.MARGIN / GIB:.1f} GiB"

    for kind, name, free, pictures, videos in (
        ("cuda", "GPU, 8 GB", 7.4, "--offload model", "--offload sequential"),
        ("cuda", "GPU, 12 GB", 11.4, "--offload model", "--offload sequential"),
        ("cuda", "GPU, 16 GB", 15.4, "", ""),
        ("mps", "Apple silicon, 16 GB", 16 * 2 / 3, "--offload model", "--offload sequential"),
        ("mps", "Apple silicon, 32 GB", 32 * 2 / 3, "", ""),
    ):
        gpu(free, kind)
        for file, flags in (("p.png", pictures), ("v.mp4", videos)):
            plan, cell = planned(file), rows[name][file]
            assert (plan["picks"]["flags"], plan["fits"]) == (flags, not flags), name
            assert (f"`{flags}`" if flags else "nothing") in cell and margin_included(
                plan, plan["picks"]["offload"]
            ) in cell, name
            parts = plan["memory"]["parts"]
            assert {mode: sum(p.values()) for mode, p in parts.items()} == plan["memory"]["modes"]
    gpu(4.4)
    for file, size in (("p.png", None), ("v.mp4", 1024)):
        plan = planned(file, size=size, offload="sequential")
        assert plan["fits"] and margin_included(plan, "sequential") in rows["GPU, 4 to 6 GB"][file]
    gpu(11.4)
    for file, size in (("p.png", 768), ("v.mp4", 1024)):
        plan = planned(file, size=size)
        assert (
            plan["fits"]
            and f"`--size {size}` ({margin_included(plan, 'none')})" in rows["GPU, 12 GB"][file]
        )
    for name, free, batches in (
        ("16", 15.4, "1, 3"),
        ("24", 23.4, "3, 6"),
        ("48 or 80", 47.4, "8, 8"),
    ):
        gpu(free)
        at_once = ", ".join(
            str(planned("v.mp4", size=size)["picks"]["batch"]) for size in (None, 1024)
        )
        assert (
            at_once == batches and f"windows at once: {batches}" in rows[f"GPU, {name} GB"]["v.mp4"]
        )
    gpu(64, "cpu")
    assert margin_included(planned("p.png", dtype="bf16"), "none") in rows["CPU"]["p.png"]


# --- the command -------------------------------------------------------------------------------


def test_the_command(tmp_path, picture, reference, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = [
        str(picture),
        "--style",
        str(reference),
        "--model",
        "tiny",
        "--size",
        "64",
        "--no-probe",
    ]
    before = sorted(tmp_path.rglob("*"))
    events = []
    for command in (["plan", "image"], ["stylize", "image", "--dry-run"]):
        assert run([*command, *arguments, "--json"]) == 0
        out, err = capsys.readouterr()
        events.append(json.loads(out.splitlines()[-1]))
        assert err == ""
    for event in events:  # what moves from call to call
        event["memory"] |= {"free": 0, "main_free": 0}
        event["disk"]["free"] = 0
    assert events[0] == events[1] and events[0]["event"] == "plan"
    assert run(["plan", "image", *arguments]) == 0
    out = capsys.readouterr().out
    assert "2 evaluations" in out and "fits: " in out and "unet" in out
    assert sorted(tmp_path.rglob("*")) == before

    assert run(["plan", "song", *arguments]) == 2
    assert "song" in capsys.readouterr().err
    assert run(["plan", "image", *arguments, "--colour", "red"]) == 2
    assert "--colour" in capsys.readouterr().err
    assert run(["plan", "image", "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("Usage: std plan image INPUT... --style FILE")
    assert "--style-scale" in shown and "--dry-run" not in shown


def test_a_folder_that_is_full_of_work_is_left_alone(tmp_path, reference):
    """A plan next to an interrupted run neither opens nor clears its work folder."""
    clip = make_clip(tmp_path / "in.mp4", frames=8)
    work = tmp_path / ".in_stylized.mp4.std"
    work.mkdir()
    run_file = '{"std": "work folder", "run": {}}'
    (work / "run.json").write_text(run_file)
    plan_video(clip, str(reference), tmp_path, probe=False, **FAST)
    assert [f.name for f in work.iterdir()] == ["run.json"] and (
        work / "run.json"
    ).read_text() == run_file
