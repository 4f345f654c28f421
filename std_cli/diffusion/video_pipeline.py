"""Video to video, in the pieces that `windows.Wavefront` puts together.

diffusers has no such pipeline for SDXL. What a run keeps the same is in `Conditions`, which every
piece is given: nothing of a run is left on the pipeline.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNetMotionModel
from PIL import Image
from torch import Tensor
from torch.overrides import TorchFunctionMode

from std_cli.config import ImageSettings
from std_cli.diffusion import vae
from std_cli.diffusion.pipeline import Pipeline, not_a_number
from std_cli.diffusion.streams import Arriving, to_device
from std_cli.errors import StdError
from std_cli.media.palette import Levels
from std_cli.schedule import Schedule

DECODED = {"cuda": 4}
"""Frames at most that the VAE decodes at once, by type of device; elsewhere one. On a processor
batches of 4 took longer: 291 in place of 249 ms."""


@dataclass(frozen=True)
class Conditions:
    """What all frames of a run are denoised with."""

    scheduler: Any
    """diffusers' scheduler of the method with the timesteps of the run. It counts its calls: use
    `fresh`."""
    latent_shape: tuple[int, int, int]
    """(4, h, w) of a frame."""
    seed: int
    share: Tensor
    """Of a frame's latent at the first timestep, (4, h, w), in the run's dtype on its device."""
    noise: Tensor
    """The rest of it, the same for all frames, like `share`."""
    step_noise: Tensor
    """What a step adds if its scheduler adds noise, (steps, 4, h, w), like `share`."""
    times: Tensor
    """The timesteps on the device, (steps,)."""
    cfg: float
    guided_steps: int
    """The first steps, which have guidance; 0 without."""
    unconditional: range
    """The steps that predict without the conditions, too."""
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
    def reuses(self) -> bool:
        """Whether guided steps reuse the prediction without the conditions of a step before. The
        latents of a run then have that behind their own channels, (8, h, w), until the last
        step."""
        return len(self.unconditional) < self.guided_steps

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
        if self.device.type == "cuda" and self.savings.offload == "none":
            # their embeddings are known: the memory is for the frames
            for encoder in self._encoders:
                encoder.to("cpu")
        factor = pipe.vae_scale_factor
        shape = (4, size[1] // factor, size[0] // factor)
        share, noise = (
            each.to(self.device) for each in self._first_latent(scheduler, settings.seed, shape)
        )
        return Conditions(
            scheduler=scheduler,
            latent_shape=shape,
            seed=settings.seed,
            share=share,
            noise=noise,
            step_noise=self._step_noise(settings, shape).to(self.device),
            times=scheduler.timesteps.to(self.device),
            cfg=settings.cfg,
            guided_steps=settings.guided_steps,
            unconditional=settings.unconditional_steps,
            states=states,
            pooled=pooled,
            time_ids=time_ids,
            style=self.style if guided else self.style.chunk(2)[1],
        )

    def _first_latent(
        self, scheduler: Any, seed: int, shape: tuple[int, int, int]
    ) -> tuple[Tensor, Tensor]:
        """What a latent is multiplied by and what is added for the first timestep: the scheduler's
        own `add_noise`, which would wait for a GPU at every frame, of one and nothing, and of
        nothing and the noise."""
        noise = seeded_noise(seed, shape).to(self.dtype)
        zeros, first = torch.zeros_like(noise), scheduler.timesteps[:1]
        add = copy.copy(scheduler).add_noise
        return add(torch.ones_like(noise), zeros, first), add(zeros, noise, first)

    def _step_noise(self, settings: ImageSettings, shape: tuple[int, int, int]) -> Tensor:
        """Drawn for each step as the schedulers draw it, from a CPU generator."""
        drawn = [
            torch.randn((1, *shape), generator=step_generator(settings.seed, k), dtype=self.dtype)
            for k in range(settings.steps)
        ]
        return torch.cat(drawn)

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
    def frames_at_once(self, conditions: Conditions, stride: int) -> int:
        """How many frames the VAE decodes at once: as many as divide the `stride` frames that come
        out of the windows together, and fit into what `windows_at_once` leaves free."""
        counts = [n for n in range(DECODED.get(self.device.type, 1), 1, -1) if stride % n == 0]
        if not counts or self.savings.offload != "none":
            return 1
        if self.device.type == "cuda":
            latent = torch.zeros(conditions.latent_shape, device=self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            self.savings.frames = 1
            self.decode(latent)
            each = torch.cuda.max_memory_allocated(self.device) - before
            torch.cuda.empty_cache()
            room = torch.cuda.mem_get_info(self.device)[0] * 0.2
            counts = [n for n in counts if n * each <= room]
        return counts[0] if counts else 1

    @torch.inference_mode()
    def encode(self, image: Image.Image) -> Tensor:
        """A frame of the working size -> its latent (4, h, w) in the run's dtype, by
        `vae.encode`."""
        pixels = to_device(self.pipe.image_processor.preprocess(image), self.device)
        latents = self.savings.attempt(
            lambda: vae.encode(self.pipe.vae, pixels), lambda: max(image.size)
        )
        return latents[0].to(self.dtype)

    def add_noise(self, conditions: Conditions, latent: Tensor) -> Tensor:
        """The latent (4, h, w) at the first timestep, and where a run reuses predictions the place
        of the first. The noise follows from the seed alone,
        whichever frame a run begins with."""
        noised = conditions.share * latent + conditions.noise
        return torch.cat([noised, torch.zeros_like(noised)]) if conditions.reuses else noised

    def predict(
        self,
        conditions: Conditions,
        latents: Tensor,
        steps: Sequence[int],
        frames: Sequence[range],
    ) -> Tensor:
        """The guided prediction of B windows (B, 4, F, h, w), each at the timestep of its own step.
        Where a run reuses predictions, that with the conditions and that without, (B, 8, F, h, w),
        which `step` joins.

        frames: the numbers in the video of the F frames of each window.
        Raises torch.OutOfMemoryError if the GPU cannot hold more than one of them; StdError if it
        cannot hold one.
        """
        return self.savings.attempt(
            lambda: self._predict(conditions, latents[:, :4], steps), save=len(latents) == 1
        )

    @torch.inference_mode()
    def _predict(self, conditions: Conditions, latents: Tensor, steps: Sequence[int]) -> Tensor:
        count, frames = len(latents), latents.shape[2]
        # one by one: a list of numbers would have to be copied to the device, and waited for
        t = torch.stack([conditions.times[k] for k in steps])
        pairs = zip(latents, steps, strict=True)
        latents = torch.stack(
            [conditions.fresh().scale_model_input(x, conditions.timesteps[k]) for x, k in pairs]
        )
        guided = [i for i, k in enumerate(steps) if k in conditions.unconditional]
        latents = torch.cat([*(latents[i : i + 1] for i in guided), latents])
        t = torch.cat([*(t[i : i + 1] for i in guided), t])

        def repeated(values: Tensor, times: int = 1) -> Tensor:
            """Those without the conditions for the guided windows, those with them for all."""
            positive = values[-1:].repeat_interleave(count * times, 0)
            negative = values[:1].repeat_interleave(len(guided) * times, 0)
            return torch.cat([negative, positive])

        moving = isinstance(self.pipe.unet, UNetMotionModel)
        out: Tensor = self.pipe.unet(
            latents if moving else latents.squeeze(2),  # without motion F is 1
            t,
            repeated(conditions.states, frames),  # per frame; all else is per window
            added_cond_kwargs={
                "text_embeds": repeated(conditions.pooled),
                "time_ids": repeated(conditions.time_ids),
                "image_embeds": [repeated(conditions.style)],
            },
            return_dict=False,
        )[0]
        out = out if moving else out.unsqueeze(2)
        if conditions.reuses:
            return _side_by_side(out, guided)
        return _guide(out, guided, conditions.cfg)

    def step(self, conditions: Conditions, predictions: Tensor, latents: Tensor, k: int) -> Tensor:
        """Step k of the method's scheduler, of N frames at once (N, 4 or 8, h, w), each as if it
        were alone: the schedulers work element by element.

        Its noise, if it adds any, follows from the seed and k: all frames share it, as they do the
        first noise.
        """
        scheduler, t = conditions.fresh(), conditions.timesteps[k]
        kept = None
        if conditions.reuses:
            kept = (predictions if k in conditions.unconditional else latents)[:, 4:]
            predictions, latents = predictions[:, :4], latents[:, :4]
            if k < conditions.guided_steps:
                predictions = kept + conditions.cfg * (predictions - kept)
        scheduler.scale_model_input(latents, t)  # Euler warns where this was not called
        with _Drawn(conditions.step_noise[k]):
            out: tuple[Tensor] = scheduler.step(
                predictions, t, latents, **self.gamma, return_dict=False
            )
        if kept is None or k == len(conditions.timesteps) - 1:
            return out[0]
        return torch.cat([out[0], kept], 1)

    def decode(self, latent: Tensor) -> Levels:
        """A finished latent (4, h, w) -> RGB (H, W, 3), levels that are not rounded. Raises
        StdError if it is not finite."""
        return self.levels(self.begin_decoding([latent])[0])

    @torch.inference_mode()
    def begin_decoding(self, latents: Sequence[Tensor]) -> list[Arriving]:
        """As `decode`, of several frames, for `levels`: a GPU may still work on them.

        The VAE gets `savings.frames` at once, the last again where fewer are left: of one shape a
        frame is the same whichever are decoded with it, so that runs that resume need not divide
        the frames as the interrupted one did.
        """
        side = max(latents[0].shape) * self.pipe.vae_scale_factor

        def decoded() -> list[Tensor]:
            found: list[Tensor] = []
            count = self.savings.frames
            for first in range(0, len(latents), count):
                some = list(latents[first : first + count])
                filled = some + some[-1:] * (count - len(some))
                found += vae.decode(self.pipe.vae, torch.stack(filled))[: len(some)].float()
            return found

        return [_arriving(pixels) for pixels in self.savings.attempt(decoded, lambda: side)]

    def levels(self, decoded: Arriving) -> Levels:
        """What `begin_decoding` began, when it is done."""
        pixels, finite = decoded.tensors()
        if not finite:
            raise StdError(not_a_number(self.dtype))
        return pixels.numpy()

    @contextmanager
    def aside(self, stage: str) -> Iterator[None]:
        """Inside, a stage of a video works next to the others; on a GPU in a stream of its own,
        unless weights move, which one stream must see in its order."""
        with nullcontext() if self.savings.offload != "none" else self.streams.aside(stage):
            yield


def _arriving(pixels: Tensor) -> Arriving:
    """The levels of a decoded frame, (3, H, W) about [-1, 1] -> (H, W, 3), and whether all are
    finite."""
    finite = torch.isfinite(pixels).all()
    return Arriving((pixels / 2 + 0.5).clamp(0, 1).permute(1, 2, 0) * 255, finite)


class _Drawn(TorchFunctionMode):
    """Inside, `torch.randn` gives what was drawn before: diffusers' schedulers draw on the CPU, and
    a GPU would have to be waited for."""

    def __init__(self, noise: Tensor) -> None:
        super().__init__()
        self.noise = noise

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.randn:
            return self.noise.expand(args[0])
        return func(*args, **(kwargs or {}))


def _guide(predictions: Tensor, guided: Sequence[int], cfg: float) -> Tensor:
    """The predictions of B windows, (G + B, ...): first those without conditions of the G windows
    that are guided, then those with conditions of all -> (B, ...) with classifier-free guidance."""
    unconditional, conditional = predictions[: len(guided)], predictions[len(guided) :]
    if len(guided) == len(conditional):
        return unconditional + cfg * (conditional - unconditional)
    out = list(conditional)
    for i, without in zip(guided, unconditional, strict=True):
        out[i] = without + cfg * (conditional[i] - without)
    return torch.stack(out)


def _side_by_side(predictions: Tensor, guided: Sequence[int]) -> Tensor:
    """The same predictions -> (B, 8, ...), those with conditions and those without, which are 0 of
    windows that have none."""
    conditional = predictions[len(guided) :]
    without = list(torch.zeros_like(conditional))
    for i, prediction in zip(guided, predictions[: len(guided)], strict=True):
        without[i] = prediction
    return torch.cat([conditional, torch.stack(without)], 1)


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
