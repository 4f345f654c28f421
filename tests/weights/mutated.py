"""LoRA files with random changes, read in a process whose memory is measured.

    python -m tests.weights.mutated FOLDER COUNT

prints how many were refused, how many were read, and the bytes of the largest that was read. It
fails for any other exception, and where its address space would have to grow by more than 256 MiB.
"""

import random
import re
import resource
import struct
import sys
import warnings
from pathlib import Path

import torch
from safetensors.torch import save

from std_cli.errors import InputError
from std_cli.weights.lora import LoraFile, check_lora, read_lora, resolve_lora
from std_cli.weights.resolve import resolve_model
from tests.weights.files import SPELLINGS, pairs, small_unet


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
"""Bytes for Python itself and its allocators, in addition to twice a file's size."""


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


def main(folder: str, count: str) -> None:
    """Print what the module's text says, in this process, which has its limits from here on."""
    warnings.simplefilter("ignore")
    fuzz(Path(folder), 30)  # what is imported late
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 2**28, size + 2**28))
    print(*fuzz(Path(folder), int(count)))


if __name__ == "__main__":
    main(*sys.argv[1:])
