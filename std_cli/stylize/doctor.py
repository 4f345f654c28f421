"""What of this machine would break a run: what `std doctor` tells, as one event, JSON-ready:
"doctor", with

versions    {package: version, null if it is not there}
devices     [{device, name, free, total}], bytes; the first is what --device auto takes
driver      of NVIDIA, or null
encoders    {FFmpeg's name: "" if it works, else why not}
cache       path, free (bytes), writable, models ({name: whether it is downloaded}), missing (names
of what pictures and
            videos need by default and is not downloaded)
hub         endpoint, offline, error ("" if it answers, null if it was not asked)
self_test   seconds, error ("" if a picture was stylized)
problems    [{what, remedy, breaks}]; breaks: a run of the default kind would fail
"""

import os
import platform
import shutil
import subprocess
import time
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Protocol

from std_cli import __version__
from std_cli.errors import InputError, NotDownloaded, StdError
from std_cli.events import Cache, Device, Doctor, Hub, OnEvent, Problem, SelfTest, Version
from std_cli.stylize.stylizer import stylize_images
from std_cli.weights.cache import needed
from std_cli.weights.downloads import files_here
from std_cli.weights.hub import ask_hub, hub_cache, source, without_downloads
from std_cli.weights.resolve import model_names, resolve_model
from std_cli.weights.zoo import find_entry

PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "safetensors",
    "huggingface_hub",
    "av",
)


class Judge(Protocol):
    """Notes a problem of this machine."""

    def __call__(self, what: str, remedy: str, breaks: bool = True) -> None: ...


SMALL_GPU = 6 * 2**30
"""Less than this is little even for --offload model."""


def examine(*, offline: bool = False, on_event: OnEvent = lambda event: None) -> Doctor:
    """Look at everything, the Hub too unless `offline` or HF_HUB_OFFLINE say not to; writes
    nothing."""
    problems: list[Problem] = []

    def problem(what: str, remedy: str, breaks: bool = True) -> None:
        problems.append({"what": what, "remedy": remedy, "breaks": breaks})

    def check(what: str) -> None:
        on_event({"event": "progress", "stage": "check", "what": what})

    check("versions")
    versions = package_versions()
    for what in unmet_requirements():
        problem(what, "run pip install -U std-cli, or install std in a new environment")
    found: Doctor = {
        "event": "doctor",
        "versions": versions,
        "devices": [],
        "driver": None,
        "encoders": {},
        "cache": None,
        "hub": None,
        "self_test": None,
        "problems": problems,
    }
    if versions["torch"] is None:  # nothing else can be looked at
        return found
    check("devices")
    found["devices"], found["driver"] = devices(), _nvidia_driver()
    _judge_devices(found, problem)
    check("encoders")
    found["encoders"] = _encoders(problem)
    check("the cache and the Hub")
    cache, hub = _cache(problem), ask_hub(offline)
    found["cache"], found["hub"] = cache, hub
    _judge_downloads(cache, hub, problem)
    check("a small stylization")
    test = self_test()
    found["self_test"] = test
    if test["error"]:
        problem(
            f"the self-test failed: {test['error']}",
            "try std doctor -v, and --device cpu for runs",
        )
    return found


def version_facts(verbose: bool) -> Version:
    """The version of std; if verbose, with those of the libraries, and the devices."""
    facts: Version = {"event": "version", "version": __version__}
    if verbose:
        facts["versions"] = package_versions()
        facts["devices"] = devices() if facts["versions"]["torch"] else []
    return facts


def package_versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"std": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def unmet_requirements() -> list[str]:
    """Of what the installed std says that it needs: what is missing or too old."""
    from packaging.requirements import Requirement

    try:
        needed = [Requirement(text) for text in requires("std-cli") or ()]
    except PackageNotFoundError:  # run from its sources
        needed = [Requirement(name) for name in PACKAGES]
    unmet = []
    for requirement in needed:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            here = version(requirement.name)
        except PackageNotFoundError:
            unmet.append(f"{requirement.name} is not installed")
            continue
        if not requirement.specifier.contains(here, prereleases=True):
            unmet.append(
                f"{requirement.name} {here} is installed, and std needs {requirement.specifier}"
            )
    return unmet


def devices() -> list[Device]:
    """Those that torch can use; the first is what --device auto takes."""
    import torch

    from std_cli.diffusion.devices import device_name, free_memory

    names = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    names += ["mps"] * torch.backends.mps.is_available() + ["cpu"]
    found: list[Device] = []
    for name in names:
        device = torch.device(name)
        free, total = free_memory(device)
        found.append({"device": name, "name": device_name(device), "free": free, "total": total})
    return found


def _nvidia_driver() -> str | None:
    """Its version, by NVIDIA's own tool, whatever torch can do."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(done.stdout.split()), None)


def _judge_devices(found: Doctor, problem: Judge) -> None:
    first = found["devices"][0]
    if first["device"] == "cpu":
        if found["driver"]:
            problem(
                f"torch {found['versions']['torch']} cannot use the NVIDIA GPU (driver "
                f"{found['driver']})",
                "install a build of torch for CUDA that the driver is new enough for "
                "(pytorch.org/get-started)",
                breaks=False,
            )
        else:
            remedy = (
                "use --model tiny, or a machine with a GPU for SDXL, which takes minutes "
                "for a picture on a CPU"
            )
            problem("no GPU that torch can use", remedy, breaks=False)
    elif first["total"] < SMALL_GPU:
        problem(
            f"{first['name']} has {first['total'] / 2**30:.1f} GiB",
            "use --offload sequential for SDXL",
            breaks=False,
        )


def _encoders(problem: Judge) -> dict[str, str]:
    try:
        from std_cli.media.video.encoders import try_encoders
    except ImportError as e:
        problem(f"PyAV cannot be loaded ({e})", "run pip install --force-reinstall av")
        return {}
    found = try_encoders()
    if found["libx264"]:
        problem(found["libx264"], "run pip install --force-reinstall av, or give another --codec")
    return found


def _cache(problem: Judge) -> Cache:
    folder = hub_cache()
    there = next(path for path in (folder, *folder.parents) if path.is_dir())
    models = {}
    for name in model_names():
        with without_downloads():
            try:
                resolve_model(name)
                models[name] = True
            except NotDownloaded:
                models[name] = False
            except InputError as e:
                models[name] = False
                problem(f"--model {name}: {e}", "run std models verify --repair")
    wanted = dict.fromkeys([*needed("image"), *needed("video")])
    return {
        "path": str(folder),
        "free": shutil.disk_usage(there).free,
        "writable": os.access(there, os.W_OK | os.X_OK),
        "models": models,
        "missing": [name for name in wanted if not files_here(source(name))],
    }


def _judge_downloads(cache: Cache, hub: Hub, problem: Judge) -> None:
    if not cache["missing"]:
        return
    what = f"not downloaded: {', '.join(cache['missing'])}"
    size = sum(find_entry(name).gb for name in cache["missing"])
    only_tiny = "or use --model tiny, which needs no download"
    if not cache["writable"]:
        problem(
            f"the cache {cache['path']} cannot be written",
            f"set HF_HOME to a folder of yours, {only_tiny}",
        )
    if cache["free"] < size * 1e9:
        gb = f"{cache['free'] / 1e9:.1f} GB"
        problem(
            f"{gb} are free for the cache {cache['path']}, and {size:.1f} are {what}",
            f"set HF_HOME to a larger disk, {only_tiny}",
        )
    if hub["offline"]:
        problem(
            f"{what}; this is off-line",
            f"run std models pull once on-line, {only_tiny}",
            breaks=False,
        )
    elif hub["error"]:
        remedy = f"check network, proxy (HTTPS_PROXY) or mirror (HF_ENDPOINT), {only_tiny}"
        problem(f"{what}; {hub['endpoint']} cannot be reached ({hub['error']})", remedy)


def self_test() -> SelfTest:
    """Stylize a small picture with the model in the package, on the device that a run would
    take."""
    from PIL import Image, ImageChops

    begin, error = time.monotonic(), ""
    picture = Image.merge(
        "RGB", [Image.linear_gradient("L").rotate(90 * i).resize((128, 96)) for i in range(3)]
    )
    style = Image.radial_gradient("L").convert("RGB")
    try:
        [result] = stylize_images(picture, style, model="tiny", size=128, steps=2)
        flat = all(low == high for low, high in result.getextrema())  # type: ignore[misc]
        if (
            result.size != picture.size
            or flat
            or ImageChops.difference(result, picture).getbbox() is None
        ):
            error = f"the result, {result.size[0]} x {result.size[1]}, is no stylized picture"
    except StdError as e:
        error = str(e)
    except Exception as e:  # whatever breaks here would break a run
        error = f"{type(e).__name__}: {' '.join(str(e).split()) or 'no message'}"
    return {"seconds": round(time.monotonic() - begin, 3), "error": error}
