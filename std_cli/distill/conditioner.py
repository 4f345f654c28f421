"""One UNet as teacher, student and target, and what stands around it: conditions, latents, pixels.

The teacher is the frozen UNet with its adapter off, the student has the adapter on, the target a
second adapter that is an average of the student's. So training holds the big weights once.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import Any

import torch
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from PIL import Image
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from std_cli.diffusion.pipeline import Pipeline
from std_cli.distill.bank import Conditions
from std_cli.errors import InputError

STUDENT, TARGET = "student", "target"
_NOT_THE_UNETS_OWN = r".*(encoder_hid_proj|to_[kv]_ip).*"  # the IP-Adapter's layers


class Roles:
    """A pipeline's UNet as three functions (x, timesteps, conditions) -> output; only the student's
    adapter learns.

    x is (B, 4, h, w), or (B, 4, F, h, w) with a motion adapter.
    """

    def __init__(
        self,
        unet: Any,
        *,
        rank: int,
        alpha: int,
        dropout: float,
        targets: Sequence[str],
        motion: bool,
        ema: float,
    ) -> None:
        """The adapters start as the identity; the student's first factors come from torch's global
        random state."""
        self.unet, self.ema, self.dtype = unet, ema, unet.dtype
        unet.requires_grad_(False).eval()
        left_out = _NOT_THE_UNETS_OWN if motion else rf"{_NOT_THE_UNETS_OWN}|.*motion_modules.*"
        self.config = LoraConfig(
            r=rank,
            lora_alpha=alpha,
            lora_dropout=dropout,
            target_modules=list(targets),
            exclude_modules=left_out,
        )
        try:
            with warnings.catch_warnings():
                # two adapters are meant, and there is nothing to leave out where there is no
                # IP-Adapter
                warnings.filterwarnings(
                    "ignore", "Already found a|You have passed exclude_modules", UserWarning
                )
                for name in (STUDENT, TARGET) if ema else (STUDENT,):
                    unet.add_adapter(self.config, name)
        except ValueError as e:
            raise InputError(
                f"lora.targets {list(targets)}: none of them is a layer of this UNet: correct it"
            ) from e
        self.layers = [m for m in unet.modules() if isinstance(m, BaseTunerLayer)]
        self.parameters = {n: p for n, p in unet.named_parameters() if f".{STUDENT}." in n}
        self.averages = {n: p for n, p in unet.named_parameters() if f".{TARGET}." in n}
        for p in [*self.parameters.values(), *self.averages.values()]:
            p.data = p.data.float()  # half-size base weights bring half-size adapters
        for name, p in self.averages.items():
            p.data.copy_(self.parameters[name.replace(f".{TARGET}.", f".{STUDENT}.")].data)
        for module in unet.modules():
            # diffusers passes `input` by name, peft's layers take x
            if isinstance(module, AnimateDiffTransformer3D):
                for layer in (module.proj_in, module.proj_out):
                    layer.register_forward_pre_hook(_input_first, with_kwargs=True)
        self._dropouts = [
            m for n, m in unet.named_modules() if n.endswith(f".lora_dropout.{STUDENT}")
        ]
        self._as(STUDENT)

    def student(self, x: Tensor, t: Tensor, c: Conditions) -> Tensor:
        for dropout in self._dropouts:  # active where it learns, not where it is looked at
            dropout.train(torch.is_grad_enabled())
        return self._forward(x, t, c)

    @torch.no_grad()
    def teacher(self, x: Tensor, t: Tensor, c: Conditions) -> Tensor:
        with self._role(None):
            return self._forward(x, t, c)

    @torch.no_grad()
    def target(self, x: Tensor, t: Tensor, c: Conditions) -> Tensor:
        with self._role(TARGET if self.ema else STUDENT):
            return self._forward(x, t, c)

    @torch.no_grad()
    def average(self) -> None:
        """Move the target's adapter towards the student's."""
        for name, p in self.averages.items():
            p.lerp_(self.parameters[name.replace(f".{TARGET}.", f".{STUDENT}.")], 1 - self.ema)

    def state_dict(self, role: str = STUDENT) -> dict[str, Tensor]:
        """An adapter under diffusers' keys: "<module>.lora_A.weight" (r, in[, kh, kw]),
        "<module>.lora_B.weight"."""
        chosen = self.parameters if role == STUDENT else self.averages
        return {
            n.replace(f".{role}.", "."): p.detach().cpu().contiguous() for n, p in chosen.items()
        }

    def load_state_dict(self, state: dict[str, Tensor], role: str = STUDENT) -> None:
        chosen = self.parameters if role == STUDENT else self.averages
        for name, p in chosen.items():
            p.data.copy_(state[name.replace(f".{role}.", ".")])

    def checkpoint_activations(self) -> None:
        """Compute activations anew in the backward pass. diffusers leaves out the motion layers."""
        self.unet.enable_gradient_checkpointing()
        for module in self.unet.modules():
            if isinstance(module, AnimateDiffTransformer3D):
                module.forward = _checkpointed(module)

    def _forward(self, x: Tensor, t: Tensor, c: Conditions) -> Tensor:
        added: dict[str, Any] = {"text_embeds": c["pooled"], "time_ids": c["time_ids"]}
        if "style" in c:
            added["image_embeds"] = [c["style"]]
        # per frame
        states = c["states"] if x.ndim == 4 else c["states"].repeat_interleave(x.shape[2], 0)
        half = self.dtype != torch.float32
        with torch.autocast(x.device.type, self.dtype) if half else nullcontext():
            out = self.unet(
                x.to(self.dtype), t, states, added_cond_kwargs=added, return_dict=False
            )[0]
        return out.float()  # type: ignore[no-any-return]

    @contextmanager
    def _role(self, name: str | None) -> Iterator[None]:
        self._as(name)
        try:
            yield
        finally:
            self._as(STUDENT)

    def _as(self, name: str | None) -> None:
        for layer in self.layers:
            layer.enable_adapters(name is not None)
            if name is not None:
                layer.set_adapter(name, inference_mode=name != STUDENT)


def _input_first(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    return (kwargs.pop("input"), *args) if "input" in kwargs else args, kwargs


def _checkpointed(module: nn.Module) -> Any:
    forward = module.forward

    def run(*args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():
            return checkpoint(forward, *args, use_reentrant=False, **kwargs)
        return forward(*args, **kwargs)

    return run


class Surroundings:
    """Captions, style pictures and frames as the networks see them, and latents as pixels."""

    def __init__(self, pipeline: Pipeline, *, unconditional_pooled: str, style: bool) -> None:
        self.pipeline, self.pipe, self.device = pipeline, pipeline.pipe, pipeline.device
        self.pipe.vae.requires_grad_(False)
        if pipeline.dtype == torch.float16 and self.pipe.vae.config.force_upcast:
            self.pipe.vae.float()
        self.no_style: Tensor | None = None
        if style:
            self.no_style = self.encode_style(Image.new("RGB", (64, 64)))[0]
        else:
            self.pipe.unload_ip_adapter()
        empty = self.encode_text([""])
        self._empty = {"states": empty[0]["states"]}
        if unconditional_pooled == "empty":
            self._empty["pooled"] = empty[0]["pooled"]

    @torch.inference_mode()
    def encode_text(self, captions: Sequence[str]) -> list[Conditions]:
        """{"states": (tokens, C), "pooled": (P,)} of each caption, fp16 on a GPU."""
        made = self.pipe.encode_prompt(
            list(captions), device=self.device, do_classifier_free_guidance=False
        )
        return [
            {"states": s.clone(), "pooled": p.clone()}
            for s, p in zip(made[0], made[2], strict=True)
        ]

    @torch.inference_mode()
    def encode_style(self, picture: Image.Image) -> tuple[Tensor, Tensor]:
        """What the IP-Adapter is given without a reference, and with this one: each (1, tokens,
        C)."""
        both = self.pipe.prepare_ip_adapter_image_embeds(picture, None, self.device, 1, True)[0]
        without, with_it = both.chunk(2)
        return without[0].clone(), with_it[0].clone()

    def time_ids(
        self, original: Sequence[int], crop: Sequence[int], size: tuple[int, int]
    ) -> Tensor:
        """SDXL's size conditioning (6,): original (h, w), crop (top, left), target (h, w). `size`
        is (w, h)."""
        return torch.tensor([*original, *crop, size[1], size[0]], dtype=torch.float32)

    def unconditional(self, c: Conditions) -> Conditions:
        """What differs in the teacher's unconditional pass from conditions (B, ...)."""
        out = {k: v.to(c[k]).expand_as(c[k]) for k, v in self._empty.items()}
        if self.no_style is not None:
            out["style"] = self.no_style.to(c["style"]).expand_as(c["style"])
        return out

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """(F, 3, H, W) in [-1, 1] -> latents (4, h, w), or (4, F, h, w) of several frames: the
        posterior's mode."""
        vae = self.pipe.vae
        frames = [
            vae.encode(f[None].to(self.device, vae.dtype)).latent_dist.mode()[0] for f in pixels
        ]
        z = torch.stack(frames, 1).float() * vae.config.scaling_factor
        latents: Tensor = z[:, 0] if len(pixels) == 1 else z
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """(B, 4, h, w) -> pixels (B, 3, H, W), about [-1, 1]; one after the other, with gradients
        where they are asked for. Only the last one's activations are kept for them, as the backward
        pass begins there; the others' are computed anew, so that no more than one picture's are
        ever held.
        """
        vae = self.pipe.vae

        def one(z: Tensor) -> Tensor:
            return vae.decode(z / vae.config.scaling_factor, return_dict=False)[0].float()  # type: ignore[no-any-return]

        parts = latents.to(vae.dtype).split(1)
        if latents.requires_grad and torch.is_grad_enabled():
            return torch.cat(
                [*(checkpoint(one, z, use_reentrant=False) for z in parts[:-1]), one(parts[-1])]
            )
        with torch.no_grad():
            return torch.cat([one(z) for z in parts])


class SpatialHead(nn.Module):
    """A small network over latents whose output is compared instead of them (as in MCM, Zhai et al.
    2024, arXiv 2406.06890): the identity at first.
    """

    def __init__(self, heavy: bool = False, channels: int = 4, width: int = 64) -> None:
        """learn: 1x1 convolutions, two layers; hlearn (`heavy`): 3x3, five layers."""
        super().__init__()
        kernel, depth = (3, 5) if heavy else (1, 2)
        sizes = [channels, *[width] * (depth - 1)]
        layers: list[nn.Module] = [nn.SiLU()]
        for a, b in pairwise(sizes):
            layers += [nn.Conv2d(a, b, kernel, padding=kernel // 2), nn.GroupNorm(32, b), nn.SiLU()]
        last = nn.Conv2d(width, channels, 1)
        nn.init.zeros_(last.weight)
        assert last.bias is not None
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*layers, last)

    def forward(self, z: Tensor) -> Tensor:
        """(B, 4, h, w) or (B, 4, F, h, w) -> the same shape."""
        # (B, 4, F, h, w) -> (B F, 4, h, w)
        flat = z.transpose(1, 2).flatten(0, 1) if z.ndim == 5 else z
        out = self.layers(flat)
        if z.ndim == 5:
            out = out.unflatten(0, (z.shape[0], z.shape[2])).transpose(1, 2)
        return z + out  # type: ignore[no-any-return]
