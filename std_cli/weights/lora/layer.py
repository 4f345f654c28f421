"""What a LoRA file holds for one layer, and what it makes of the layer's weight.

Adapters are fused before a run, so any method whose change can be computed from the weight works
here. The formulas are those of the methods' papers, with the factors as LyCORIS and ComfyUI store
them (names, order, alpha):

    LoRA   Hu et al. 2021, arXiv 2106.09685         W + s B A, s = alpha / rank
    LoHa   Hyeon-Woo et al. 2021, arXiv 2108.06098  W + s (A1 B1) * (A2 B2), element by element
    LoKr   Yeh et al. 2023, arXiv 2309.14859        W + s W1 (x) W2, Kronecker's product
    GLoRA  Chavan et al. 2023, arXiv 2306.07967     W + s (W A1 A2 + B1 B2)
    DoRA   Liu et al. 2024, arXiv 2402.09353        m (W + D) / |W + D|, D any of these changes
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

DOWN, UP, MID = "lora_down.weight", "lora_up.weight", "lora_mid.weight"

# Start of a tensor's name -> its method. `PARTS` has what a method needs; the choices of LoKr are
# apart.
METHODS = (
    ("lora_embedding", "LoRA of an embedding"),
    ("lora_E", "AdaLoRA"),
    ("lora_ranknum", "AdaLoRA"),
    ("lora_down.bias", "LoRA with a bias between its halves"),
    ("lora_", "LoRA"),
    ("hada_", "LoHa"),
    ("lokr_t1", "LoKr with a core for its first factor"),
    ("lokr_", "LoKr"),
    *((part, "GLoRA") for part in ("a1", "a2", "b1", "b2")),
    ("bm", "GLoRA with a core"),
    ("diff", "full difference"),
    ("w_norm", "norm difference"),
    ("b_norm", "norm difference"),
    ("oft_", "OFT"),
    ("rescale", "OFT"),
    ("boft_", "BOFT"),
    ("on_input", "IA3"),
    ("ia3_", "IA3"),
    ("vera_", "VeRA"),
    ("reshape_weight", "LoRA that enlarges its layers"),
    ("set_weight", "replaced weights"),
    ("scalar", "LyCORIS with a scalar of its own"),
    ("bias_", "LyCORIS with sparse biases"),
)
PARTS = {
    "LoRA": (DOWN, UP),
    "LoHa": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
    "LoKr": (),
    "GLoRA": ("a1", "a2", "b1", "b2"),
    "full difference": (),
    "norm difference": (),
}


def method_of(tensor: str) -> str | None:
    """The method that a tensor belongs to, by its name; None of an alpha and of DoRA's
    magnitude."""
    return next((method for start, method in METHODS if tensor.startswith(start)), None)


@dataclass(frozen=True)
class Layer:
    """The tensors of a layer by their names in LyCORIS' files, and the alpha that scales their
    product."""

    tensors: "dict[str, Tensor]"
    alpha: float | None
    """None: the scale is 1."""

    @property
    def methods(self) -> list[str]:
        """What it is, such as ["LoRA"], ["DoRA", "LoHa"] or ["LoRA", "full difference"]."""
        found = dict.fromkeys(method for name in self.tensors if (method := method_of(name)))
        return [*(["DoRA"] if "dora_scale" in self.tensors else []), *found]

    @property
    def lacks(self) -> list[str]:
        """The tensors that its methods need and that are not there."""
        has = self.tensors
        out = [name for method in self.methods for name in PARTS.get(method, ()) if name not in has]
        if "LoKr" in self.methods:
            for half in ("lokr_w1", "lokr_w2"):
                if half not in has:
                    out += [f"{half}_{side}" for side in "ab" if f"{half}_{side}" not in has]
        if {"hada_t1", "hada_t2"} & has.keys():
            out += [name for name in ("hada_t1", "hada_t2") if name not in has]
        return out if self.methods != ["DoRA"] else [DOWN, UP]

    @property
    def rank(self) -> int | None:
        """Of its factors; None where it has none, so that alpha has no meaning."""
        sides = {DOWN: 0, "hada_w1_b": 0, "lokr_w2_b": 0, "lokr_w1_b": 0, "a2": 0}
        return next(
            (
                self.tensors[name].shape[side]
                for name, side in sides.items()
                if name in self.tensors
            ),
            None,
        )

    @property
    def scale(self) -> float:
        return self.alpha / self.rank if self.alpha is not None and self.rank else 1.0

    def to(self, device: "torch.device | str") -> "Layer":
        """The same on a device; on "meta" what is computed with it has shapes only."""
        return Layer({name: tensor.to(device) for name, tensor in self.tensors.items()}, self.alpha)

    def change(self) -> "Tensor | None":
        """What is added to the weight whatever the weight is, fp32: (out, in[, kh, kw]), a kernel
        maybe within `in`.

        None of a layer that changes the bias alone. Raises RuntimeError if the tensors do not fit
        each other.
        """
        t = {name: tensor.float() for name, tensor in self.tensors.items()}
        parts = []
        if DOWN in t:
            parts.append(_product(t[UP], t[DOWN]) * self.scale)
        if "hada_w1_a" in t:
            parts.append(_hadamard(t) * self.scale)
        if "lokr_w1" in t or "lokr_w1_a" in t:
            parts.append(_kronecker(t) * self.scale)
        if "b1" in t:
            parts.append(_product(t["b1"], t["b2"]) * self.scale)
        parts += [t[name] for name in ("diff", "w_norm") if name in t]
        if not parts:
            return None
        whole = max(parts, key=lambda part: part.ndim)
        return sum((part.reshape(whole.shape) for part in parts if part is not whole), start=whole)

    def weight(self, weight: "Tensor", strength: float = 1.0) -> "Tensor":
        """The weight with the change at `strength`, fp32. Raises RuntimeError if they do not
        fit."""
        import torch

        base = weight.float()
        new = base
        added = self.change()
        if added is not None:
            new = new + added.reshape(base.shape) * (
                strength if "dora_scale" not in self.tensors else 1.0
            )
        if "a1" in self.tensors:
            # (in, in)
            inner = _product(self.tensors["a1"].float(), self.tensors["a2"].float()).flatten(1)
            through = torch.einsum("oi...,ij->oj...", base, inner) * self.scale
            new = new + through * (strength if "dora_scale" not in self.tensors else 1.0)
        if "dora_scale" in self.tensors:
            decomposed = _decompose(new, self.tensors["dora_scale"].float())
            new = decomposed if strength == 1 else base + strength * (decomposed - base)
        return new

    def bias(self) -> "Tensor | None":
        """What is added to the bias (out,), fp32; None if nothing."""
        parts = [
            self.tensors[name].float() for name in ("diff_b", "b_norm") if name in self.tensors
        ]
        return sum(parts[1:], start=parts[0]) if parts else None


def _product(up: "Tensor", down: "Tensor") -> "Tensor":
    """(out, r[, 1, 1]) by (r, in[, kh, kw]) -> (out, in[, kh, kw])."""
    return (up.flatten(1) @ down.flatten(1)).reshape(up.shape[0], *down.shape[1:])


def fold_core(core: "Tensor", down: "Tensor") -> "Tensor":
    """LoCon's core (r, r, kh, kw) into its lora_down (r, in[, 1, 1]): a lora_down (r, in, kh, kw)
    without a core."""
    import torch

    return torch.einsum("mn...,nj->mj...", core.float(), down.float().flatten(1))


def _tucker(core: "Tensor", a: "Tensor", b: "Tensor") -> "Tensor":
    """Core (r, r, kh, kw), a (r, out), b (r, in) -> (out, in, kh, kw)."""
    import torch

    return torch.einsum("ij...,ip,jq->pq...", core, a.flatten(1), b.flatten(1))


def _hadamard(t: "dict[str, Tensor]") -> "Tensor":
    if "hada_t1" in t:
        first = _tucker(t["hada_t1"], t["hada_w1_a"], t["hada_w1_b"])
        return first * _tucker(t["hada_t2"], t["hada_w2_a"], t["hada_w2_b"])
    return _product(t["hada_w1_a"], t["hada_w1_b"]) * _product(t["hada_w2_a"], t["hada_w2_b"])


def _kronecker(t: "dict[str, Tensor]") -> "Tensor":
    import torch

    first = t["lokr_w1"] if "lokr_w1" in t else t["lokr_w1_a"] @ t["lokr_w1_b"]
    if "lokr_w2" in t:
        second = t["lokr_w2"]
    elif "lokr_t2" in t:
        second = _tucker(t["lokr_t2"], t["lokr_w2_a"], t["lokr_w2_b"])
    else:
        second = _product(t["lokr_w2_a"], t["lokr_w2_b"])
    # contiguous: torch takes a view of the result
    return torch.kron(
        first.reshape(*first.shape, *[1] * (second.ndim - first.ndim)), second.contiguous()
    )


def _decompose(weight: "Tensor", magnitude: "Tensor") -> "Tensor":
    """The weight's directions with DoRA's magnitudes: of each output (out, 1, ...), or of each
    input (1, in, ...)."""
    import torch

    dims = weight.ndim - 1
    if magnitude.shape[0] == weight.shape[0]:
        norm = weight.flatten(1).norm(dim=1).reshape(-1, *[1] * dims)
    else:
        norm = weight.transpose(0, 1).flatten(1).norm(dim=1).reshape(1, -1, *[1] * (dims - 1))
    out: Tensor = weight * (magnitude.reshape(norm.shape) / (norm + torch.finfo(norm.dtype).eps))
    return out
