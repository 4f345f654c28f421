"""What surrounds the UNet in training: conditions from captions and references, latents from pixels
and back."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from std_cli.diffusion import vae
from std_cli.diffusion.pipeline import Pipeline
from std_cli.distill.bank import Conditions


class Conditioner:
    """Captions, style pictures and frames as the networks see them, and latents as pixels."""

    def __init__(self, pipeline: Pipeline, *, unconditional_pooled: str, style: bool) -> None:
        """unconditional_pooled: "caption" or "empty", as distill.unconditional_pooled. style:
        whether samples have references; else the IP-Adapter is unloaded."""
        self.pipeline = pipeline
        self.pipe = pipeline.pipe
        self.device = pipeline.device
        self.pipe.vae.requires_grad_(False)
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
        """{"states": (tokens, C), "pooled": (P,)} of each caption, in the pipeline's dtype."""
        made = self.pipe.encode_prompt(
            list(captions), device=self.device, do_classifier_free_guidance=False
        )
        return [
            {"states": s.clone(), "pooled": p.clone()}
            for s, p in zip(made[0], made[2], strict=True)
        ]

    @torch.inference_mode()
    def encode_style(self, picture: Image.Image) -> tuple[Tensor, Tensor]:
        """What the IP-Adapter gets without a reference, and with this one: each (1, tokens, C)."""
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
        frames = [vae.encode(self.pipe.vae, f[None].to(self.device))[0] for f in pixels]
        z = torch.stack(frames, 1)
        latents: Tensor = z[:, 0] if len(pixels) == 1 else z
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """(B, 4, h, w) -> pixels (B, 3, H, W), about [-1, 1]; one after the other, with gradients
        where they are asked for. Only the last one's activations are kept for them, as the backward
        pass begins there; the others' are computed again, so that no more than one picture's are
        ever held.
        """

        def one(z: Tensor) -> Tensor:
            return vae.decode(self.pipe.vae, z).float()

        parts = latents.to(self.pipe.vae.dtype).split(1)
        if latents.requires_grad and torch.is_grad_enabled():
            return torch.cat(
                [*(checkpoint(one, z, use_reentrant=False) for z in parts[:-1]), one(parts[-1])]
            )
        with torch.no_grad():
            return torch.cat([one(z) for z in parts])
