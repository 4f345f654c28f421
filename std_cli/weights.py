"""Names to files: models from the table, from disk or from the Hub, checked before a weight is loaded.

Only this module speaks to the Hub; HF_HOME, HF_TOKEN and HF_HUB_OFFLINE mean what huggingface_hub says. What is in its
cache is used as it is, without a look at the Hub: `hf download` refreshes it. Only safetensors are read, never pickles.
"""

import hashlib
import json
import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from std_cli.errors import InputError, NotDownloaded, StdError
from std_cli.zoo import TABLE, find_entry, names_of, zoo

TINY = Path(__file__).parent / "packs" / "tiny"  # the model inside this package


@dataclass(frozen=True)
class HubRepo:
    """What is needed of one Hub repository: `files`, or the SDXL folder that the patterns in `include` cover."""

    repo: str
    revision: str
    files: tuple[str, ...] = ()
    include: tuple[str, ...] = ("*.json", "*.txt", "*/*.safetensors")

    @property
    def command(self) -> str:
        """The shell command that brings it into the cache."""
        patterns = " ".join(f'--include "{pattern}"' for pattern in self.files or self.include)
        return f"hf download {self.repo} --revision {self.revision} {patterns}"


NAMES = ("tiny", *names_of("base"))
IP_ADAPTERS = {"plus": "ip-adapter-plus", "plain": "ip-adapter"}  # of models that have none of their own


def source(name: str) -> HubRepo:
    """Where the table says that a model is. Raises InputError if it is not on the Hub, or not in the table."""
    entry = find_entry(name)
    if entry.url:
        raise InputError(f"{name} is not on the Hub: download {entry.url} and give the file")
    return HubRepo(entry.repo, entry.revision, entry.files, entry.include or HubRepo.include)


# The parts of a diffusers SDXL folder: how their weight files are called, and their config (one of these).
_WEIGHTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}
_PARTS = {
    **dict.fromkeys(_WEIGHTS, ("config.json",)),
    **dict.fromkeys(("tokenizer", "tokenizer_2"), ("vocab.json", "tokenizer.json")),
    "scheduler": ("scheduler_config.json",),
}
SINGLE_FILE_KEYS = {  # start of a key -> the part that it proves
    "model.diffusion_model.input_blocks.0.0.weight": "UNet",
    "model.diffusion_model.label_emb.0.0.weight": "UNet of the SDXL kind",
    "conditioner.embedders.0.transformer.": "first text encoder",
    "conditioner.embedders.1.model.": "second text encoder",
    "first_stage_model.": "VAE",
}
_PICKLES = (".ckpt", ".pt", ".pth", ".bin")


@dataclass(frozen=True)
class ModelFiles:
    """A model on disk, checked as far as its file headers tell."""

    name: str
    """What the user asked for."""
    base: Path
    """A diffusers folder, or one .safetensors checkpoint."""
    single_file: bool
    config: Path | None
    """For a single file: the folder with the configs and tokenizers that it lacks (`from_single_file(config=...)`)."""
    variant: str | None
    """The `variant` that diffusers needs to find the weights of a folder: "fp16" or none."""
    ip_adapter: Path
    """IP-Adapter weights, plus or plain: keys "image_proj.*" and "ip_adapter.*"."""
    image_encoder: Path
    """Folder of the CLIPVisionModelWithProjection."""
    pack: dict[str, Any]
    """Contents of the folder's std.json, {} if it has none."""


# --- models ----------------------------------------------------------------------------------------------------------


def resolve_model(name: str, *, local_only: bool = False, ip_adapter: str = "plus") -> ModelFiles:
    """The files of a model: a name of the table, a diffusers folder, a FILE.safetensors, or `owner/name[@revision]`.

    ip_adapter: "plus" or "plain", of a model that has none of its own. What is missing is downloaded, unless
    `local_only`. Raises InputError for what cannot be had or is no SDXL model.
    """
    path = Path(name).expanduser()
    if name == "tiny":
        return _folder_model(name, TINY, False, local_only, ip_adapter)
    if name in NAMES:
        folder, _ = fetch([source(name), source(IP_ADAPTERS[ip_adapter])], local_only)
        return _folder_model(name, folder, True, local_only, ip_adapter)
    if name and os.path.isdir(path):
        return _folder_model(name, path, False, local_only, ip_adapter)
    if os.path.isfile(path):
        return _single_file_model(name, path, local_only, ip_adapter)
    hub = hub_id(name)
    if not hub or hub[2]:
        raise InputError(
            f"no model {name!r}: name one of {', '.join(NAMES)}, a folder or .safetensors file that exists, "
            "or owner/name[@revision] on the Hub"
        )
    return _folder_model(name, fetch([HubRepo(hub[0], hub[1])], local_only)[0], True, local_only, ip_adapter)


def _folder_model(name: str, folder: Path, from_hub: bool, local_only: bool, kind: str) -> ModelFiles:
    """Check a diffusers folder, its headers included, and find its IP-Adapter."""
    names = file_names(folder, depth=2)
    if lacks := _lacks(names):
        raise InputError(f"the model {name} is not a whole SDXL folder ({folder}): {lacks}")
    unet = read_object(folder / "unet" / "config.json")
    for setting, needed in (("addition_embed_type", "text_time"), ("in_channels", 4)):  # 9 channels: inpainting
        if unet.get(setting) != needed:
            found = f"{setting} in unet/config.json is {unet.get(setting)!r}, not {needed!r}"
            raise InputError(f"{name} is not an SDXL model: {found}: choose an SDXL base model")
    weights, variant = _choose_weights(names, prefer_half=from_hub)
    for weight in weights:
        read_header(folder / weight)
    pack = read_object(folder / "std.json") if "std.json" in names else {}
    return ModelFiles(name, folder, False, None, variant, *_ip_adapter(name, folder, names, local_only, kind), pack)


def _single_file_model(name: str, path: Path, local_only: bool, kind: str) -> ModelFiles:
    """Check a checkpoint in one file, and fetch what it cannot hold."""
    check_checkpoint(name, path)
    config, _ = fetch([source("sdxl-config"), source(IP_ADAPTERS[kind])], local_only)
    return ModelFiles(name, path, True, config, None, *_ip_adapter(name, path.parent, set(), local_only, kind), {})


def check_checkpoint(name: str, path: Path) -> None:
    """Raises InputError unless a file holds every part of SDXL, by its keys."""
    shapes, _ = read_header(path)
    lacks = [f"{part} ({key})" for key, part in SINGLE_FILE_KEYS.items() if not any(k.startswith(key) for k in shapes)]
    if lacks:
        raise InputError(f"{name} is not an SDXL checkpoint: it lacks {', '.join(lacks)}: choose an SDXL base model")


def _ip_adapter(name: str, folder: Path, names: set[str], local_only: bool, kind: str) -> tuple[Path, Path]:
    """(weights, image encoder folder): each the model's own if `names` tells that it has one, else the Hub's."""
    own = [folder / n for n in sorted(names) if n.startswith("ip_adapter/") and n.endswith(".safetensors")]
    own_encoder = any(n.startswith("image_encoder/") for n in names)
    if len(own) > 1:
        raise InputError(f"the model {name} has {len(own)} files in ip_adapter/: leave the one to use")
    if own and kind != "plus":
        raise InputError(f"--ip-adapter {kind}: the model {name} has an IP-Adapter of its own: leave it out")
    published = source(IP_ADAPTERS[kind])
    hub = folder if own and own_encoder else fetch([published], local_only)[0]
    weights = own[0] if own else hub / published.files[0]
    encoder = folder / "image_encoder" if own_encoder else (hub / published.files[1]).parent
    if {key.split(".")[0] for key in read_header(weights)[0]} != {"image_proj", "ip_adapter"}:
        raise InputError(f"{weights} is not an IP-Adapter: its keys must be image_proj.* and ip_adapter.*")
    read_object(encoder / "config.json")
    read_header(encoder / "model.safetensors")
    return weights, encoder


def file_names(folder: Path, depth: int) -> set[str]:
    """The files of a folder, at most `depth` levels down: relative, with slashes."""
    levels = (folder.glob("/".join(["*"] * level)) for level in range(1, depth + 1))
    return {path.relative_to(folder).as_posix() for level in levels for path in level if path.is_file()}


def _lacks(names: Collection[str]) -> str:
    """What an SDXL folder with these files lacks, and what to do about it; "" if it is whole."""
    lacks = [] if "model_index.json" in names else ["model_index.json"]
    pickles = False
    for part, configs in _PARTS.items():
        inside = [n for n in names if n.startswith(f"{part}/")]
        if not inside:
            lacks.append(f"{part}/")
            continue
        if not any(f"{part}/{config}" in inside for config in configs):
            lacks.append(f"{part}/{configs[0]}")
        if part in _WEIGHTS and not (_weights_of(part, names, "") or _weights_of(part, names, ".fp16")):
            lacks.append(f"{part}/{_WEIGHTS[part]}.safetensors")
            pickles |= any(n.endswith(_PICKLES) for n in inside)
    remedy = "its pickle weights (.bin) are not read: convert them to safetensors" if pickles else "complete it"
    return f"it lacks {', '.join(lacks)}: {remedy}" if lacks else ""


def _weights_of(part: str, names: Collection[str], variant: str) -> list[str]:
    """The file, or all the shards, with a part's weights in a variant ("" or ".fp16"); [] if they are not all there."""
    stem = f"{part}/{_WEIGHTS[part]}{variant}"
    if f"{stem}.safetensors" in names:
        return [f"{stem}.safetensors"]
    pattern = re.compile(rf"{re.escape(stem)}-\d{{5}}-of-(\d{{5}})\.safetensors")
    shards = [match for name in sorted(names) if (match := pattern.fullmatch(name))]
    return [m[0] for m in shards] if shards and len(shards) == int(shards[0][1]) else []


def _choose_weights(names: Collection[str], prefer_half: bool) -> tuple[list[str], str | None]:
    """(weight files, diffusers' variant): the half-size fp16 files where nothing else is there, or where preferred."""
    plain = {part: _weights_of(part, names, "") for part in _WEIGHTS}
    half = {part: _weights_of(part, names, ".fp16") for part in _WEIGHTS}
    if any(not plain[part] for part in _WEIGHTS) or (prefer_half and all(half.values())):
        return [file for part in _WEIGHTS for file in half[part] or plain[part]], "fp16"
    return [file for part in _WEIGHTS for file in plain[part]], None


def weight_files(model: ModelFiles) -> dict[str, tuple[list[Path], str]]:
    """The weight files of the UNet, the VAE and the text encoders, and what the keys of each part start with there."""
    if model.single_file:
        starts = (
            "model.diffusion_model.",
            "first_stage_model.",
            "conditioner.embedders.0.",
            "conditioner.embedders.1.",
        )
        return {part: ([model.base], start) for part, start in zip(_WEIGHTS, starts, strict=True)}
    chosen, _ = _choose_weights(file_names(model.base, depth=2), prefer_half=model.variant == "fp16")
    return {part: ([model.base / file for file in chosen if file.startswith(f"{part}/")], "") for part in _WEIGHTS}


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that must hold an object."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is missing or not JSON: copy it again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a JSON object, not {type(content).__name__}: copy it again")
    return content


def read_header(path: Path) -> tuple[dict[str, list[int]], dict[str, str]]:
    """({key: shape}, metadata) of a safetensors file, whose length is checked too; no weight is read."""
    from safetensors import SafetensorError, safe_open

    if path.suffix in _PICKLES:
        raise InputError(f"{path} is a pickle, which can run any code when it is read: convert it to safetensors")
    try:
        with safe_open(path, framework="np") as file:
            keys = file.keys()
            return {key: file.get_slice(key).get_shape() for key in keys}, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is missing, damaged or no safetensors file: copy it again") from error


# --- motion ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MotionFiles:
    """A motion adapter on disk, checked against the UNet's config."""

    name: str
    """What the user asked for, or what auto chose."""
    weights: Path
    config: dict[str, Any]
    """Of diffusers' MotionAdapter."""
    hotshot: bool
    """The weights have HotShot-XL's own keys."""
    window: int
    """Frames that it denoises at once."""


# HotShot-XL's layers as a MotionAdapter's (SDXL's three blocks, none in the middle).
HOTSHOT_CONFIG: dict[str, Any] = {
    "block_out_channels": [320, 640, 1280],
    "motion_layers_per_block": 2,
    "motion_num_attention_heads": 8,
    "motion_norm_num_groups": 32,
    "motion_max_seq_length": 24,
    "use_motion_mid_block": False,
}
WINDOW = 8  # frames, of an adapter that nothing tells more of; STD trains its video LoRAs on 8 frames


def resolve_motion(spec: str, model: ModelFiles) -> MotionFiles | None:
    """The motion adapter that `spec` names: auto, none, hotshot, animatediff, a diffusers folder, or a Hub id.

    "auto" is the pack's own (`motion_adapter/` in the model's folder, with `motion_window` in its std.json), else
    HotShot-XL, which STD's video LoRAs are trained with. Raises InputError if it is not there, is no motion adapter, or
    does not fit the model's UNet.
    """
    own = model.base / "motion_adapter"
    if spec == "none":
        return None
    if spec == "auto" and (model.pack or own.is_dir()):
        if not own.is_dir():
            return None
        folder, window, name = own, int(model.pack.get("motion_window", WINDOW)), "motion_adapter"
    elif spec in ("auto", *names_of("motion")):
        name = "hotshot" if spec == "auto" else spec
        folder, window = fetch([source(name)])[0], find_entry(name).window or WINDOW
    elif os.path.isdir(Path(spec).expanduser()):
        folder, window, name = Path(spec).expanduser(), WINDOW, spec
    else:
        hub = hub_id(spec)
        if not hub or hub[2]:
            raise InputError(
                f"no motion adapter {spec!r}: give auto, none, {', '.join(names_of('motion'))}, a diffusers folder, "
                "or owner/name"
            )
        files = HubRepo(hub[0], hub[1], files=("config.json", "diffusion_pytorch_model.safetensors"))
        folder, window, name = fetch([files])[0], WINDOW, spec
    if name == "hotshot":
        weights, config = folder / find_entry(name).files[0], HOTSHOT_CONFIG
    else:
        config = read_object(folder / "config.json")
        found = [folder / f"diffusion_pytorch_model{v}.safetensors" for v in (".fp16", "")]
        weights = next((f for f in found if f.is_file()), found[1])
    keys = read_header(weights)[0]
    if not any(".motion_modules." in key or ".temporal_attentions." in key for key in keys):
        raise InputError(f"--motion {name}: none of the {len(keys)} tensors in {weights.name} is a motion adapter's")
    _check_motion(name, config, model)
    window = min(window, int(config.get("motion_max_seq_length", 32)))
    return MotionFiles(name, weights, config, name == "hotshot", window)


def _check_motion(name: str, config: dict[str, Any], model: ModelFiles) -> None:
    unet = read_object((model.config or model.base) / "unet" / "config.json")
    for theirs, ours in (("block_out_channels", "block_out_channels"), ("motion_layers_per_block", "layers_per_block")):
        if config.get(theirs) != unet.get(ours):
            raise InputError(
                f"--motion {name} does not fit --model {model.name}: its {theirs} is {config.get(theirs)}, the UNet's "
                f"{ours} {unet.get(ours)}: choose an adapter made for this model, or --motion none"
            )


# --- the Hub ---------------------------------------------------------------------------------------------------------


def hub_id(text: str) -> tuple[str, str, str | None] | None:
    """(repository, revision, file) of `owner/name[@revision][/file.safetensors]`; None if that is not its form."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@(\w[\w.-]*))?(?:/(.+\.safetensors))?", text)
    if not match or ".." in text or match[1].endswith((".safetensors", *_PICKLES)):
        return None
    try:
        validate_repo_id(match[1])
    except HFValidationError:
        return None
    return match[1], match[2] or "main", match[3]


_LOCAL = ContextVar("_LOCAL", default=False)


@contextmanager
def without_downloads() -> Iterator[None]:
    """Inside, whatever would be downloaded raises NotDownloaded instead; nothing asks the Hub."""
    token = _LOCAL.set(True)
    try:
        yield
    finally:
        _LOCAL.reset(token)


def fetch(sources: list[HubRepo], local_only: bool = False) -> list[Path]:
    """The snapshot folder of each source: from the cache where it is whole, else downloaded."""
    cached = [cached_folder(source) for source in sources]
    missing = [source for source, folder in zip(sources, cached, strict=True) if folder is None]
    if missing and (local_only or _LOCAL.get()):
        raise unreachable(missing, "downloads are switched off")
    return [folder or _download(source, missing) for source, folder in zip(sources, cached, strict=True)]


def cached_folder(source: HubRepo) -> Path | None:
    """The snapshot folder of a source that is whole in huggingface_hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    first = source.files[0] if source.files else "model_index.json"
    path = try_to_load_from_cache(source.repo, first, revision=source.revision)
    if not isinstance(path, str):
        return None
    folder = Path(path).parents[first.count("/")]
    names = file_names(folder, depth=3)
    return folder if names.issuperset(source.files) and (source.files or not _lacks(names)) else None


def _download(source: HubRepo, missing: list[HubRepo]) -> Path:
    """Download a source; if the Hub cannot be reached, the error names everything that is `missing`."""
    from huggingface_hub import snapshot_download

    names = _hub_names(source, missing)
    absent = ", ".join(file for file in source.files if file not in names)
    if lacks := f"it lacks {absent}" if absent else "" if source.files else _lacks(names):
        told = f"{lacks}{if_moved(source)}"
        raise InputError(f"{source.repo} on the Hub (revision {source.revision}) cannot be used: {told}")
    files = list(source.files) or wanted_files(names)
    with hub_errors(source, missing):
        return Path(snapshot_download(source.repo, revision=source.revision, allow_patterns=files))


def _hub_names(source: HubRepo, missing: list[HubRepo]) -> set[str]:
    """The files of a repository on the Hub."""
    from huggingface_hub import HfApi

    if _LOCAL.get():
        raise unreachable(missing, "downloads are switched off")
    # One request without retries: off-line it fails at once, where a download would retry for 23 seconds.
    with hub_errors(source, missing):
        return {file.rfilename for file in HfApi().model_info(source.repo, revision=source.revision).siblings or ()}


def wanted_files(names: set[str]) -> list[str]:
    """What to download of a model: configs, one set of weights, its own IP-Adapter, all other folders of a pack."""
    wanted, _ = _choose_weights(names, prefer_half=True)
    for name in names:
        folder, slash, _ = name.partition("/")
        own = folder in ("ip_adapter", "image_encoder") or ("std.json" in names and slash and folder not in _PARTS)
        if name.endswith((".json", ".txt")) or (own and name.endswith(".safetensors")):
            wanted.append(name)
    return wanted


def if_moved(source: HubRepo) -> str:
    """What else to do about a repository that is not as the table says, if it is from there."""
    listed = any(entry.repo == source.repo for entry in zoo().models.values())
    return f"; if it has moved, correct it in {TABLE}" if listed else ""


@contextmanager
def hub_errors(source: HubRepo, missing: list[HubRepo]) -> Iterator[None]:
    """Say what an exception of huggingface_hub means for the user."""
    from huggingface_hub import constants, errors

    unreached = (ConnectionError, errors.LocalEntryNotFoundError)
    try:
        yield
    except errors.GatedRepoError as error:
        page = f"https://huggingface.co/{source.repo}"
        raise InputError(f"{source.repo} is gated: accept its licence at {page} and set HF_TOKEN") from error
    except errors.RepositoryNotFoundError as error:
        remedy = f"check its spelling; if it is private, set HF_TOKEN{if_moved(source)}"
        raise InputError(f"no such model on the Hub, and no such file here: {source.repo}: {remedy}") from error
    except errors.RevisionNotFoundError as error:
        other = f"name another{if_moved(source)}"
        raise InputError(f"{source.repo} has no revision {source.revision} on the Hub: {other}") from error
    except errors.HfHubHTTPError as error:
        answer = f"the Hub answered {error.response.status_code} about {source.repo}"
        if error.response.status_code in (401, 403):
            raise InputError(f"{answer}: check HF_TOKEN, or what hf auth login has stored") from error
        raise StdError(f"{answer}: try again later") from error
    except (errors.HTTPError, OSError) as error:  # type: ignore[attr-defined]  # HTTPError: httpx's or httpx2's
        if isinstance(error, OSError) and not isinstance(error, unreached):
            raise StdError(f"{source.repo} cannot be stored under HF_HOME: {error.strerror or error}") from error
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the Hub cannot be reached"
        raise unreachable(missing, why) from error


def unreachable(missing: list[HubRepo], why: str) -> NotDownloaded:
    repos = " and ".join(dict.fromkeys(source.repo for source in missing))
    commands = " && ".join(source.command for source in missing)
    return NotDownloaded(
        f"{repos} not downloaded yet, and {why}: run {commands}, or use --model tiny, which needs none"
    )


def hub_cache() -> Path:
    """The folder that the Hub's files are kept in."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def ask_hub(offline: bool = False, timeout: float = 3.0) -> dict[str, Any]:
    """endpoint, offline (by `offline` or HF_HUB_OFFLINE), error: "" if the Hub answers, None if it was not asked."""
    from huggingface_hub import constants, get_session
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # httpx's or httpx2's

    state: dict[str, Any] = {"endpoint": constants.ENDPOINT, "offline": offline or constants.HF_HUB_OFFLINE}
    if state["offline"]:
        return state | {"error": None}
    try:
        get_session().head(constants.ENDPOINT, timeout=timeout)  # any answer will do
    except (HTTPError, OSError, ValueError) as error:
        return state | {"error": " ".join(str(error).split()) or type(error).__name__}
    return state | {"error": ""}


def resolve_features(name: str) -> Path:
    """A DINOv2 on disk: "dinov2" (ViT-S/14, from the Hub), or a folder or .pth file that exists."""
    path = Path(name).expanduser()
    if name == "dinov2":
        return fetch([source("dinov2-small")])[0]
    if not path.exists():
        raise InputError(f"adversarial.features {name!r}: give dinov2, random, none, or a folder or .pth that exists")
    return path


def push_lora(path: Path, repo: str) -> None:
    """Upload a LoRA to a Hub repository of the user's, which is made if it is not there."""
    from huggingface_hub import HfApi

    source = HubRepo(repo, "main", files=(path.name,))
    with hub_errors(source, [source]):
        HfApi().create_repo(repo, exist_ok=True)
        HfApi().upload_file(path_or_fileobj=path, path_in_repo=path.name, repo_id=repo)


def only_file(source: HubRepo) -> str:
    """The only safetensors file of a repository: by its cached snapshot if that is whole, or by the Hub."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        local = snapshot_download(
            source.repo, revision=source.revision, allow_patterns=list(source.include), local_files_only=True
        )
        names = file_names(Path(local), depth=3)
    except LocalEntryNotFoundError:
        names = _hub_names(source, [source])
    files = sorted(name for name in names if name.endswith(".safetensors"))
    if len(files) != 1:
        listed = f"{len(files)} safetensors files ({', '.join(files[:8])})" if files else "no safetensors file"
        raise InputError(f"{source.repo} holds {listed}: name one as {source.repo}/file.safetensors")
    return files[0]


# --- fingerprints ----------------------------------------------------------------------------------------------------


def fingerprint(path: Path) -> str:
    """16 hex digits that identify a weight file, or all weights and configs (names and contents) of a folder."""
    if path.is_file():
        return _sha256(path)[:16]
    files = sorted((f.relative_to(path).as_posix(), f) for f in path.rglob("*.*") if f.is_file())
    kept = [(name, file) for name, file in files if file.suffix in (".safetensors", ".json", ".txt")]
    return hashlib.sha256("".join(f"{name}\n{_sha256(file)}\n" for name, file in kept).encode()).hexdigest()[:16]


def _sha256(path: Path) -> str:
    real = path.resolve()
    return _sha256_of(real, real.stat().st_size, real.stat().st_mtime_ns)


@cache
def _sha256_of(path: Path, size: int, mtime_ns: int) -> str:
    """SHA-256 of a file; that of a large one is remembered on disk while its size and time stay the same."""
    key = f"{path}|{size}|{mtime_ns}"
    store = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "std" / "sha256.json"
    known: dict[str, Any] = {}
    if size > 2**24:
        with suppress(OSError, InputError):
            known = read_object(store)
        if isinstance(known.get(key), str):
            return str(known[key])
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if size > 2**24:
        with suppress(OSError):  # a cache that cannot be written only costs time
            store.parent.mkdir(parents=True, exist_ok=True)
            draft = store.with_suffix(f".{os.getpid()}")
            draft.write_text(json.dumps(known | {key: digest}, indent=0))
            draft.replace(store)
    return digest
