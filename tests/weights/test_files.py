"""What a weight file may hold, found as its tensors are read."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from std_cli.errors import InputError
from std_cli.weights.files import check_numbers, stored_tensors

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
            match=r"^x.safetensors: 1 of 2 tensors hold NaN or infinity \(first layer.b\)",
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
        InputError, match=r"1 of 1 tensors hold numbers above 65504.*--dtype bf16 or --dtype fp32"
    ):
        check_numbers("x", [("a", torch.tensor([-70000.0]))], largest=65504)
