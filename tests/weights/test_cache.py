"""`std models`, against a small Hub on this machine that also fails as a real one does."""

import hashlib
import json
import re
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from std_cli.cli.commands import run
from std_cli.errors import StdError
from std_cli.weights import downloads
from std_cli.weights.cache import needed
from std_cli.weights.zoo import find_entry, zoo
from tests.weights.files import sdxl_folder, tensors
from tests.weights.processes import command, std


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


ROOT = Path(__file__).parents[2]
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
    assert [row[0] for row in rows if row[1] == "yes"] == ["tiny", "ip-adapter", "lcm"]
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
    assert kept.returncode == 5 and "HF_HUB_OFFLINE" in kept.stderr and blob.exists(), (
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
    """A transfer that breaks off resumes where it was; 503 is asked again."""
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
    child = command("models", "pull", "hotshot", home=tmp_path / "home", url=url, **patience)
    deadline = time.monotonic() + 60
    while not (here := sum(f.stat().st_size for f in (tmp_path / "home").rglob("*.incomplete"))):
        assert time.monotonic() < deadline and child.poll() is None
        time.sleep(0.05)
    time.sleep(0.3)
    child.send_signal(how)
    _, message = child.communicate()
    if how == signal.SIGINT:
        assert child.returncode == 130 and message.endswith("error: interrupted\n")
    here = sum(f.stat().st_size for f in (tmp_path / "home").rglob("*.incomplete"))
    assert 0 < here < size
    done = std("models", "pull", "hotshot", "-q", home=tmp_path / "home", url=url)
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
    message = (
        "error: the Hub answered 503 about latent-consistency/lcm-lora-sdxl: try again later\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (5, "", message)
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
    assert wrong.returncode == 5 and wrong.stderr.count("\n") == 1
    assert "arrived damaged (its hash is not the Hub's): run the command again" in wrong.stderr
    assert std("models", "path", "lcm", home=tmp_path / "home").returncode == 2  # not kept
    assert (
        std("models", "pull", "lcm", "tcd", "-q", home=tmp_path / "home", url=url).returncode == 0
    )
    assert std("models", "verify", home=tmp_path / "home").stdout.count("right") == 2


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (401, "RepoNotFound", "no such model on the Hub.*if it is private, set HF_TOKEN"),
        (403, "GatedRepo", "is gated: accept its licence"),
        (404, "RepoNotFound", "no such model on the Hub"),
        (
            404,
            "RevisionNotFound",
            r"has no revision a18548dd.*if it has moved, correct \[models.lcm\] in .*zoo.toml",
        ),
        (401, "", "the Hub answered 401 about latent-consistency/lcm-lora-sdxl: check HF_TOKEN"),
    ],
)
def test_what_the_hub_refuses(tmp_path, hub, status, code, message):
    url, handler = hub
    handler.refused["latent-consistency/lcm-lora-sdxl"] = (status, code)
    done = std("models", "pull", "lcm", home=tmp_path / "home", url=url)
    assert (
        done.returncode == 2 and done.stderr.count("\n") == 1 and re.search(message, done.stderr)
    ), done.stderr


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
        missing.returncode == 5
        and "tcd is not downloaded, and HF_HUB_OFFLINE is set: run std models pull tcd"
        in missing.stderr
    )
    image = ["stylize", "image", str(picture), "--style", str(reference)]
    style = std(*image, *flag, **at)
    assert style.returncode == 5 and "HF_HUB_OFFLINE is set" in style.stderr
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
    assert needed("compare") == ["csd", "clip-l", "aesthetic", "vgg16", "lpips", "raft"]
    for arguments, message in [
        (["pull"], "nothing to pull"),
        (["pull", "lcn"], "did you mean lcm"),
        (["rm"], "nothing to remove"),
        (["inspect", "gone.safetensors"], "is not a file"),
        (["pull", "--for", "cooking"], "cooking"),
    ]:
        assert run(["models", *arguments]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and message in err, arguments


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


def test_tiny_is_a_model_that_is_here(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def models(*arguments):
        return run(["models", *arguments]), *capsys.readouterr()

    code, out, err = models("list", "--json")
    tiny = json.loads(out.splitlines()[0])
    assert (tiny["name"], tiny["here"], 0.001 < tiny["gb"] < 0.1) == ("tiny", True, True)
    assert models("path", "tiny") == (0, f"{tiny['path']}\n", "")
    assert (Path(tiny["path"]) / "model_index.json").is_file()
    assert models("pull", "tiny") == (0, "tiny is here\n", "")
    code, out, err = models("verify", "tiny")
    assert code == 0 and re.fullmatch(r"tiny  right \(\d+ files\)\n", out)
    assert models("rm", "tiny") == (
        2, "", "error: tiny is part of the package: it cannot be removed\n"
    )  # fmt: skip
    code, out, err = models("verify")
    assert (code, out) == (0, "") and "nothing to verify: no downloaded model is here" in err
    assert models("rm", "lcm") == (
        2, "", "error: lcm is not here: there is nothing to remove\n"
    )  # fmt: skip


@pytest.fixture
def corrections(tmp_path, monkeypatch):
    """The user's file for the table."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    zoo.cache_clear()
    (tmp_path / "std").mkdir()
    yield tmp_path / "std" / "zoo.toml"
    zoo.cache_clear()


def test_a_users_file_corrects_the_table(corrections):
    corrections.write_text(
        '[models.lcm]\nrepo = "me/lcm"\nrevision = "v2"\n'
        '[models.mine]\nkind = "base"\ntitle = "mine"\nrepo = "me/mine"\ngb = 7\n'
        'licence = "mit"\ninclude = ["*.json"]\n'
    )
    lcm, mine = find_entry("lcm"), find_entry("mine")
    assert (lcm.repo, lcm.revision, lcm.files) == ("me/lcm", "v2", (LCM,))
    assert not lcm.checked and str(corrections) in lcm.note
    assert mine.kind == "base" and find_entry("tcd").checked
    zoo.cache_clear()
    corrections.unlink()
    assert find_entry("lcm").repo == "latent-consistency/lcm-lora-sdxl"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[models.lcm", "cannot be read"),
        ("[methods.lcm]\nsteps = 2", "only tables"),
        ("models = 3", "only tables"),
        ("[models.lcm]\nrepo = 3", r"models\.lcm\.repo 3"),
        ("[models.lcm]\ncolour = 3", r"models\.lcm\.colour 3"),
        ("[models.new]\ntitle = 'x'", r"models\.new\.\w+"),
    ],
)
def test_a_wrong_correction_is_one_line(corrections, capsys, text, message):
    corrections.write_text(text)
    assert run(["models", "path", "lcm"]) == 2
    out, err = capsys.readouterr()
    assert (
        out == "" and err.count("\n") == 1 and re.search(message, err) and str(corrections) in err
    )


@pytest.fixture
def elsewhere(corrections, tmp_path, monkeypatch, hub):
    """(the path of lpips, which is on a server that is not the Hub; its handler)"""
    _, handler = hub
    data = b"weights" * 1000
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "vgg.pth").write_bytes(data)
    handler.repos["a/b"] = tmp_path / "served"
    url, digest = f"{handler.store}/cdn/a/b/vgg.pth", hashlib.sha256(data).hexdigest()
    corrections.write_text(f'[models.lpips]\nurl = "{url}"\nsha256 = "{digest}"\n')
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(downloads, "PAUSES", (0, 0, 0))
    return tmp_path / "cache" / "std" / "downloads" / digest / "vgg.pth", handler


def test_the_life_of_a_model_that_is_not_on_the_hub(elsewhere, capsys):
    path, handler = elsewhere
    handler.faults["vgg.pth"] = ["503"]
    assert run(["models", "pull", "lpips"]) == 0 and path.read_bytes() == b"weights" * 1000
    assert handler.sent == ["vgg.pth"]
    assert set(handler.tokens) == {None}, "the token is the Hub's alone"
    assert run(["models", "pull", "lpips"]) == 0 and handler.sent == ["vgg.pth"]
    capsys.readouterr()
    assert run(["models", "path", "lpips"]) == 0 and capsys.readouterr().out == f"{path}\n"
    assert run(["models", "verify"]) == 0
    path.write_bytes(b"weightz" * 1000)
    assert (
        run(["models", "verify", "lpips"]) == 1 and "its hash is wrong" in capsys.readouterr().out
    )
    assert run(["models", "verify", "--repair", "lpips"]) == 0
    assert path.read_bytes() == b"weights" * 1000
    assert run(["models", "rm", "lpips"]) == 0 and not path.parent.exists()


def test_a_file_from_elsewhere_resumes_and_is_checked(elsewhere, capsys, monkeypatch):
    path, handler = elsewhere
    path.parent.mkdir(parents=True)
    part = path.with_name("vgg.pth.incomplete")
    part.write_bytes(b"weights" * 400)
    assert run(["models", "pull", "lpips"]) == 0 and handler.sent == ["vgg.pth@2800"]
    path.unlink()
    handler.faults["vgg.pth"] = ["wrong"]
    capsys.readouterr()
    for code, message in ((5, "arrived damaged, or is another file now"), (0, "")):
        assert run(["models", "pull", "lpips"]) == code and message in capsys.readouterr().err
        assert not part.exists() and path.exists() == (code == 0)
    path.unlink()
    handler.faults["vgg.pth"] = ["503"] * 4
    assert run(["models", "pull", "lpips"]) == 5
    err = capsys.readouterr().err
    assert "answered 503" in err and "correct [models.lpips] in" in err and err.count("\n") == 1
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert run(["models", "pull", "lpips"]) == 5
    assert "lpips is not downloaded, and HF_HUB_OFFLINE is set" in capsys.readouterr().err
