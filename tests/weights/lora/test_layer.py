"""The change that each method makes, against its formula written out."""

from itertools import product

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from std_cli.weights.lora import read_lora
from std_cli.weights.lora.layer import Layer
from std_cli.weights.lora.read import _shape
from tests.weights.lora.tensors import low, methods, number


def by_hand(name, tensors, weight, alpha):
    """The adapted weight in float64, written out position by position of the kernel."""
    t = {key: tensor.double().numpy() for key, tensor in tensors.items()}
    out, inner = weight.shape[:2]
    base = weight.double().numpy().reshape(out, inner, -1)
    at = range(base.shape[2])

    def kernel(key):
        return t[key].reshape(*t[key].shape[:2], -1)

    def core(key, a, b):
        return np.stack([a.T @ kernel(key)[:, :, k] @ b for k in at], 2)

    if name.startswith(("LoRA", "DoRA")):
        up, down = t["lora_up.weight"].reshape(out, -1), kernel("lora_down.weight")
        middle = (
            [kernel("lora_mid.weight")[:, :, k] @ down[:, :, 0] for k in at]
            if "core" in name
            else down.transpose(2, 0, 1)
        )
        change = np.stack([up @ m for m in middle], 2) * alpha / 2
    elif name == "LoHa":
        change = (t["hada_w1_a"] @ t["hada_w1_b"]) * (t["hada_w2_a"] @ t["hada_w2_b"]) * alpha / 2
    elif name == "LoHa with cores":
        change = (
            core("hada_t1", t["hada_w1_a"], t["hada_w1_b"])
            * core("hada_t2", t["hada_w2_a"], t["hada_w2_b"])
            * alpha
            / 2
        )
    elif name.startswith("LoKr"):
        first = t["lokr_w1"] if "lokr_w1" in t else t["lokr_w1_a"] @ t["lokr_w1_b"]
        if "core" in name:
            second = core("lokr_t2", t["lokr_w2_a"], t["lokr_w2_b"])
        elif "factors" in name:
            second = np.stack([t["lokr_w2_a"] @ kernel("lokr_w2_b")[:, :, k] for k in at], 2)
        else:
            second = kernel("lokr_w2")
        change = np.stack([np.kron(first, second[:, :, k]) for k in at], 2)
        # whole factors have no rank to be scaled by
        change = change * (1 if name == "LoKr" else alpha / 3)
    elif name == "GLoRA":
        a = t["a1"].reshape(inner, -1) @ t["a2"].reshape(-1, inner)
        b = [t["b1"].reshape(out, -1) @ kernel("b2")[:, :, k] for k in at]
        change = np.stack([base[:, :, k] @ a + b[k] for k in at], 2) * alpha / 2
    else:
        change = t["diff"]
    new = base + change.reshape(base.shape)
    if name == "DoRA":
        new *= t["dora_scale"].reshape(-1, 1, 1) / np.sqrt((new**2).sum((1, 2), keepdims=True))
    elif name == "DoRA of inputs":
        new *= t["dora_scale"].reshape(1, -1, 1) / np.sqrt((new**2).sum((0, 2), keepdims=True))
    return torch.from_numpy(new.reshape(weight.shape))


@pytest.mark.parametrize("kernel", [(), (3, 3), (1, 1)], ids=["linear", "3x3", "1x1"])
def test_methods_against_their_formulas(tmp_path, kernel):
    weight = number(8, 6, *kernel) + 1
    for name, tensors in methods(8, 6, kernel).items():
        keys = {
            f"lora_unet_conv_in.{k}{'.weight' * (len(k) == 2)}": tensor
            for k, tensor in tensors.items()
        }
        save_file(
            keys | {"lora_unet_conv_in.alpha": torch.tensor(3, dtype=torch.int64)},
            tmp_path / "x.safetensors",
        )
        [layer] = read_lora(tmp_path / "x.safetensors", name).layers.values()
        wanted = by_hand(name, tensors, weight, 3)
        torch.testing.assert_close(
            layer.weight(weight).double(), wanted, rtol=1e-4, atol=1e-4, msg=name
        )
        half = layer.weight(weight, 0.5).double()
        torch.testing.assert_close(half, (weight + wanted) / 2, rtol=1e-4, atol=1e-4, msg=name)


def test_convolutions_for_linear_layers_and_the_reverse():
    """A 1 x 1 kernel is as good as none, on either side."""
    pair = low(8, 6)
    with_kernel = {key: tensor[:, :, None, None] for key, tensor in pair.items()}
    weight = number(8, 6)
    wanted = weight + pair["lora_up.weight"] @ pair["lora_down.weight"]
    for tensors, base in product((pair, with_kernel), (weight, weight[:, :, None, None])):
        torch.testing.assert_close(Layer(tensors, 2.0).weight(base).flatten(1), wanted)


@pytest.mark.parametrize(
    ("up", "down"),
    [
        ((8, 4), (4, 6)),
        ((8, 4, 1, 1), (4, 6, 3, 3)),
        ((8, 4, 1, 1), (4, 6)),
        ((8, 4), (4, 6, 1, 1)),
        ((8, 2, 2), (4, 6)),
        ((8, 4), (3, 6)),
        ((8,), (8, 6)),
        ((8, 4), (4,)),
    ],
)
def test_the_shape_of_a_pair_is_that_of_its_product(tmp_path, up, down):
    """As torch's meta device has it, which refuses the same pairs."""
    halves = {"lora_up.weight": torch.ones(up), "lora_down.weight": torch.ones(down)}
    layer = Layer(halves, None)
    try:
        change = layer.to("meta").change()
    except (RuntimeError, IndexError):
        with pytest.raises(ValueError, match="ranks"):
            _shape(layer)
    else:
        assert change is not None and _shape(layer) == tuple(change.shape)
