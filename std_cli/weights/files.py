"""A model's files on disk: their names, their JSON, their safetensors headers, whether their
weights are numbers.

No pickle is read.
"""

import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from std_cli.errors import InputError, counted, quote

if TYPE_CHECKING:
    import torch

MAX_JSON = 16 * 2**20
"""Bytes; the largest JSON file of a model, CLIP's tokenizer, has 3.6 MB."""
DEEPEST = 32
"""Levels of values in values; a tokenizer's have about 6."""
PICKLES = (".ckpt", ".pt", ".pth", ".bin")
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
"""Floating-point numbers that torch can read, as safetensors calls them."""
_MAPPED = 2**28
"""Bytes of tensors after which a file is mapped again."""
_OTHER_PRECISION = "use --dtype bf16 or --dtype fp32"


def file_names(folder: Path, depth: int) -> set[str]:
    """The files of a folder, at most `depth` levels down: relative, with slashes."""
    levels = (folder.glob("/".join(["*"] * level)) for level in range(1, depth + 1))
    return {
        path.relative_to(folder).as_posix() for level in levels for path in level if path.is_file()
    }


def file_state(path: Path) -> tuple[Path, int, int]:
    """(path, size, time of change in ns) of a file: what it held stays known while they do."""
    stat = path.stat()
    return path, stat.st_size, stat.st_mtime_ns


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that must hold an object, in UTF-8, with finite numbers, and no key twice.

    JSON's readers differ in what they make of everything else, and the libraries read the same file
    again. Raises InputError for that, and for a file of more than MAX_JSON bytes.
    """
    try:
        if not path.is_file():  # opening a pipe or a device could wait for ever
            raise ValueError("not a file")
        if path.stat().st_size > MAX_JSON:
            most = f"{MAX_JSON >> 20} MiB, the most that is read of one"
            raise InputError(
                f"{path} has {path.stat().st_size >> 20} MiB, more than {most}: copy it again"
            )
        text = path.read_bytes().decode("utf-8")
        if text.startswith("\ufeff"):  # the libraries do not read it
            raise InputError(f"{path} begins with a byte order mark: save it in UTF-8 without one")
        content = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_finite,
            parse_float=_finite,
            parse_int=_whole,
        )
    except _NotStrict as error:
        raise InputError(f"{path} holds {error}: correct it, or copy it again") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not JSON in UTF-8: save it in UTF-8, or copy it again"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is missing or not JSON: copy it again") from error
    if not isinstance(content, dict):
        raise InputError(
            f"{path} must hold a JSON object, not {type(content).__name__}: copy it again"
        )
    if _depth(content) > DEEPEST:
        raise InputError(f"{path} nests its values more than {DEEPEST} levels deep: copy it again")
    return content


class _NotStrict(Exception):
    """What is wrong with a file that Python's reader would take."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise _NotStrict(f"the key {quote(counts.most_common(1)[0][0])} twice")
    return found


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise _NotStrict(f"{text[:40]}, which is no finite number")
    return number


def _whole(text: str) -> int:
    if len(text) > 40:  # tokenizers write 10^30 for "no limit"
        raise _NotStrict(f"a number of {len(text)} digits")
    return int(text)


def _depth(content: dict[str, Any]) -> int:
    depth = 0
    level: list[Any] = [content]
    while level:
        depth += 1
        inner = (
            item
            for values in level
            for item in (values.values() if isinstance(values, dict) else values)
        )
        level = [item for item in inner if isinstance(item, dict | list)]
    return depth


def read_header(path: Path) -> tuple[dict[str, list[int]], dict[str, str]]:
    """({key: shape}, metadata) of a safetensors file, whose length is checked too; no weight is
    read."""
    tensors, metadata = read_tensor_facts(path)
    return {key: shape for key, (shape, _) in tensors.items()}, metadata


def read_tensor_facts(path: Path) -> tuple[dict[str, tuple[list[int], str]], dict[str, str]]:
    """({key: (shape, dtype)}, metadata) of a safetensors file, with safetensors' names of dtypes
    ("F16", "I64")."""
    from safetensors import SafetensorError, safe_open

    if path.suffix in PICKLES:
        raise InputError(
            f"{path} is a pickle, which can run any code when it is read: convert it to safetensors"
        )
    try:
        with safe_open(path, framework="np") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118  # it is no iterable
            return {
                key: (s.get_shape(), s.get_dtype()) for key, s in slices.items()
            }, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} is missing, damaged or no safetensors file: copy it again"
        ) from error


def stored_tensors(path: Path) -> "Iterator[tuple[str, torch.Tensor]]":
    """(key, tensor) of the floating-point tensors of a safetensors file, one tensor in memory at a
    time."""
    facts, _ = read_tensor_facts(path)
    return mapped_tensors(path, [key for key, (_, dtype) in facts.items() if dtype in FLOATS])


def mapped_tensors(path: Path, keys: Collection[str]) -> "Iterator[tuple[str, torch.Tensor]]":
    """(key, tensor) of these tensors of a safetensors file, as views of its mapped memory.

    The file is mapped again from time to time: pages that were read count as the process's memory
    as long as their mapping lives.
    """
    from safetensors import safe_open

    left = list(keys)
    while left:
        size = 0
        with safe_open(path, framework="pt") as file:
            order = {key: place for place, key in enumerate(file.offset_keys())}
            left.sort(key=order.__getitem__, reverse=True)
            while left and size < _MAPPED:
                key = left.pop()
                tensor = file.get_tensor(key)
                size += tensor.nbytes
                yield key, tensor


def check_numbers(
    name: str,
    tensors: "Iterable[tuple[str, torch.Tensor]]",
    largest: float = math.inf,
    remedy: str = _OTHER_PRECISION,
) -> None:
    """Raises InputError unless all tensors are real floating-point numbers, finite and at most
    `largest` in magnitude.

    name: what the message calls the file; remedy: against larger ones.
    """
    for _ in checked_numbers(name, tensors, largest, remedy):
        pass


def checked_numbers(
    name: str,
    tensors: "Iterable[tuple[str, torch.Tensor]]",
    largest: float,
    remedy: str = _OTHER_PRECISION,
) -> "Iterator[tuple[str, torch.Tensor]]":
    """The same tensors, checked on their way as by `check_numbers`, which raises after the last.

    Takes 0.2 s per 10^9 numbers in half precision, 0.4 s in fp32, when they are in memory.
    """
    total = 0
    wrong: list[str] = []
    beyond: list[str] = []
    for key, tensor in tensors:
        yield key, tensor
        total += 1
        if not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise InputError(
                f"{name}: the tensor {key} is {kind}, and weights are real floating-point numbers"
            )
        if not tensor.numel():
            continue
        # float8 has no aminmax
        least, most = (tensor.half() if tensor.itemsize == 1 else tensor).aminmax()
        # NaN in any place makes both of them NaN
        magnitude = max(abs(float(least)), abs(float(most)))
        if not math.isfinite(magnitude):
            wrong.append(key)
        elif magnitude > largest:
            beyond.append(key)
    if wrong:
        raise InputError(
            f"{name}: NaN or infinity in {len(wrong)} of {counted(total, 'tensor')} (first "
            f"{wrong[0]}): fetch the file again, or use another"
        )
    if beyond:
        raise InputError(
            f"{name}: numbers above {largest:g}, which fp16 cannot hold, in {len(beyond)} of "
            f"{counted(total, 'tensor')} (first {beyond[0]}): {remedy}"
        )
