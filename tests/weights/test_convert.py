"""`std models convert` and `inspect`: what each file becomes, and what is said of it."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from diffusers import MotionAdapter, StableDiffusionXLImg2ImgPipeline
from safetensors.torch import load_file
from transformers import Dinov2Model

from std_cli.cli.commands import run
from std_cli.errors import InputError, StdError
from std_cli.weights.convert import convert
from std_cli.weights.files import read_header
from std_cli.weights.inspect import inspect_file
from std_cli.weights.lora import read_lora
from std_cli.weights.lora.write import check_written
from std_cli.weights.motion import HOTSHOT_CONFIG
from std_cli.weights.resolve import TINY, resolve_model
from tests.micro import tiny_with_motion
from tests.weights.dino import original_weights
from tests.weights.files import SPELLINGS, Harm, hotshot_names, pairs, small_unet, tensors, zeros
from tests.weights.processes import std


@pytest.fixture(scope="module")
def content():
    """A LoRA of two ranks and two alphas, without a prefix."""
    plain = dict(list(pairs(small_unet(), rank=4).items())[:40])
    first = next(iter(plain)).split(".lora_")[0]
    for half, side in (("A", 0), ("B", 1)):
        plain[f"{first}.lora_{half}.weight"] = (
            plain[f"{first}.lora_{half}.weight"].narrow(side, 0, 2).contiguous()
        )
    return plain, first


def written(folder, content, spelling="kohya"):
    """With an alpha of 1 for the first layer, and 8 for the others."""
    plain, first = content
    out = {SPELLINGS[spelling](key): tensor for key, tensor in plain.items()}
    for module in {key.split(".lora_")[0] for key in plain}:
        name = SPELLINGS[spelling](f"{module}.lora_A.weight").split(".lora")[0]
        out[f"{name}.alpha"] = torch.tensor(1.0 if module == first else 8.0)
    return tensors(folder / "in.safetensors", out, {"eta": "0.75", "schedule": "aligned"})


def loaded(path):
    return read_lora(path, path.name).layers


@pytest.mark.parametrize("to", ["diffusers", "kohya", "peft"])
@pytest.mark.parametrize("spelling", ["kohya", "hook"])
def test_a_lora_keeps_its_numbers_in_every_spelling(tmp_path, content, to, spelling):
    source = written(tmp_path, content, spelling)
    event = convert(source, tmp_path / "out", to=to)
    out = tmp_path / "out" / "adapter_model.safetensors" if to == "peft" else tmp_path / "out"
    assert event["kind"] == "lora" and event["notices"] == []
    before, after = loaded(source), loaded(out)
    assert before.keys() == after.keys()
    for name, layer in before.items():
        assert all(
            torch.equal(tensor, after[name].tensors[key]) for key, tensor in layer.tensors.items()
        )
    assert [layer.alpha for layer in before.values()] == [after[name].alpha for name in before]
    assert {layer.alpha for layer in after.values()} == {1, 8}
    assert read_header(out)[1]["schedule"] == "aligned"
    layout = {"diffusers": "diffusers", "kohya": "kohya", "peft": "peft"}[to]
    assert inspect_file(out)["layout"] == layout
    with pytest.raises(InputError, match="exists; pass --overwrite"):
        convert(source, tmp_path / "out", to=to)
    with pytest.raises(InputError, match="no folder .*gone.* for the output"):
        convert(source, tmp_path / "gone" / "out", to=to)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.safetensors", "out"]
    # whatever the spelling, inspect tells the alphas
    assert inspect_file(out)["alphas"] == inspect_file(source)["alphas"] == {"1": 1, "8": 19}


KINDS = {"kohya": ["--to", "kohya"], "peft": ["--to", "peft"], "dino": []}


def asked(folder, content, kind):
    """The arguments of a conversion, from a file that is made, to folder/out."""
    if kind == "dino":
        file = folder / "dino.pth"
        torch.save(original_weights(), file)
    else:
        file = written(folder, content)
    return ["models", "convert", str(file), "-o", str(folder / "out"), *KINDS[kind]]


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files as Linux does")
@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_that_is_full_while_converting(tmp_path, content, kind):
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))"
    done = std(*asked(tmp_path, content, kind), home=tmp_path, code=full)
    assert done.returncode == 1 and done.stderr.startswith("error: disk full while writing"), (
        done.stderr
    )
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("kind", KINDS)
def test_a_signal_while_converting_leaves_nothing(tmp_path, content, kind):
    """SIGTERM comes when all is written and nothing is in its place yet."""
    code = """
import os, signal
from std_cli.interruption import install
from std_cli.weights import convert
install()
move = convert.move
convert.move = lambda *names: (os.kill(os.getpid(), signal.SIGTERM), move(*names))
"""
    done = std(*asked(tmp_path, content, kind), home=tmp_path, code=code)
    assert (done.returncode, done.stderr) == (143, "error: terminated\n")
    assert len(list(tmp_path.iterdir())) == 1


def test_what_overwrite_replaces(tmp_path, content):
    """A file, and a folder that was converted to; no folder of other files, nor that of the file
    itself."""
    source = written(tmp_path, content)
    convert(source, tmp_path / "out", to="peft")
    (tmp_path / "out" / "old").touch()
    convert(source, tmp_path / "out", to="peft", overwrite=True)
    assert not (tmp_path / "out" / "old").exists()
    with pytest.raises(InputError, match="is a folder: name a file in it"):
        convert(source, tmp_path / "out", to="kohya", overwrite=True)
    (tmp_path / "link").symlink_to(tmp_path / "out" / "adapter_model.safetensors")
    with pytest.raises(InputError, match="exists; pass --overwrite"):
        convert(source, tmp_path / "link", to="kohya")
    convert(source, tmp_path / "link", to="kohya", overwrite=True)
    assert not (tmp_path / "link").is_symlink()
    with pytest.raises(InputError, match="is the folder that in.safetensors is in"):
        convert(source, tmp_path, to="peft", overwrite=True)
    (tmp_path / "mine").mkdir()
    convert(source, tmp_path / "mine", to="peft", overwrite=True)
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").touch()
    with pytest.raises(InputError, match="is a folder without weights of this kind"):
        convert(source, tmp_path / "letters", to="peft", overwrite=True)
    assert (tmp_path / "letters" / "a.txt").exists()
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(InputError, match="is neither a file nor a folder"):
            convert(source, tmp_path / "pipe", to="kohya", overwrite=True)


def test_what_is_written_is_compared(tmp_path, content):
    source = written(tmp_path, content)
    weights = read_lora(source, "mine")
    check_written(weights, source, "kohya")
    plain, _ = content
    other = {f"unet.{key}": tensor + 1e-3 for key, tensor in plain.items()}
    with pytest.raises(StdError, match="^mine: .* is not read back as it was from"):
        check_written(weights, tensors(tmp_path / "other.safetensors", other), "diffusers")


def test_other_libraries_load_what_is_converted(tmp_path, content):
    """diffusers from its own spelling and from kohya's, peft from its own: the same scalings."""
    from peft import PeftModel

    plain, first = content
    source = written(tmp_path, content)
    wanted = {key.split(".lora_")[0]: 2.0 for key in plain} | {first: 0.5}
    for to in ("diffusers", "kohya"):
        convert(source, tmp_path / f"{to}.safetensors", to=to)
        unet = small_unet()
        state, alphas, *more = StableDiffusionXLImg2ImgPipeline.lora_state_dict(
            tmp_path / f"{to}.safetensors", unet_config=unet.config, return_lora_metadata=True
        )
        StableDiffusionXLImg2ImgPipeline.load_lora_into_unet(
            state, alphas, unet, "mine", metadata=more[0]
        )
        scaling = {
            name: m.scaling["mine"] for name, m in unet.named_modules() if hasattr(m, "lora_A")
        }
        assert scaling == wanted, to
    convert(source, tmp_path / "peft", to="peft")
    model = PeftModel.from_pretrained(small_unet(), tmp_path / "peft")
    found = {
        n.removeprefix("base_model.model."): m.scaling["default"]
        for n, m in model.named_modules()
        if hasattr(m, "lora_A")
    }
    assert found == wanted


def test_hotshot_becomes_a_motion_adapter(tmp_path):
    with torch.device("meta"):
        names = hotshot_names(MotionAdapter.from_config(HOTSHOT_CONFIG))
    assert len(names) == 420
    zeros(tmp_path / "h.safetensors", names)
    assert inspect_file(tmp_path / "h.safetensors")["kind"] == "hotshot"
    assert convert(tmp_path / "h.safetensors", tmp_path / "motion")["kind"] == "hotshot"
    adapter = MotionAdapter.from_pretrained(tmp_path / "motion")
    assert len(adapter.state_dict()) == 405 and adapter.config.motion_max_seq_length == 24
    names.pop(next(iter(names)))
    zeros(tmp_path / "h.safetensors", names)
    with pytest.raises(InputError, match="404 of 405 tensors fit: 1 lacks"):
        convert(tmp_path / "h.safetensors", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_what_cannot_be_converted(tmp_path, content):
    import pickle

    source = written(tmp_path, content)
    with pytest.raises(InputError, match="say --to diffusers, kohya or peft"):
        convert(source, tmp_path / "out")
    vae = TINY / "vae" / "diffusion_pytorch_model.safetensors"
    with pytest.raises(InputError, match="is no LoRA .vae.: leave out --to kohya"):
        convert(vae, tmp_path / "out", to="kohya")
    with pytest.raises(InputError, match="cannot be converted .vae."):
        convert(vae, tmp_path / "out")
    for name, kind in (("dino.pth", "would run code when read"), ("dino.pt", "is a pickle")):
        (tmp_path / name).write_bytes(pickle.dumps(Harm(tmp_path / "ran")))
        for ask in (inspect_file, lambda path: convert(path, tmp_path / "out")):
            with pytest.raises(InputError, match=kind) as error:
                ask(tmp_path / name)
            assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()


def test_the_original_dinov2(tmp_path, capsys):
    """Named, and converted to what transformers reads as it is (its features:
    test_discriminator)."""
    torch.save(original_weights(), tmp_path / "dinov2_vits14_pretrain.pth")
    file, folder = str(tmp_path / "dinov2_vits14_pretrain.pth"), str(tmp_path / "dino")
    assert run(["models", "inspect", file, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    count = sum(t.numel() for t in original_weights().values())
    assert (facts["kind"], facts["tensors"], facts["parameters"]) == ("dinov2-original", 63, count)
    assert run(["models", "convert", file, "-o", folder, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "dinov2-original"
    assert inspect_file(Path(folder) / "model.safetensors")["kind"] == "dinov2"
    with pytest.raises(InputError, match="exists; pass --overwrite"):
        convert(file, folder)
    model, info = Dinov2Model.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()) and sum(p.numel() for p in model.parameters()) == count
    torch.save({"linear.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    assert inspect_file(tmp_path / "other.pth")["kind"] == "unknown"
    with pytest.raises(InputError, match="cannot be converted .unknown."):
        convert(tmp_path / "other.pth", tmp_path / "out")


def test_inspect(tmp_path, content, capsys):
    source = written(tmp_path, content)
    facts = inspect_file(source)
    assert [facts[k] for k in ("kind", "layout", "modules", "ranks", "alphas")] == [
        *("lora", "kohya", 20, {"2": 1, "4": 19}, {"1": 1, "8": 19})
    ]
    assert facts["metadata"]["eta"] == "0.75" and facts["fits"] == [
        "--lora, for pictures and videos, with a model of its shapes"
    ]
    tiny = resolve_model("tiny")
    kinds = {
        "ip-adapter": tiny.ip_adapter,
        "motion": Path(tiny_with_motion(), "motion_adapter/diffusion_pytorch_model.safetensors"),
        "unet": TINY / "unet" / "diffusion_pytorch_model.safetensors",
        "vae": TINY / "vae" / "diffusion_pytorch_model.safetensors",
        "clip": TINY / "text_encoder" / "model.safetensors",
    }
    assert {kind: inspect_file(path)["kind"] for kind, path in kinds.items()} == {
        kind: kind for kind in kinds
    }
    to_k = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    sd15 = {
        f"{to_k}.lora_A.weight": torch.zeros(4, 768),
        f"{to_k}.lora_B.weight": torch.zeros(1280, 4),
    }
    facts = inspect_file(tensors(tmp_path / "old.safetensors", sd15))
    assert (facts["family"], facts["fits"]) == ("Stable Diffusion 1.5", [])
    wide = {"down_blocks.0": 320, "down_blocks.1": 640, "down_blocks.2": 1280}
    shapes = {
        f"{block}.motion_modules.0.proj_in.weight": torch.zeros(8, width)
        for block, width in wide.items()
    }
    facts = inspect_file(tensors(tmp_path / "motion.safetensors", shapes))
    assert (facts["kind"], facts["family"], facts["fits"]) == ("motion", "SDXL", ["--motion"])
    shapes["down_blocks.3.motion_modules.0.proj_in.weight"] = torch.zeros(8, 1280)
    facts = inspect_file(tensors(tmp_path / "motion.safetensors", shapes))
    assert (facts["family"], facts["fits"]) == ("Stable Diffusion 1.5", [])
    block = "attentions.0.transformer_blocks.0.attn2.to_k.weight"
    for width, name, fits in (
        (2048, "SDXL", ["unet/ in a model's folder"]),
        (768, "Stable Diffusion 1.5", []),
    ):
        facts = inspect_file(
            tensors(tmp_path / "unet.safetensors", {f"mid_block.{block}": torch.zeros(8, width)})
        )
        assert (facts["kind"], facts["family"], facts["fits"]) == ("unet", name, fits)
    assert run(["models", "inspect", str(source)]) == 0
    shown = capsys.readouterr().out
    assert "ranks         2: 1, 4: 19\n" in shown and "layout        kohya\n" in shown
    assert load_file(source)
