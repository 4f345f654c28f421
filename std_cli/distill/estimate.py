"""How much memory a run takes, by part, before its first update.

Weights, adapters and what the optimizers keep are counted. What a micro-batch takes is not a closed
formula but the trainer's own step, run on fake tensors, which have shapes, a device and no numbers:
the bytes of all tensors that live at once are added up. So it costs next to no memory, also where
the run itself would not fit.

The estimate leaves out what a kernel takes for itself while it works, what an allocator holds and
cannot use again, and on a CPU the interpreter with its libraries. The dry run's measured peak is of
the same kind: bytes of tensors.
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


def estimate_bytes(trainer: Trainer) -> dict[str, int]:
    """{part: bytes} on the trainer's device at the moment of an update, not the first, when most is
    held.

    weights: all that is frozen, but the discriminator's. lora: student, target, spatial heads.
    optimizer: moments, and the gradients of micro-batches before. activations, vae_encode,
    vae_decode: what the student, the encoder and the decoder have made. discriminator: its
    networks, and what it holds. backward: what was made in a backward pass, gradients among it.
    """
    kind = trainer.device.type
    roles, head, judge = trainer.roles, trainer.head, trainer.judge
    modules = [
        part for part in trainer.conditioner.pipe.components.values() if isinstance(part, nn.Module)
    ]
    heads = [head.student, head.target] if head is not None else []
    judges = [judge.features, judge.network] if judge is not None else []
    texts = [judge.text.model] if judge is not None and judge.text is not None else []
    adapters = [*roles.parameters.values(), *roles.averages.values()]
    of_adapters = {id(p) for p in adapters}
    learning = [*trainer.learning, *(judge.network.parameters() if judge is not None else ())]
    moments = 2 if trainer.config.optimizer.name == "adamw8bit" else 8  # bytes of a number
    step = Counter(_Step(trainer, [*modules, *heads, *judges]).held(learning))
    frozen = (
        p
        for p in _tensors([*modules, *texts])
        if p.device.type == kind and id(p) not in of_adapters
    )
    return {
        "weights": _size(frozen),
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

    def __init__(self, trainer: Trainer, modules: list[nn.Module]) -> None:
        super().__init__()
        self.trainer = trainer
        self.parts = nn.ModuleList(modules)

    def held(self, learning: list[nn.Parameter]) -> dict[str, int]:
        """{part: bytes} that it holds when that is most, in addition to the weights, by the part
        that was at work when it was made."""
        # real tensors may take part: small ones, such as the noise schedule and the empty prompt
        fake = FakeTensorMode(allow_non_fake_inputs=True)
        own = dict(self.named_parameters()) | dict(self.named_buffers())
        weights: dict[str, Tensor] = {name: fake.from_tensor(p) for name, p in own.items()}
        shapes = _condition_shapes(self.trainer)
        of_learning = {id(p) for p in learning}
        several = self.trainer.config.optimizer.accumulation > 1
        left = [weights[name] for name, p in own.items() if several and id(p) in of_learning]
        with (
            torch.compiler.set_stance("force_eager"),
            counting(weights.values()) as live,
            _Parts(self.trainer, live),
        ):
            functional_call(self, weights, (fake, live, shapes, left))
        return live.parts_at_peak

    def forward(
        self, fake: FakeTensorMode, live: Live, shapes: dict[str, torch.Size], left: list[Tensor]
    ) -> None:
        """One micro-batch. left: weights that micro-batches before left gradients of."""
        trainer = self.trainer
        batch, data = trainer.config.optimizer.batch, trainer.config.data
        device = trainer.device
        dtype = torch.float32 if device.type == "cpu" else trainer.roles.dtype
        scale = trainer.conditioner.pipe.vae_scale_factor
        height, width = data.size[1] // scale, data.size[0] // scale
        frames = [data.frames] if data.frames > 1 else []
        with fake:
            live.part = "gradients"
            for p in left:
                p.grad = torch.empty_like(p)
            live.part = "activations"
            x = torch.empty(batch, 4, *frames, height, width, device=device)
            cond = {
                name: torch.empty(batch, *shape, dtype=dtype, device=device)
                for name, shape in shapes.items()
            }
            pixels = torch.empty(data.frames, 3, *reversed(data.size))
        live.part = "vae_encode"
        trainer.conditioner.encode(pixels)
        n = torch.full((batch,), trainer.n_eta)
        trainer.learn(x, x, cond, n, torch.Generator().manual_seed(0), "the estimate")


class _Parts(TorchFunctionMode):
    """Inside, what is made counts to the part that is at work, and a fake tensor's value is 1."""

    def __init__(self, trainer: Trainer, live: Live) -> None:
        super().__init__()
        self.live = live
        self.backward = False
        unet = trainer.conditioner.pipe.unet
        decoder = trainer.conditioner.pipe.vae.decoder
        self.hooks = [
            unet.register_forward_pre_hook(lambda *_: self._begin("activations")),
            decoder.register_forward_pre_hook(lambda *_: self._begin("vae_decode")),
            decoder.register_forward_hook(lambda *_: self._begin("discriminator")),
        ]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.item:
            return 1.0
        before = self.live.part
        backward = func is Tensor.backward
        if backward:
            self.live.part = "backward"
            self.backward = True
        out = func(*args, **(kwargs or {}))
        if backward:
            self.live.part = before
            self.backward = False
        return out

    def _begin(self, part: str) -> None:
        if not self.backward:  # there checkpointing computes activations again
            self.live.part = part

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for hook in self.hooks:
            hook.remove()


def _condition_shapes(trainer: Trainer) -> dict[str, torch.Size]:
    """The shapes of what `Trainer.conditions` makes of any caption and reference."""
    shapes = dict(trainer.captions.shapes) | {"time_ids": torch.Size([6])}
    if trainer.judge is not None and trainer.judge.text is not None:
        shapes["text"] = trainer.judge.text([""]).shape[1:]
    if trainer.conditioner.no_style is not None:
        shapes["style"] = trainer.conditioner.no_style.shape
    return shapes
