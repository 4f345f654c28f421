"""One UNet as teacher, student and target.

The teacher is the frozen UNet with its adapter off, the student has the adapter on, the target a
second adapter that is an average of the student's. So training holds the big weights once.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from diffusers import UNet2DConditionModel, UNetMotionModel
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from std_cli.distill.bank import Conditions
from std_cli.errors import InputError

STUDENT = "student"
TARGET = "target"
_IP_ADAPTER = r".*(encoder_hid_proj|to_[kv]_ip).*"
"""The IP-Adapter's layers, which are not the UNet's own and get no LoRA."""


class Roles:
    """A pipeline's UNet as three functions (x, timesteps, conditions) -> output; only the student's
    adapter learns.

    x is (B, 4, h, w), or (B, 4, F, h, w) with a motion adapter.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel | UNetMotionModel,
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
        self.unet = unet
        self.ema = ema
        self.dtype = unet.dtype
        unet.requires_grad_(False).eval()
        left_out = _IP_ADAPTER if motion else rf"{_IP_ADAPTER}|.*motion_modules.*"
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
        """The UNet's raw output, like x, in float32, with the adapter that learns; t is (B,)."""
        for dropout in self._dropouts:  # active where it learns, not where it is looked at
            dropout.train(torch.is_grad_enabled())
        return self._forward(x, t, c)

    @torch.no_grad()
    def teacher(self, x: Tensor, t: Tensor, c: Conditions) -> Tensor:
        """The UNet's output as of `student`, without an adapter and without gradients."""
        with self._role(None):
            return self._forward(x, t, c)

    @torch.no_grad()
    def target(self, x: Tensor, t: Tensor, c: Conditions) -> Tensor:
        """The UNet's output as of `student`, with the averaged adapter and without gradients."""
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
        """Take what `state_dict` returned."""
        chosen = self.parameters if role == STUDENT else self.averages
        for name, p in chosen.items():
            p.data.copy_(state[name.replace(f".{role}.", ".")])

    def checkpoint_activations(self) -> None:
        """Compute activations again in the backward pass, the motion layers' too, which diffusers
        leaves out."""
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
