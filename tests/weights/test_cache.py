"""`std models`, against a small Hub on this machine that also fails as a real one does; conversions
and inspection."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from diffusers import MotionAdapter, StableDiffusionXLImg2ImgPipeline
from safetensors.torch import load_file, save_file
from transformers import Dinov2Model

from std_cli.cli.commands import run
from std_cli.errors import InputError, StdError
from std_cli.weights import downloads
from std_cli.weights.cache import needed
from std_cli.weights.convert import convert
from std_cli.weights.files import read_header
from std_cli.weights.inspect import inspect_file
from std_cli.weights.lora import read_lora
from std_cli.weights.resolve import HOTSHOT_CONFIG, TINY, resolve_model
from std_cli.weights.zoo import find_entry, zoo
from tests.conftest import QUIET
from tests.distill.test_discriminator import original_weights
from tests.weights.test_fit import Harm, hotshot_names
from tests.weights.test_resolve import SPELLINGS, pairs, sdxl_folder, small_unet, tensors

ROOT = Path(__file__).parents[2]


def command_of(*arguments, home, url="http://127.0.0.1:9", code=None, **more):
    """(command, how to run it) as a user's shell starts it, against the Hub at `url`; `code` runs
    before."""
    script = (
        f"{code or ''}\nimport sys; from std_cli.cli.commands import run; "
        f"sys.exit(run(sys.argv[1:]))"
    )
    kept = {k: v for k, v in os.environ.items() if k not in QUIET and not k.startswith("HF_")}
    env = {
        "HF_HOME": str(home),
        "HF_ENDPOINT": url,
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "*",
        "COLUMNS": "160",
    }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [sys.executable, "-c", script, *arguments], {
        "env": kept | env | more,
        "cwd": ROOT,
        **pipes,
    }


def std(*arguments, **how):
    command, how_to_run = command_of(*arguments, **how)
    return subprocess.run(command, timeout=120, **how_to_run)


def serve(handler, folder, *names):
    """The models of these names, on the Hub: small files under their real names."""
    for number, name in enumerate(names):
        entry = find_entry(name)
        place = handler.repos.setdefault(entry.repo, folder / entry.repo.replace("/", "--"))
        for file in entry.files:
            if file.endswith(".safetensors"):
                torch.manual_seed(number)
                tensors(
                    place / file,
                    {"x.lora_A.weight": torch.randn(4, 3000), "x.lora_B.weight": torch.zeros(8, 4)},
                )
            else:
                (place / file).parent.mkdir(parents=True, exist_ok=True)
                (place / file).write_text("{}")


LCM = "pytorch_lora_weights.safetensors"


def test_the_life_of_a_model(tmp_path, hub):
    url, handler = hub
    serve(handler, tmp_path, "lcm", "ip-adapter", "ip-adapter-plus")
    at = {"home": tmp_path / "home", "url": url, "HF_TOKEN": "hf_mine"}
    done = std("models", "pull", "lcm", "ip-adapter", "--json", **at)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events[-3]["stage"] == "pull" and events[-3]["done"] == events[-3]["total"] > 48_000
    assert [(e["event"], e["name"]) for e in events[-2:]] == [
        ("pulled", "lcm"),
        ("pulled", "ip-adapter"),
    ]
    assert "Bearer hf_mine" in handler.tokens and len(handler.sent) == 4

    handler.sent.clear()
    again = std("models", "pull", "lcm", "-q", **at)
    assert (again.returncode, again.stdout, handler.sent) == (0, "", [])
    rows = [line.split() for line in std("models", "list", home=at["home"]).stdout.splitlines()]
    assert [row[0] for row in rows if row[1] == "yes"] == ["ip-adapter", "lcm"]
    path = std("models", "path", "lcm", home=at["home"]).stdout.strip()
    assert (
        Path(path).read_bytes()
        == (handler.repos["latent-consistency/lcm-lora-sdxl"] / LCM).read_bytes()
    )
    folder = Path(std("models", "path", "ip-adapter", home=at["home"]).stdout.strip())
    assert (folder / "models" / "image_encoder" / "config.json").is_file()
    assert std("models", "verify", home=at["home"]).stdout.splitlines() == [
        "ip-adapter  right (3 files)",
        "lcm  right (1 file)",
    ]

    blob = Path(path).resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    wrong = std("models", "verify", "lcm", home=at["home"])
    assert wrong.returncode == 1 and f"lcm  {LCM}: its hash is wrong" in wrong.stdout
    assert (
        "std models verify --repair lcm fetches it again" in wrong.stderr
        and wrong.stderr.count("\n") == 1
    )
    handler.sent.clear()
    assert std("models", "verify", "--repair", **at).returncode == 0
    assert handler.sent == [LCM] and std("models", "verify", "lcm", home=at["home"]).returncode == 0

    blob.write_bytes(b"x")
    kept = std("models", "verify", "--repair", "lcm", "--offline", home=at["home"])
    assert kept.returncode == 2 and "HF_HUB_OFFLINE" in kept.stderr and blob.exists(), (
        "what cannot be replaced stays"
    )
    assert std("models", "verify", "--repair", "-q", **at).returncode == 0

    # the encoder is another model's, too
    assert std("models", "pull", "ip-adapter-plus", "-q", **at).returncode == 0
    refused = std("models", "rm", "ip-adapter", "tcd", home=at["home"])
    assert refused.returncode == 2 and "tcd is not here" in refused.stderr
    assert std("models", "path", "ip-adapter", home=at["home"]).returncode == 0
    freed = std("models", "rm", "ip-adapter", "--json", home=at["home"])
    assert 48_000 < json.loads(freed.stdout)["bytes"] < 60_000
    assert std("models", "verify", "ip-adapter-plus", home=at["home"]).returncode == 0
    assert std("models", "rm", "ip-adapter-plus", "lcm", "-q", home=at["home"]).returncode == 0
    assert list((at["home"] / "hub").glob("models--*")) == []
    gone = std("models", "path", "lcm", home=at["home"])
    assert (
        gone.returncode == 2 and gone.stderr == "error: lcm is not here: run std models pull lcm\n"
    )


def test_models_that_share_files(tmp_path, hub):
    """The configs of a single file are SDXL's own, and both IP-Adapters have one encoder."""
    url, handler = hub
    sdxl_folder(tmp_path / "sdxl")
    handler.repos["stabilityai/stable-diffusion-xl-base-1.0"] = tmp_path / "sdxl"
    for file in find_entry("sdxl-config").files:
        (tmp_path / "sdxl" / file).parent.mkdir(exist_ok=True)
        (tmp_path / "sdxl" / file).touch()
    serve(handler, tmp_path, "ip-adapter", "ip-adapter-plus")
    at = {"home": tmp_path / "home", "url": url}
    done = std(
        "models", "pull", "sdxl", "sdxl-config", "ip-adapter", "ip-adapter-plus", "--json", **at
    )
    assert done.returncode == 0, done.stdout
    places = {
        e["name"]: e["path"]
        for e in map(json.loads, done.stdout.splitlines())
        if e["event"] == "pulled"
    }
    assert (
        places["sdxl"] == std("models", "path", "sdxl", **at).stdout.strip()
        and Path(places["sdxl"]).is_dir()
    )
    none = std("models", "rm", "sdxl-config", **at)
    assert none.stdout == "sdxl-config  nothing freed: other models that are here need its files\n"
    assert std("models", "verify", "sdxl", **at).returncode == 0
    assert (
        std("models", "rm", "ip-adapter", "ip-adapter-plus", "sdxl", "sdxl-config", **at).returncode
        == 0
    )
    assert list((tmp_path / "home" / "hub").glob("models--*")) == []


def test_a_hub_that_fails_and_then_does_not(tmp_path, hub):
    """A transfer that breaks off goes on where it was; 503 is asked again."""
    url, handler = hub
    serve(handler, tmp_path, "lcm", "tcd", "hotshot")
    # 48 MB: several blocks of what the client reads at once
    big = {"x.lora_A.weight": torch.randn(4, 3_000_000)}
    tensors(handler.repos["hotshotco/Hotshot-XL"] / find_entry("hotshot").files[0], big)
    handler.faults = {find_entry("hotshot").files[0]: ["cut", "cut"], LCM: ["503", "503"]}
    done = std("models", "pull", "hotshot", "lcm", "--json", home=tmp_path / "home", url=url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert any("@" in file for file in handler.sent) and handler.sent.count(LCM) == 1
    assert std("models", "verify", home=tmp_path / "home").returncode == 0


def test_a_proxy_is_used(tmp_path, hub):
    """The Hub's address cannot be found; whatever is asked of it goes to the proxy, which is our
    small Hub."""
    url, handler = hub
    serve(handler, tmp_path, "lcm")
    proxy = {"HTTP_PROXY": url, "http_proxy": url, "NO_PROXY": "", "no_proxy": ""}
    done = std("models", "pull", "lcm", home=tmp_path / "home", url="http://hub.invalid", **proxy)
    assert done.returncode == 0 and handler.sent == [LCM], done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_another_process_goes_on_where_one_was_stopped(tmp_path, hub, how):
    url, handler = hub
    serve(handler, tmp_path, "hotshot")
    [file] = find_entry("hotshot").files
    size = (
        tensors(handler.repos["hotshotco/Hotshot-XL"] / file, {"x": torch.randn(8_000_000)})
        .stat()
        .st_size
    )
    handler.faults = {file: ["slow"]}
    patience = {"HF_HUB_DOWNLOAD_TIMEOUT": "2"}  # seconds that a hub may be silent
    command, how_to_run = command_of(
        "models", "pull", "hotshot", home=tmp_path / "home", url=url, **patience
    )
    with subprocess.Popen(command, **how_to_run) as child:
        deadline = time.monotonic() + 60
        while not (
            here := sum(f.stat().st_size for f in (tmp_path / "home").rglob("*.incomplete"))
        ):
            assert time.monotonic() < deadline and child.poll() is None
            time.sleep(0.05)
        time.sleep(0.3)
        child.send_signal(how)
        _, told = child.communicate(timeout=30)
    if how == signal.SIGINT:
        assert (child.returncode, told) == (130, "error: interrupted\n")
    here = sum(f.stat().st_size for f in (tmp_path / "home").rglob("*.incomplete"))
    assert 0 < here < size
    done = std("models", "pull", "hotshot", home=tmp_path / "home", url=url)
    assert (done.returncode, done.stderr) == (0, "")
    assert handler.sent[0] == file and handler.sent[-1] == f"{file}@{here}"
    assert std("models", "verify", home=tmp_path / "home").returncode == 0


@pytest.mark.parametrize("where", ["the list of files", "a file"])
def test_a_hub_that_stays_unavailable_is_one_line(tmp_path, hub, where):
    url, handler = hub
    serve(handler, tmp_path, "lcm")
    if where == "a file":
        handler.faults = {LCM: ["503"] * 999}
    else:
        handler.refused["latent-consistency/lcm-lora-sdxl"] = (503, "")
    quick = (
        "import time; from std_cli.weights import downloads as d; d.PAUSES = (0,) * 3; "
        "time.sleep = lambda s: None"
    )
    done = std("models", "pull", "lcm", home=tmp_path / "home", url=url, code=quick)
    told = "error: the Hub answered 503 about latent-consistency/lcm-lora-sdxl: try again later\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", told)
    assert (
        std("models", "path", "lcm", home=tmp_path / "home").returncode == 2 and handler.sent == []
    )


def test_no_room_is_known_before_and_told_when_it_runs_out(tmp_path, hub):
    url, handler = hub
    serve(handler, tmp_path, "lcm")
    little = (
        "import shutil; shutil.disk_usage = lambda path: shutil._ntuple_diskusage(10**9, "
        "10**9, 20_000)"
    )
    done = std("models", "pull", "lcm", home=tmp_path / "home", url=url, code=little)
    assert (
        done.returncode == 1
        and "the download takes 0.0 GB, and" in done.stderr
        and done.stderr.count("\n") == 1
    )
    assert handler.sent == [] and not list((tmp_path / "home").rglob("*.safetensors"))
    if sys.platform == "linux":
        full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))"
        done = std("models", "pull", "lcm", home=tmp_path / "home", url=url, code=full)
        assert (
            done.returncode == 1
            and "cannot be stored under HF_HOME" in done.stderr
            and done.stderr.count("\n") == 1
        )
    assert std("models", "pull", "lcm", "-q", home=tmp_path / "home", url=url).returncode == 0


def test_a_file_that_is_not_what_the_hub_says_is_not_kept(tmp_path, hub):
    url, handler = hub
    serve(handler, tmp_path, "lcm", "tcd")
    handler.faults = {LCM: ["wrong"]}
    wrong = std("models", "pull", "lcm", home=tmp_path / "home", url=url)
    assert wrong.returncode == 1 and wrong.stderr.count("\n") == 1
    assert "arrived damaged (its hash is not the Hub's): run the command again" in wrong.stderr
    assert std("models", "path", "lcm", home=tmp_path / "home").returncode == 2  # not kept
    assert (
        std("models", "pull", "lcm", "tcd", "-q", home=tmp_path / "home", url=url).returncode == 0
    )
    assert std("models", "verify", home=tmp_path / "home").stdout.count("right") == 2


@pytest.mark.parametrize(
    ("status", "code", "told"),
    [
        (401, "RepoNotFound", "no such model on the Hub.*if it is private, set HF_TOKEN"),
        (403, "GatedRepo", "is gated: accept its licence"),
        (404, "RepoNotFound", "no such model on the Hub"),
        (
            404,
            "RevisionNotFound",
            "has no revision a18548dd.*if it has moved, correct it in .*zoo.toml",
        ),
        (401, "", "the Hub answered 401 about latent-consistency/lcm-lora-sdxl: check HF_TOKEN"),
    ],
)
def test_what_the_hub_refuses(tmp_path, hub, status, code, told):
    url, handler = hub
    handler.refused["latent-consistency/lcm-lora-sdxl"] = (status, code)
    done = std("models", "pull", "lcm", home=tmp_path / "home", url=url)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and re.search(told, done.stderr), (
        done.stderr
    )


NO_SOCKETS = """
import socket
def refuse(*a, **k):
    import os, sys
    print("a socket was opened", flush=True)
    os._exit(99)
socket.socket.connect = socket.socket.connect_ex = refuse
socket.create_connection = socket.getaddrinfo = refuse
"""


@pytest.mark.parametrize("how", ["flag", "variable"])
def test_offline_opens_no_socket(tmp_path, hub, how, picture, reference):
    url, handler = hub
    serve(handler, tmp_path, "lcm")
    home = tmp_path / "home"
    assert std("models", "pull", "lcm", "-q", home=home, url=url).returncode == 0
    flag, variable = (["--offline"], {}) if how == "flag" else ([], {"HF_HUB_OFFLINE": "1"})
    at = {"home": home, "url": url, "code": NO_SOCKETS} | variable
    control = std("models", "pull", "tcd", home=home, url=url, code=NO_SOCKETS)
    assert control.returncode == 99
    here = std("models", "pull", "lcm", *flag, **at)
    assert (here.returncode, here.stdout) == (0, "lcm is here\n")
    missing = std("models", "pull", "tcd", *flag, **at)
    assert (
        missing.returncode == 2
        and "h1t/TCD-SDXL-LoRA not downloaded yet, and HF_HUB_OFFLINE is set" in missing.stderr
    )
    image = ["stylize", "image", str(picture), "--style", str(reference)]
    style = std(*image, *flag, **at)
    assert style.returncode == 2 and "HF_HUB_OFFLINE is set" in style.stderr
    assert (
        std("models", "list", **at).returncode
        == std("models", "verify", *flag, **at).returncode
        == 0
    )


def test_no_room(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "not" / "yet"))
    with pytest.raises(
        StdError, match=r"takes 1000000.0 GB, and .* GB left: free some, or set HF_HOME"
    ):
        downloads.check_room(10**15)
    downloads.check_room(1)


def test_names_and_tasks(capsys):
    assert needed("video", 0.8) == ["sdxl", "ip-adapter-plus", "hotshot", "std-v2v-0.75"]
    assert needed("image", 0.95)[-1] == "std-i2i-0.95" and needed("distill") == [
        "sdxl",
        "dinov2-small",
    ]
    for arguments, told in [
        (["pull"], "nothing to pull"),
        (["pull", "lcn"], "did you mean lcm"),
        (["pull", "dinov2-original"], "is not on the Hub: download https://"),
        (["rm"], "nothing to remove"),
        (["inspect", "gone.safetensors"], "is not a file"),
        (["pull", "--for", "cooking"], "cooking"),
    ]:
        assert run(["models", *arguments]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and told in err, arguments


def test_what_is_not_checked_is_marked_with_the_place_to_correct(capsys):
    assert run(["models", "list"]) == 0
    *rows, last = capsys.readouterr().out.splitlines()
    names = [entry.name for entry in zoo().models.values() if not entry.checked]
    assert (
        "(not checked)" in " ".join(rows)
        and last.startswith("not checked: ")
        and last.endswith("zoo.toml")
    )
    document = (ROOT / "examples" / "models.md").read_text(encoding="utf-8")
    assert "std_cli/weights/zoo.toml" in document and all(
        f"`{re.sub(r'0[.][0-9]+', '*', name)}`" in document for name in names
    )


def test_completion_of_names(tmp_path):
    env = {
        "_STD_COMPLETE": "complete_bash",
        "COMP_WORDS": "std models pull lightn",
        "COMP_CWORD": "3",
    }
    done = std(home=tmp_path, **env)
    assert done.stdout.split() == ["lightning-2", "lightning-4", "lightning-8"], done.stderr


# --- inspect and convert -----------------------------------------------------------------------


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


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files as Linux does")
@pytest.mark.parametrize("to", ["kohya", "peft"])
def test_a_disk_that_is_full_while_converting(tmp_path, content, to):
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))"
    command = [
        "models",
        "convert",
        str(written(tmp_path, content)),
        "-o",
        str(tmp_path / "out"),
        "--to",
        to,
    ]
    done = std(*command, home=tmp_path, code=full)
    assert done.returncode == 1 and done.stderr.startswith("error: disk full while writing"), (
        done.stderr
    )
    assert [p.name for p in tmp_path.iterdir()] == ["in.safetensors"]


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
    save_file(
        {key: torch.zeros(shape, dtype=torch.float16) for key, shape in names.items()},
        tmp_path / "h.safetensors",
    )
    assert inspect_file(tmp_path / "h.safetensors")["kind"] == "hotshot"
    assert convert(tmp_path / "h.safetensors", tmp_path / "motion")["kind"] == "hotshot"
    adapter = MotionAdapter.from_pretrained(tmp_path / "motion")
    assert len(adapter.state_dict()) == 405 and adapter.config.motion_max_seq_length == 24
    names.pop(next(iter(names)))
    save_file(
        {key: torch.zeros(shape, dtype=torch.float16) for key, shape in names.items()},
        tmp_path / "h.safetensors",
    )
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
        "motion": TINY / "motion_adapter" / "diffusion_pytorch_model.safetensors",
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
