"""The Hub: what is needed of a repository, from huggingface_hub's cache or downloaded, and what its
errors mean.

Only this module and `downloads` speak to the Hub; HF_HOME, HF_TOKEN and HF_HUB_OFFLINE mean what
huggingface_hub says. What is in its cache is used as it is, without a look at the Hub:
`hf download` refreshes it.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from std_cli.errors import InputError, NetworkError, NotDownloaded, StdError
from std_cli.events import Hub
from std_cli.weights.files import PICKLES, file_names
from std_cli.weights.sdxl_files import missing_files, wanted_files
from std_cli.weights.zoo import corrections_file, find_entry, zoo


@dataclass(frozen=True)
class HubRepo:
    """What is needed of one Hub repository: `files`, or the SDXL folder that the patterns in
    `include` cover."""

    repo: str
    revision: str
    files: tuple[str, ...] = ()
    include: tuple[str, ...] = ("*.json", "*.txt", "*/*.safetensors")

    @property
    def command(self) -> str:
        """The shell command that brings it into the cache."""
        patterns = " ".join(f'--include "{pattern}"' for pattern in self.files or self.include)
        return f"hf download {self.repo} --revision {self.revision} {patterns}"


def source(name: str) -> HubRepo:
    """Where the table says that a model is. Raises InputError if it is not on the Hub, or not in
    the table."""
    entry = find_entry(name)
    if entry.url:
        raise InputError(f"{name} is not on the Hub: run std models pull {name} and give the file")
    return HubRepo(entry.repo, entry.revision, entry.files, entry.include or HubRepo.include)


def hub_id(text: str) -> tuple[str, str, str | None] | None:
    """(repository, revision, file) of `owner/name[@revision][/file.safetensors]`; None if that is
    not its form."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@(\w[\w.-]*))?(?:/(.+\.safetensors))?", text)
    if not match or ".." in text or match[1].endswith((".safetensors", *PICKLES)):
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


def why_offline() -> str:
    """Why the Hub may not be asked, for a message; "" if it may."""
    from huggingface_hub import constants

    if _LOCAL.get():
        return "this command downloads nothing"
    return "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else ""


def fetch(sources: list[HubRepo]) -> list[Path]:
    """The snapshot folder of each source: from the cache where it is whole, else downloaded."""
    cached = [cached_folder(source) for source in sources]
    missing = [source for source, folder in zip(sources, cached, strict=True) if folder is None]
    if missing and (why := why_offline()):
        raise unreachable(missing, why)
    return [
        folder or _download(source, missing) for source, folder in zip(sources, cached, strict=True)
    ]


def cached_folder(source: HubRepo) -> Path | None:
    """The snapshot folder of a source that is whole in huggingface_hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    first = source.files[0] if source.files else "model_index.json"
    path = try_to_load_from_cache(source.repo, first, revision=source.revision)
    if not isinstance(path, str):
        return None
    folder = Path(path).parents[first.count("/")]
    names = file_names(folder, depth=3)
    return (
        folder
        if names.issuperset(source.files) and (source.files or not missing_files(names))
        else None
    )


def _download(source: HubRepo, missing: list[HubRepo]) -> Path:
    """Download a source; if the Hub cannot be reached, the error names everything that is
    `missing`."""
    from huggingface_hub import snapshot_download

    names = _hub_names(source, missing)
    absent = ", ".join(file for file in source.files if file not in names)
    if lacks := f"it lacks {absent}" if absent else "" if source.files else missing_files(names):
        raise InputError(
            f"{source.repo} on the Hub (revision {source.revision}) cannot be used: "
            f"{lacks}{if_moved(source)}"
        )
    files = list(source.files) or wanted_files(names)
    with hub_errors(source, missing):
        return Path(snapshot_download(source.repo, revision=source.revision, allow_patterns=files))


def _hub_names(source: HubRepo, missing: list[HubRepo]) -> set[str]:
    """The files of a repository on the Hub."""
    from huggingface_hub import HfApi

    if why := why_offline():
        raise unreachable(missing, why)
    # One request without retries: off-line it fails at once, where a download would retry for 23
    # seconds.
    with hub_errors(source, missing):
        return {
            file.rfilename
            for file in HfApi().model_info(source.repo, revision=source.revision).siblings or ()
        }


def only_file(source: HubRepo) -> str:
    """The only safetensors file of a repository: by its cached snapshot if that is whole, or by the
    Hub."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        local = snapshot_download(
            source.repo,
            revision=source.revision,
            allow_patterns=list(source.include),
            local_files_only=True,
        )
        names = file_names(Path(local), depth=3)
    except LocalEntryNotFoundError:
        names = _hub_names(source, [source])
    files = sorted(name for name in names if name.endswith(".safetensors"))
    if len(files) != 1:
        listed = "no safetensors file"
        if files:
            listed = f"{len(files)} safetensors files ({', '.join(files[:8])})"
        raise InputError(
            f"{source.repo} holds {listed}: name one as {source.repo}/file.safetensors"
        )
    return files[0]


def push_lora(path: Path, repo: str) -> None:
    """Upload a LoRA to a Hub repository of the user's, which is made if it is not there."""
    from huggingface_hub import HfApi

    source = HubRepo(repo, "main", files=(path.name,))
    with hub_errors(source, [source]):
        HfApi().create_repo(repo, exist_ok=True)
        HfApi().upload_file(path_or_fileobj=path, path_in_repo=path.name, repo_id=repo)


def if_moved(source: HubRepo) -> str:
    """What else to do about a repository that is not as the table says, if it is from there."""
    name = _name_of(source)
    return f"; if it has moved, correct [models.{name}] in {corrections_file()}" if name else ""


@contextmanager
def hub_errors(source: HubRepo, missing: list[HubRepo]) -> Iterator[None]:
    """Say what an exception of huggingface_hub means for the user."""
    from huggingface_hub import errors

    unreached = (ConnectionError, errors.LocalEntryNotFoundError)
    try:
        yield
    except errors.GatedRepoError as error:
        page = f"https://huggingface.co/{source.repo}"
        raise InputError(
            f"{source.repo} is gated: accept its licence at {page} and set HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        remedy = f"check its spelling; if it is private, set HF_TOKEN{if_moved(source)}"
        raise InputError(
            f"no such model on the Hub, and no such file here: {source.repo}: {remedy}"
        ) from error
    except errors.RevisionNotFoundError as error:
        other = f"name another{if_moved(source)}"
        raise InputError(
            f"{source.repo} has no revision {source.revision} on the Hub: {other}"
        ) from error
    except errors.HfHubHTTPError as error:
        answer = f"the Hub answered {error.response.status_code} about {source.repo}"
        if error.response.status_code in (401, 403):
            raise InputError(
                f"{answer}: check HF_TOKEN, or what hf auth login has stored"
            ) from error
        raise NetworkError(f"{answer}: try again later") from error
    except (errors.HTTPError, OSError) as error:  # type: ignore[attr-defined]  # HTTPError: httpx's or httpx2's
        if isinstance(error, OSError) and not isinstance(error, unreached):
            raise StdError(
                f"{source.repo} cannot be stored under HF_HOME: {error.strerror or error}"
            ) from error
        raise unreachable(missing, why_offline() or "the Hub cannot be reached") from error


def unreachable(missing: list[HubRepo], why: str) -> NotDownloaded:
    """The error for weights that are not here while the Hub may not, or cannot, be asked."""
    names = {source: _name_of(source) for source in missing}
    listed = [name for name in names.values() if name]
    commands = [f"std models pull {' '.join(listed)}"] if listed else []
    commands += [source.command for source, name in names.items() if not name]
    what = " and ".join(dict.fromkeys(name or source.repo for source, name in names.items()))
    verb = "is" if len(missing) == 1 else "are"
    return NotDownloaded(
        f"{what} {verb} not downloaded, and {why}: run {' && '.join(commands)} with a network, or "
        f"use --model tiny"
    )


def _name_of(source: HubRepo) -> str:
    """What the table calls a source; "" if it is not from there."""
    for name, entry in zoo().models.items():
        if (entry.repo, entry.revision, entry.files) == (
            source.repo, source.revision, source.files
        ) and not entry.url:  # fmt: skip
            return name
    return ""


def hub_cache() -> Path:
    """The folder that the Hub's files are kept in."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def ask_hub(offline: bool = False, timeout: float = 3.0) -> Hub:
    """Whether the Hub answers within `timeout` seconds, unless `offline` or HF_HUB_OFFLINE say not
    to ask."""
    from huggingface_hub import constants, get_session
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # httpx's or httpx2's

    if offline or why_offline():
        return {"endpoint": constants.ENDPOINT, "offline": True, "error": None}
    message = ""
    try:
        get_session().head(constants.ENDPOINT, timeout=timeout)  # any answer will do
    except (HTTPError, OSError, ValueError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
    return {"endpoint": constants.ENDPOINT, "offline": False, "error": message}
