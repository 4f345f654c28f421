"""Video to video, in the pieces that `windows.Wavefront` puts together.

diffusers has no such pipeline for SDXL. What a run keeps the same is in `Conditions`, which every
piece is given: nothing of a run is left on the pipeline.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler, UNetMotionModel
from PIL import Image
from torch import Tensor

from std_cli.config import ImageSettings
from std_cli.diffusion import vae
from std_cli.diffusion.pipeline import Pipeline, not_a_number
from std_cli.errors import StdError
from std_cli.media.palette import Levels
from std_cli.schedule import Schedule


@dataclass(frozen=True)
class Conditions:
    """What all frames of a run are denoised with."""

    scheduler: Any
    """diffusers' scheduler of the method with the timesteps of the run. It counts its calls: use
    `fresh`."""
    latent_shape: tuple[int, int, int]
    """(4, h, w) of a frame."""
    seed: int
    noise: Tensor
    """That all frames begin with, (4, h, w), in the run's dtype on its device."""
    times: Tensor
    """The timesteps on the device, (steps,)."""
    cfg: float
    states: Tensor
    """Hidden states of the prompt, (1, tokens, C); with guidance (2, ...): negative, positive. So
    are the next three."""
    pooled: Tensor
    """Pooled embedding of the prompt, (1 or 2, C)."""
    time_ids: Tensor
    """SDXL's size conditioning, (1 or 2, 6)."""
    style: Tensor
    """What the IP-Adapter is given: (1 or 2, 1, tokens, C), or (1 or 2, 1, C) of a plain one."""

    @property
    def guided(self) -> bool:
        """Whether there is classifier-free guidance: two predictions at once."""
        return len(self.style) == 2

    @property
    def timesteps(self) -> Tensor:
        """(steps,) int64, or float32 with Euler."""
        return self.scheduler.timesteps  # type: ignore[no-any-return]

    def fresh(self) -> Any:
        """A scheduler that has not been called yet."""
        return copy.copy(self.scheduler)


class VideoPipeline(Pipeline):
    """The networks and the method's scheduler on frames and windows of frames.

    Without a motion adapter a window is one frame, and the result is the picture pipeline's.
    """

    def prepare(
        self, settings: ImageSettings, schedule: Schedule, size: tuple[int, int]
    ) -> Conditions:
        """Bring the networks into the state in which videos are made, and return what a run keeps
        the same. `size` is the frames' (width, height) in pixels."""
        pipe = self.pipe
        guided = settings.cfg > 1
        scheduler = copy.copy(pipe.scheduler)
        scheduler.set_timesteps(timesteps=self.choose_timesteps(scheduler, settings, schedule))
        text = self.encode_prompt(settings.prompt, settings.negative_prompt)
        states, pooled = text["prompt_embeds"], text["pooled_prompt_embeds"]
        at = (size[1], size[0])
        ids = pipe._get_add_time_ids(
            at, (0, 0), at, 6.0, 2.5, at, (0, 0), at,
            dtype=self.dtype, text_encoder_projection_dim=int(pooled.shape[-1]),
        )  # fmt: skip
        time_ids = ids[0].to(self.device)
        if guided:
            states = torch.cat([text["negative_prompt_embeds"], states])
            pooled = torch.cat([text["negative_pooled_prompt_embeds"], pooled])
            time_ids = torch.cat([ids[1].to(self.device), time_ids])
        assert self.style is not None
        vae.upcast_vae(pipe.vae, self.dtype)
        if self.device.type == "cuda" and self.savings.offload == "none":
            # their embeddings are known: the memory is for the frames
            for encoder in (pipe.text_encoder, pipe.text_encoder_2, pipe.image_encoder):
                encoder.to("cpu")
        factor = pipe.vae_scale_factor
        shape = (4, size[1] // factor, size[0] // factor)
        return Conditions(
            scheduler=scheduler,
            latent_shape=shape,
            seed=settings.seed,
            noise=seeded_noise(settings.seed, shape).to(self.device, self.dtype),
            times=scheduler.timesteps.to(self.device),
            cfg=settings.cfg,
            states=states,
            pooled=pooled,
            time_ids=time_ids,
            style=self.style if guided else self.style.chunk(2)[1],
        )

    def windows_at_once(self, conditions: Conditions, window: int) -> int:
        """How many windows of `window` frames fit into the GPU's free memory together; at most one
        per step.

        On a CPU one is as fast as many.
        """
        if self.device.type != "cuda":
            return 1
        channels, height, width = conditions.latent_shape
        trial = torch.zeros(1, channels, window, height, width).to(self.device, self.dtype)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        self.predict(conditions, trial, [0], [range(window)])
        each = torch.cuda.max_memory_allocated(self.device) - before
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info(self.device)[0] * 0.7  # the VAE works at the same time
        return max(1, min(len(conditions.timesteps), int(free / each)))

    @torch.inference_mode()
    def encode(self, image: Image.Image) -> Tensor:
        """A frame of the working size -> its latent (4, h, w) in the run's dtype, by
        `vae.encode`."""
        pixels = self.pipe.image_processor.preprocess(image).to(self.device)
        latents = self.savings.attempt(
            lambda: vae.encode(self.pipe.vae, pixels), lambda: max(image.size)
        )
        return latents[0].to(self.dtype)

    def add_noise(self, conditions: Conditions, latent: Tensor) -> Tensor:
        """The latent (4, h, w) at the first timestep. The noise follows from the seed alone,
        whichever frame a run begins with."""
        first = conditions.timesteps[:1]
        return conditions.scheduler.add_noise(latent, conditions.noise, first)  # type: ignore[no-any-return]

    def predict(
        self,
        conditions: Conditions,
        latents: Tensor,
        steps: Sequence[int],
        frames: Sequence[range],
    ) -> Tensor:
        """The guided prediction of B windows (B, 4, F, h, w), each at the timestep of its own step.

        frames: the numbers in the video of the F frames of each window.
        Raises torch.OutOfMemoryError if the GPU cannot hold more than one of them; StdError if it
        cannot hold one.
        """
        if len(latents) > 1:
            with self.savings.lock:
                return self._predict(conditions, latents, steps)
        return self.savings.attempt(lambda: self._predict(conditions, latents, steps))

    @torch.inference_mode()
    def _predict(self, conditions: Conditions, latents: Tensor, steps: Sequence[int]) -> Tensor:
        count, frames = len(latents), latents.shape[2]
        # one by one: a list of numbers would have to be copied to the device, and waited for
        t = torch.stack([conditions.times[k] for k in steps])
        pairs = zip(latents, steps, strict=True)
        latents = torch.stack(
            [conditions.fresh().scale_model_input(x, conditions.timesteps[k]) for x, k in pairs]
        )
        if conditions.guided:
            latents, t = torch.cat([latents, latents]), torch.cat([t, t])
        moving = isinstance(self.pipe.unet, UNetMotionModel)
        out: Tensor = self.pipe.unet(
            latents if moving else latents.squeeze(2),  # without motion F is 1
            t,
            # per frame; all else is per window
            conditions.states.repeat_interleave(count * frames, 0),
            added_cond_kwargs={
                "text_embeds": conditions.pooled.repeat_interleave(count, 0),
                "time_ids": conditions.time_ids.repeat_interleave(count, 0),
                "image_embeds": [conditions.style.repeat_interleave(count, 0)],
            },
            return_dict=False,
        )[0]
        out = out if moving else out.unsqueeze(2)
        if conditions.guided:
            unconditional, conditional = out.chunk(2)
            out = unconditional + conditions.cfg * (conditional - unconditional)
        return out

    def step(self, conditions: Conditions, predictions: Tensor, latents: Tensor, k: int) -> Tensor:
        """Step k of the method's scheduler, of N frames at once (N, 4, h, w), each as if it were
        alone: the schedulers work element by element.

        Its noise, if it adds any, follows from the seed and k: all frames share it, as they do the
        first noise.
        """
        scheduler, t = conditions.fresh(), conditions.timesteps[k]
        scheduler.scale_model_input(latents, t)  # Euler warns where this was not called
        options: dict[str, Any] = {}
        if not isinstance(scheduler, DDIMScheduler):
            options["generator"] = [step_generator(conditions.seed, k) for _ in latents]
        out: tuple[Tensor] = scheduler.step(
            predictions, t, latents, **self.gamma, **options, return_dict=False
        )
        return out[0]

    @torch.inference_mode()
    def decode(self, latent: Tensor) -> Levels:
        """A finished latent (4, h, w) -> RGB (H, W, 3), levels that are not rounded. Raises
        StdError if it is not finite."""
        side = max(latent.shape) * self.pipe.vae_scale_factor
        pixels = self.savings.attempt(
            lambda: vae.decode(self.pipe.vae, latent[None])[0], lambda: side
        )
        if not torch.isfinite(pixels).all():
            raise StdError(not_a_number(self.dtype))
        pixels = (pixels / 2 + 0.5).clamp(0, 1).permute(1, 2, 0)  # (3, H, W) -> (H, W, 3)
        return (pixels * 255).cpu().numpy()


def seeded_noise(seed: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise that all frames of a run share, from a CPU generator, so that it is the
    same everywhere.

    Noise that differs between frames, in part or whole, measured worse on a real clip: flicker 10.3
    with half of the variance shared, 1.6 with all of it (levels of 255, the embedded pack frame by
    frame).
    """
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))


def step_generator(seed: int, k: int) -> torch.Generator:
    """The source of the noise that step k adds, which differs from `seeded_noise`."""
    return torch.Generator("cpu").manual_seed((seed + 0x9E3779B97F4A7C15 * (k + 1)) % 2**63)
