"""How much memory a run takes, by part, before its first update.

Weights, adapters and what the optimizers keep are counted. What a micro-batch takes is not a closed
formula but the trainer's own step, run on fake tensors, which have shapes, a device and no numbers:
the bytes of all tensors that live at once are added up. So it costs next to no memory, also where
the run itself would not fit.

Not in it: what a kernel takes for itself while it works, what an allocator holds and cannot use
again, and on a CPU the interpreter with its libraries. The dry run's measured peak is of the same
kind: bytes of tensors.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from std_cli.diffusion.memory import Live, counting
from std_cli.distill.trainer import Trainer


def estimate_bytes(t: Trainer) -> dict[str, int]:
    """{part: bytes} on the trainer's device at the moment of an update, not the first, when most is
    held.

    weights: all that is frozen, but the discriminator's. lora: student, target, spatial heads.
    optimizer: moments, and the gradients of micro-batches before. discriminator: its networks, and
    what it holds. backward: what was made in a backward pass, gradients among it.
    """
    kind = t.device.type
    modules = [m for m in t.around.pipe.components.values() if isinstance(m, nn.Module)]
    heads = [h for h in (t.head, t.head_average) if h is not None]
    judges = [m for m in (t.features, t.discriminator) if m is not None]
    adapters = [*t.roles.parameters.values(), *t.roles.averages.values()]
    of_adapters = {id(p) for p in adapters}
    frozen = _tensors([*modules, *([t.text.model] if t.text is not None else [])])
    learning = [*t.learning, *(t.discriminator.parameters() if t.discriminator is not None else ())]
    moments = 2 if t.config.optimizer.name == "adamw8bit" else 8
    step = Counter(_Step(t, [*modules, *heads, *judges]).held(learning))
    return {
        "weights": _size(p for p in frozen if p.device.type == kind and id(p) not in of_adapters),
        "lora": _size([*adapters, *_tensors(heads)]),
        "optimizer": moments * sum(p.numel() for p in learning) + step["gradients"],
        "activations": step["activations"],
        "vae_encode": step["vae_encode"],
        "vae_decode": step["vae_decode"],
        "discriminator": _size(_tensors(judges)) + step["discriminator"],
        "backward": step["backward"],
    }


def _tensors(modules: Iterable[nn.Module]) -> Iterator[Tensor]:
    return chain.from_iterable((*m.parameters(), *m.buffers()) for m in modules)


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(p.numel() * p.element_size() for p in tensors)


class _Step(nn.Module):
    """A micro-batch of the trainer as one module, so that `functional_call` can exchange all
    weights."""

    def __init__(self, t: Trainer, modules: list[nn.Module]) -> None:
        super().__init__()
        self.t, self.parts = t, nn.ModuleList(modules)

    def held(self, learning: list[nn.Parameter]) -> dict[str, int]:
        """What it holds when that is most, beside the weights, by the part that was at work when it
        was made."""
        # small ones: the noise schedule, the empty prompt
        fake = FakeTensorMode(allow_non_fake_inputs=True)
        own = dict(self.named_parameters()) | dict(self.named_buffers())
        weights: dict[str, Tensor] = {name: fake.from_tensor(p) for name, p in own.items()}
        shapes, of_learning = _condition_shapes(self.t), {id(p) for p in learning}
        several = self.t.config.optimizer.accumulation > 1
        left = [weights[name] for name, p in own.items() if several and id(p) in of_learning]
        with (
            torch.compiler.set_stance("force_eager"),
            counting(weights.values()) as live,
            _Parts(self.t, live),
        ):
            functional_call(self, weights, (fake, live, shapes, left))
        return live.parts_at_peak

    def forward(
        self, fake: FakeTensorMode, live: Live, shapes: dict[str, torch.Size], left: list[Tensor]
    ) -> None:
        """left: weights that micro-batches before left gradients of."""
        t, o, d = self.t, self.t.config.optimizer, self.t.config.data
        kind = torch.float32 if t.device.type == "cpu" else t.roles.dtype
        side = [s // t.around.pipe.vae_scale_factor for s in reversed(d.size)]
        with fake:
            live.part = "gradients"
            for p in left:
                p.grad = torch.empty_like(p)
            live.part = "activations"
            x = torch.empty(
                o.batch, 4, *([d.frames] if d.frames > 1 else []), *side, device=t.device
            )
            c = {
                k: torch.empty(o.batch, *s, dtype=kind, device=t.device) for k, s in shapes.items()
            }
            pixels = torch.empty(d.frames, 3, *reversed(d.size))
        live.part = "vae_encode"
        t.around.encode(pixels)
        t.learn(
            x,
            x,
            c,
            torch.full((o.batch,), t.n_eta),
            torch.Generator().manual_seed(0),
            "the estimate",
        )


class _Parts(TorchFunctionMode):
    """Inside, what is made counts to the part that is at work, and a fake tensor's value is 1."""

    def __init__(self, t: Trainer, live: Live) -> None:
        super().__init__()
        self.live, self.backward = live, False
        unet, decoder = t.around.pipe.unet, t.around.pipe.vae.decoder
        self.hooks = [
            unet.register_forward_pre_hook(lambda *_: self._begin("activations")),
            decoder.register_forward_pre_hook(lambda *_: self._begin("vae_decode")),
            decoder.register_forward_hook(lambda *_: self._begin("discriminator")),
        ]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.item:
            return 1.0
        before, backward = self.live.part, func is Tensor.backward
        if backward:
            self.live.part, self.backward = "backward", True
        out = func(*args, **(kwargs or {}))
        if backward:
            self.live.part, self.backward = before, False
        return out

    def _begin(self, part: str) -> None:
        if not self.backward:  # there it is what checkpointing computes anew
            self.live.part = part

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for hook in self.hooks:
            hook.remove()


def _condition_shapes(t: Trainer) -> dict[str, torch.Size]:
    """Of what `Trainer.conditions` makes of any caption and reference."""
    shapes = dict(t.captions.shapes) | {"time_ids": torch.Size([6])}
    if t.text is not None:
        shapes["text"] = t.text([""]).shape[1:]
    if t.around.no_style is not None:
        shapes["style"] = t.around.no_style.shape
    return shapes
