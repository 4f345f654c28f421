"""How much memory a run takes, by part, before its first update.

Weights, adapters and what the optimizers keep are counted. What a micro-batch takes is not a closed formula but the
networks' own code, run on fake tensors, which have shapes, a device and no numbers: the bytes of all tensors that live
at once are added up. So it costs no memory, also where the run itself would not fit.

What comes on top is what kernels take for themselves while they work and, more so, what an allocator holds and cannot
use again. On a CPU that is the C library's: in six runs on the embedded pack the resident memory was 1.4 to 2.7 times
what lives, more where little does. With a mapping for each larger tensor (MALLOC_MMAP_THRESHOLD_) another came down
to 1.1, and steps took longer.
"""

from collections.abc import Iterable
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from std_cli.distill.discriminator import discriminator_loss, generator_loss, gradient_penalty
from std_cli.distill.trainer import Trainer
from std_cli.memory import MARGIN, counting

ON_CPU = 1.7
"""Resident memory over that of the tensors: near the middle of those runs."""


def estimate_bytes(t: Trainer) -> dict[str, int]:
    """{part: bytes} on the trainer's device, all of which are held at once when the backward pass is at its most."""
    pipe = t.around.pipe
    modules = [m for m in pipe.components.values() if isinstance(m, torch.nn.Module)]
    everything = [*chain.from_iterable((*m.parameters(), *m.buffers()) for m in modules)]
    adapters = [*t.roles.parameters.values(), *t.roles.averages.values()]
    of_adapters = {id(p) for p in adapters}
    heads = [p for h in (t.head, t.head_average) if h is not None for p in h.parameters()]
    judges = [p for m in (t.features, t.discriminator) if m is not None for p in (*m.parameters(), *m.buffers())]
    moments = 2 if t.config.optimizer.name == "adamw8bit" else 8
    learning = [p for p in (*adapters, *heads, *judges) if p.requires_grad]
    step = _step_bytes(t, [*everything, *heads, *judges])
    parts = {
        "weights": _size(p for p in everything if p.device.type == t.device.type and id(p) not in of_adapters),
        "lora": _size([*adapters, *heads]),
        "optimizer": sum(p.numel() * (4 + moments) for p in learning),  # a gradient and two moments
        "activations": step["activations"],
        "vae_decode": step["vae_decode"],
        "discriminator": _size(judges) + step["discriminator"],
        "backward": step["backward"],
    }
    beyond = (ON_CPU if t.device.type == "cpu" else MARGIN) - 1
    return parts | {"workspace": round(beyond * sum(parts.values()))}


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(p.numel() * p.element_size() for p in tensors)


def _step_bytes(t: Trainer, own: list[Tensor]) -> dict[str, int]:
    """What a micro-batch keeps for the backward pass, by part, and what is beyond that at the most."""
    config = t.config
    batch, frames = config.optimizer.batch, config.data.frames
    conditions = _condition_shapes(t)
    kind = torch.float32 if t.device.type == "cpu" else t.roles.dtype
    side = [s // t.around.pipe.vae_scale_factor for s in reversed(config.data.size)]
    shape = (batch, 4, *([frames] if config.run.task == "v2v" and frames > 1 else []), *side)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        known = [fake.from_tensor(p) for p in own]
        with counting(known) as live:
            x, times = torch.empty(shape, device=t.device), torch.empty(batch, dtype=torch.int64, device=t.device)
            c = {k: torch.empty(batch, *s, dtype=kind, device=t.device) for k, s in conditions.items()}
            t.roles.teacher(torch.cat([x, x]), torch.cat([times, times]), {k: torch.cat([v, v]) for k, v in c.items()})
            goal = t.roles.target(x, times, c)
            x_s = x - t.roles.student(x, times, c)
            loss = ((t.head(x_s) if t.head is not None else x_s) - goal).square().mean()
            student = live.now
            if t.features is None or t.discriminator is None:
                gradients = torch.autograd.grad(loss, t.learning, allow_unused=True)
                del gradients
                return {
                    "activations": student, "vae_decode": 0, "discriminator": 0, "backward": live.peak - student
                }  # fmt: skip
            latents = x_s
            if x_s.ndim == 5:  # (B, 4, F, h, w) -> (B count, 4, h, w)
                latents = x_s[:, :, : config.adversarial.frames].transpose(1, 2).flatten(0, 1)
            pixels = t.around.decode(latents)
            decoded = live.now - student
            fake_features = _features(t, pixels)
            with torch.no_grad():
                real_features = _features(t, t.around.decode(latents))
            text = c.get("text", c["pooled"]).float().repeat_interleave(len(latents) // batch, 0)
            total = loss + generator_loss(t.discriminator(fake_features, text))
            judged = live.now - student - decoded
            gradients = torch.autograd.grad(total, t.learning, allow_unused=True)
            detached = [f.detach() for f in fake_features]
            u = torch.rand(len(text), device=t.device)
            own_loss = discriminator_loss(t.discriminator(real_features, text), t.discriminator(detached, text))
            own_loss = own_loss + gradient_penalty(t.discriminator, real_features, detached, text, u)
            torch.autograd.grad(own_loss, list(t.discriminator.parameters()))
            del gradients
            return {
                "activations": student,
                "vae_decode": decoded,
                "discriminator": judged,
                "backward": live.peak - student - decoded - judged,
            }


def _features(t: Trainer, pixels: Tensor) -> list[Tensor]:
    assert t.features is not None
    return t.features(F.interpolate(pixels, (t.features.size, t.features.size), mode="area"))  # type: ignore[no-any-return]


def _condition_shapes(t: Trainer) -> dict[str, torch.Size]:
    """Of what `Trainer.conditions` makes of any caption and reference."""
    shapes = dict(t.captions.shapes) | {"time_ids": torch.Size([6])}
    if t.text is not None:
        shapes["text"] = t.text([""]).shape[1:]
    if t.around.no_style is not None:
        shapes["style"] = t.around.no_style.shape
    return shapes
