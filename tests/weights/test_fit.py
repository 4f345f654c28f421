"""Strict loading: SDXL's real shapes on the meta device, other families, files that are damaged or
made to harm."""

import json
import pickle
import random
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import MotionAdapter, UNet2DConditionModel
from safetensors.torch import save, save_file

from std_cli.diffusion.pipeline import add_motion, join_motion
from std_cli.errors import InputError
from std_cli.weights.files import read_header, read_object
from std_cli.weights.fit import check_ip_adapter, check_motion, from_hotshot
from std_cli.weights.lora import LoraFile, check_lora, read_lora, resolve_lora
from std_cli.weights.lora.read import of_pairs
from std_cli.weights.resolve import HOTSHOT_CONFIG, TINY, MotionFiles, resolve_model
from std_cli.weights.zoo import zoo
from tests.weights.test_resolve import SPELLINGS, cache, kohya, pairs, sdxl_folder, small_unet
from tests.weights.test_sdxl_files import UNET, VISION, ip_adapter

# AnimateDiff's sdxl-beta: config.json as published
BETA_CONFIG = HOTSHOT_CONFIG | {"motion_max_seq_length": 32}


def shapes(tensors):
    return {key: list(tensor.shape) for key, tensor in tensors.items()}


# --- SDXL's real shapes, in the tool's order: motion, LoRA, IP-Adapter -------------------------


@pytest.fixture(scope="module")
def real():
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(UNET)


def hotshot_names(adapter):
    """HotShot-XL's own names: temporal_attentions, attention blocks in a list, the positions once
    per attention."""
    out = {}
    for key, shape in shapes(adapter.state_dict()).items():
        new = key.replace(".motion_modules.", ".temporal_attentions.").replace(
            ".norm3.", ".ff_norm."
        )
        for i in (1, 2):
            new = new.replace(f".attn{i}.", f".attention_blocks.{i - 1}.").replace(
                f"0.norm{i}.", f"0.norms.{i - 1}."
            )
        if key.endswith(".pos_embed.pe"):
            for i in (0, 1):
                place = f".attention_blocks.{i}.pos_encoder.positional_encoding"
                out[new.replace(".pos_embed.pe", place)] = shape
        else:
            out[new] = shape
    return out


@pytest.mark.parametrize("config", [HOTSHOT_CONFIG, BETA_CONFIG], ids=["hotshot", "animatediff"])
def test_every_key_of_the_real_video_weights_matches(real, config):
    """Counts as measured: motion 405 tensors, LoRA 968 layers and 1936 tensors, IP-Adapter 70
    pairs."""
    with torch.device("meta"):
        adapter = MotionAdapter.from_config(config)
        found = shapes(adapter.state_dict())
        if config is HOTSHOT_CONFIG:
            assert len(hotshot_names(adapter)) == 420
            found = from_hotshot(hotshot_names(adapter))
        assert len(found) == 405
        check_motion("real", found, adapter)
        unet = join_motion(real, adapter)
        assert sum(p.numel() for p in unet.parameters()) - sum(
            p.numel() for p in real.parameters()
        ) == sum(p.numel() for p in adapter.parameters())
        v2v, i2i = (pairs(network, rank=64, device="meta") for network in (unet, real))
        weights = ip_adapter("plus", UNET, VISION, heads=20)
    assert of_pairs("v2v", v2v, 64).family.name == of_pairs("i2i", i2i, 64).family.name == "SDXL"
    assert check_lora(of_pairs("v2v", v2v, 64), unet) == (1936, 1936)
    assert check_lora(of_pairs("i2i", i2i, 64), unet) == (1576, 1576)  # its own keys are all it has
    assert check_lora(of_pairs("i2i", i2i, 64), real) == (1576, 1576)
    assert sum(t.numel() for t in v2v.values()) == pytest.approx(221.123e6, rel=1e-5)
    assert sum(t.numel() for t in i2i.values()) == pytest.approx(196.751e6, rel=1e-5)
    with pytest.raises(
        InputError, match="1576 of 1936 tensors match this UNet, which lacks 180 of its layers"
    ):
        check_lora(of_pairs("v2v", v2v, 64), real)
    assert len([k for k in weights if k.startswith("ip_adapter")]) == 140
    for network in (real, unet):
        check_ip_adapter("plus", shapes(weights), network)


def test_weights_of_other_families_are_named(real, tmp_path):
    plus = shapes(ip_adapter("plus", UNET | {"cross_attention_dim": 768}, VISION, heads=2))
    with pytest.raises(
        InputError, match="its shapes are those of Stable Diffusion 1.5, 768 wide, not 2048"
    ):
        check_ip_adapter("mine.safetensors", plus, real)
    with torch.device("meta"):
        whole = shapes(ip_adapter("plain", UNET, VISION, heads=2))
    lacking = {k: s for k, s in whole.items() if k != "ip_adapter.7.to_k_ip.weight"} | {
        "ip_adapter.141.x": [1]
    }
    told = (
        "139 of 140 tensors fit: 1 lacks .ip_adapter.7.to_k_ip.weight.; 1 has beyond them "
        ".ip_adapter.141.x."
    )
    with pytest.raises(InputError, match=told):
        check_ip_adapter("mine.safetensors", lacking, real)

    folder = sdxl_folder(tmp_path / "model")
    model = resolve_model(str(folder))
    sd3, flux = "transformer.transformer_blocks.0.attn", "lora_unet_double_blocks_0_img_attn_qkv"
    mid = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    flat = f"lora_unet_{mid.replace('.', '_')}"
    for name, content in {
        "Stable Diffusion 1.5": {
            f"unet.{mid}.lora_A.weight": (4, 768),
            f"unet.{mid}.lora_B.weight": (1280, 4),
        },
        "Stable Diffusion 2": {
            f"{flat}.lora_down.weight": (4, 1024),
            f"{flat}.lora_up.weight": (1280, 4),
        },
        "Stable Diffusion 3": {
            f"{sd3}.to_q.lora_A.weight": (4, 1536),
            f"{sd3}.to_q.lora_B.weight": (1536, 4),
        },
        "Stable Diffusion 3.5": {
            f"{sd3}.add_k_proj.lora_A.weight": (4, 2432),
            f"{sd3}.add_k_proj.lora_B.weight": (2432, 4),
        },
        "Flux": {f"{flux}.lora_down.weight": (4, 3072), f"{flux}.lora_up.weight": (9216, 4)},
    }.items():
        save_file(
            {key: torch.zeros(shape) for key, shape in content.items()}, tmp_path / "x.safetensors"
        )
        with pytest.raises(
            InputError, match=f"it is for {name} .by its shapes.* wide.*choose one made for SDXL"
        ):
            resolve_lora(str(tmp_path / "x.safetensors"), model=model, task="i2i", eta=0.75)


def test_a_motion_adapter_that_does_not_fit(tmp_path):
    base = TINY / "motion_adapter"
    config = read_object(base / "config.json")
    tensors = {
        k: torch.zeros(s)
        for k, s in read_header(base / "diffusion_pytorch_model.safetensors")[0].items()
    }
    first, second, *_ = sorted(tensors)
    tensors[second] = torch.zeros(3)
    del tensors[first]
    save_file(tensors | {"extra.weight": torch.zeros(1)}, tmp_path / "m.safetensors")
    motion = MotionFiles("mine", tmp_path / "m.safetensors", config, False, 8)
    unet = UNet2DConditionModel.from_pretrained(TINY, subfolder="unet")
    with pytest.raises(
        InputError, match=r"--motion mine: \d+ of \d+ tensors fit: 1 lacks .*; 1 differ in shape"
    ):
        add_motion(unet, motion)


def test_each_baseline_in_its_published_key_layout(tmp_path, monkeypatch):
    """kohya's names with an alpha for each of the layers (LCM, PCM, TDD, Lightning: 788 layers,
    2364 tensors)."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    unet = small_unet()
    plain = pairs(unet, rank=4)
    modules = {key.split(".lora_")[0] for key in plain}
    content = {kohya(key): tensor for key, tensor in plain.items()}
    content |= {
        kohya(f"{m}.lora_A.weight").split(".lora")[0] + ".alpha": torch.tensor(0.5) for m in modules
    }
    model = resolve_model(str(sdxl_folder(tmp_path / "model")))
    for method in ("lcm", "tcd", "pcm", "tdd", "hyper-sd", "lightning"):
        entry = next(e for e in zoo().models.values() if e.method == method)
        path = cache(tmp_path, entry.repo, entry.revision) / entry.files[0]
        path.parent.mkdir(exist_ok=True)
        save_file(content, path)
        steps = entry.steps or 4
        file = resolve_lora("auto", model=model, task="i2i", eta=0.75, method=method, steps=steps)
        assert (file.name, file.scale, file.notice) == (entry.name, 1, None)
        weights = read_lora(file.path, file.name)
        assert check_lora(weights, unet) == (len(plain), len(plain))
        assert {name: layer.scale for name, layer in weights.layers.items()} == dict.fromkeys(
            modules, 1 / 8
        )
    other = resolve_lora("auto", model=model, task="i2i", eta=0.75, method="lightning", steps=1)
    assert other.notice == "no LoRA of lightning for 1 steps: lightning-2, made for 2, is used"


# --- files made to harm ------------------------------------------------------------------------


class Harm:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("name", ["x.safetensors", "x.bin", "x.pt", "x.ckpt", "x.pth"])
def test_a_pickle_is_never_run(tmp_path, name):
    file = tmp_path / name
    file.write_bytes(pickle.dumps(Harm(tmp_path / "ran")))
    torch.save({"w": Harm(tmp_path / "ran")}, tmp_path / "torch.bin")
    for path in (file, tmp_path / "torch.bin"):
        with pytest.raises(InputError, match="pickle|no safetensors file"):
            read_header(path)
        with pytest.raises(InputError):
            resolve_lora(str(path), model=resolve_model("tiny"), task="i2i", eta=0.75)
        with pytest.raises(InputError):
            resolve_model(str(path))
    assert not (tmp_path / "ran").exists()


def raw(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def f32(start: int, end: int, *shape: int) -> dict[str, object]:
    return {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}


WRONG = {
    "empty": b"",
    "header longer than the file": raw({"a": f32(0, 4, 1)}, bytes(4), 10**6),
    "header of 2^63 bytes": raw({"a": f32(0, 4, 1)}, bytes(4), 2**63),
    "overlapping": raw({"a": f32(0, 8, 2), "b": f32(4, 12, 2)}, bytes(12)),
    "a hole": raw({"a": f32(0, 4, 1), "b": f32(8, 12, 1)}, bytes(12)),
    "truncated": raw({"a": f32(0, 400, 100)}, bytes(12)),
    "bytes that nothing owns": raw({"a": f32(0, 4, 1)}, bytes(4000)),
    "shape beyond its bytes": raw({"a": f32(0, 4, 2**40)}, bytes(4)),
    "shape that overflows": raw({"a": f32(0, 0, 2**63, 2)}),
    "backwards": raw({"a": f32(4, 0, 1)}, bytes(4)),
    "not JSON": raw(b"{" * 1000),
    "nested": raw(b'{"a":' * 10_000),
    "no object": raw([1, 2]),
    "unknown type": raw({"a": {"dtype": "F9", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
}


@pytest.mark.parametrize("what", WRONG)
def test_headers_that_lie_are_refused(tmp_path, what):
    (tmp_path / "x.safetensors").write_bytes(WRONG[what])
    with pytest.raises(InputError, match="damaged or no safetensors file") as error:
        read_header(tmp_path / "x.safetensors")
    assert "\n" not in str(error.value)


def mutate(data: bytes, dice: random.Random) -> bytes:
    """One to four changes: a bit, a byte, a cut, a repeat, a number in the header, its length."""
    changed = bytearray(data)
    head = 8 + struct.unpack("<Q", data[:8])[0]
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(min(len(changed), head) if dice.random() < 0.8 else len(changed))
        match dice.randrange(7):
            case 0:
                changed[at] ^= 1 << dice.randrange(8)
            case 1:
                changed[at] = dice.randrange(256)
            case 2:
                del changed[at:]
            case 3:
                del changed[at : at + dice.randint(1, 9)]
            case 4:
                changed[at:at] = changed[at : at + dice.randint(1, 40)]
            case 5:
                changed[at : at + 1] = dice.choice(
                    [b"999999999999", b"-1", b"0", b"1e9", b"[]", b"null", b'"']
                )
            case 6:
                changed[:8] = struct.pack("<Q", dice.choice([0, 2**16, 2**31, 2**40, 2**64 - 1]))
        if len(changed) < 9:
            break
    return bytes(changed)


ALLOWANCE = 8 * 2**20
"""Bytes for Python itself and its allocators, beside twice a file's size."""


def memory(of: str) -> int:
    """Bytes of main memory that this process holds (VmRSS), or held at most (VmHWM)."""
    found = re.search(rf"{of}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def fuzz(folder: Path, count: int) -> tuple[int, int, int]:
    """(files refused, files read, bytes of the largest read) of `count` mutated LoRA files, of
    three spellings.

    One in 25 has 20 MiB, so that the bound of twice its size tells; of these every other one
    differs in a weight alone.
    """
    dice = random.Random(0)
    unet = small_unet()
    plain = dict(list(pairs(unet, rank=2).items())[:8])
    wide = "down_blocks.0.resnets.0.time_emb_proj"
    large = plain | {
        f"{wide}.lora_A.weight": torch.zeros(2**15, 128),
        f"{wide}.lora_B.weight": torch.zeros(32, 2**15),
    }
    originals = [
        save(
            {SPELLINGS[spelling](key): tensor for key, tensor in content.items()}, {"format": "pt"}
        )
        for content in (plain, large)
        for spelling in ("hook", "kohya", "lora.down")
    ]
    model, refused, largest, path = resolve_model("tiny"), 0, 0, folder / "x.safetensors"
    for number in range(count):
        data = originals[number % 3 + (3 if number % 25 == 0 else 0)]
        data = data[:-4] + dice.randbytes(4) if number % 50 == 0 else mutate(data, dice)
        path.write_bytes(data)
        size = len(data)
        del data
        before = memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak is what is held now
        try:
            file = resolve_lora(str(path), model=model, task="i2i", eta=0.75)
            assert isinstance(file, LoraFile)
            check_lora(read_lora(file.path, file.name), unet)
            largest = max(largest, size)
        except InputError as error:
            assert "\n" not in str(error)
            refused += 1
        grown = memory("VmHWM") - before
        assert grown <= 2 * size + ALLOWANCE, f"{grown:,} bytes for a file of {size:,}"
    return refused, count - refused, largest


@pytest.mark.skipif(sys.platform != "linux", reason="limits and measures memory as Linux does")
def test_a_thousand_mutated_files(tmp_path):
    """No crash, no hang, no more than twice a file's size in memory: in a process whose address
    space cannot grow by much.
    """
    script = """
import resource, sys, warnings
from pathlib import Path
from tests.weights.test_fit import fuzz
warnings.simplefilter("ignore")
fuzz(Path(sys.argv[1]), 30)  # what is imported late
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 2**28, size + 2**28))
print(*fuzz(Path(sys.argv[1]), 1000))
"""
    run = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=Path(__file__).parents[2],
    )
    assert run.returncode == 0, run.stderr
    refused, taken, largest = map(int, run.stdout.split())
    assert refused + taken == 1000 and refused > 500 and taken > 20 and largest > 2**24
