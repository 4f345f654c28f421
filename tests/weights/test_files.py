"""What a weight file may hold: numbers, headers that lie, pickles, random changes."""

import json
import pickle
import re
import struct
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from std_cli.errors import InputError
from std_cli.weights.files import check_numbers, read_header, stored_tensors
from std_cli.weights.lora import resolve_lora
from std_cli.weights.resolve import resolve_model
from tests.processes import python
from tests.weights.files import Harm

FLOATS = (
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
)


@pytest.mark.parametrize("dtype", FLOATS)
def test_nan_and_infinity_are_named(dtype: torch.dtype, tmp_path: Path) -> None:
    good = torch.linspace(-1, 1, 1000).to(dtype)
    check_numbers("x", [("a", good), ("empty", torch.zeros(0, dtype=dtype))])
    # which it has not
    infinities = () if dtype == torch.float8_e4m3fn else (float("inf"), -float("inf"))
    for value in (float("nan"), *infinities):
        bad = good.clone().float()
        bad[700] = value
        save_file({"a": good, "layer.b": bad.to(dtype)}, tmp_path / "x.safetensors")
        with pytest.raises(
            InputError,
            match=r"^x.safetensors: NaN or infinity in 1 of 2 tensors \(first layer.b\)",
        ):
            check_numbers("x.safetensors", stored_tensors(tmp_path / "x.safetensors"))


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64])
def test_integers_and_complex_numbers_are_no_weights(dtype: torch.dtype) -> None:
    name = re.escape(str(dtype).removeprefix("torch."))
    with pytest.raises(InputError, match=f"^x: the tensor layer.a is {name}, and weights are real"):
        check_numbers("x", [("layer.a", torch.ones(2, dtype=dtype))])


def test_what_half_precision_cannot_hold() -> None:
    check_numbers("x", [("a", torch.tensor([65504.0]))], largest=65504)
    with pytest.raises(
        InputError,
        match=r"above 65504, which fp16 cannot hold, in 1 of 1 tensor .*--dtype bf16",
    ):
        check_numbers("x", [("a", torch.tensor([-70000.0]))], largest=65504)


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


@pytest.mark.skipif(sys.platform != "linux", reason="limits and measures memory as Linux does")
def test_mutated_files(tmp_path):
    """No crash, no hang, no more than twice a file's size in memory: in a process whose address
    space cannot grow by much.
    """
    source = "import sys; from tests.weights.mutated import main; main(*sys.argv[1:])"
    run = python(source, tmp_path, 250)
    assert run.returncode == 0, run.stderr
    refused, taken, largest = map(int, run.stdout.split())
    assert refused + taken == 250 and refused > 125 and taken > 5 and largest > 2**24
