"""Every inference call to diffusers: build the pipeline once, then stylize picture after picture.

The work itself is diffusers' `StableDiffusionXLImg2ImgPipeline`, so that a run equals the published
snippet; what is ours is what surrounds it: which weights go where, embeddings kept between
pictures, the exact timesteps.
"""

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    MotionAdapter,
    StableDiffusionXLImg2ImgPipeline,
    TCDScheduler,
    UNet2DConditionModel,
    UNetMotionModel,
)
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from std_cli.config import ImageSettings, Offload
from std_cli.diffusion.out_of_memory import OUT_OF_MEMORY, Savings, check_offload, enable_offload
from std_cli.environment import LOADING
from std_cli.errors import InputError, StdError, printable
from std_cli.schedule import Schedule, spread_num_inference_steps, timesteps
from std_cli.weights.configs.base import read_config, settings
from std_cli.weights.configs.encoders import ImageEncoder, TextEncoder
from std_cli.weights.files import read_header
from std_cli.weights.fit import check_ip_adapter, check_motion
from std_cli.weights.loading import loading
from std_cli.weights.lora import LoraFile, check_lora, fuse_lora, read_lora
from std_cli.weights.motion import MotionFiles, from_hotshot
from std_cli.weights.parts import check_finite
from std_cli.weights.resolve import ModelFiles
from std_cli.weights.zoo import Method, MethodName, zoo

STYLE_BLOCK = {
    "down": 0,
    "mid": 0,
    "up": {"block_0": [0, 1, 0], "block_1": 0},
}  # where SDXL paints style (examples/method.md, The published setting)


def choose_device(name: str) -> torch.device:
    """The torch device of `auto`, `cuda`, `cuda:N`, `mps` or `cpu`. Raises InputError if this
    machine has none."""
    if name == "auto":
        name = (
            "cuda"
            if torch.cuda.is_available()
            else "mps"
            if torch.backends.mps.is_available()
            else "cpu"
        )
    kind, _, index = name.partition(":")
    count = {
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
        "cpu": 1,
    }[kind]
    if count <= int(index or 0):
        raise InputError(
            f"--device {name}: this machine has {count or 'no'} {kind} "
            f"device{'s'[: count != 1]}: use --device auto"
        )
    return torch.device(name)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """fp16 on a GPU, as published, and fp32 on a CPU, unless the user chose."""
    if name == "auto":
        name = "fp32" if device.type == "cpu" else "fp16"
    return {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[name]


class _GivenDDIM(DDIMScheduler):  # type: ignore[misc]  # untyped
    """DDIM that takes the timesteps of a run, as the other schedulers do, of `whole` over all the
    noise."""

    whole = 1

    def set_timesteps(
        self, num_inference_steps: Any = None, device: Any = None, timesteps: Any = None
    ) -> None:
        super().set_timesteps(self.whole, device)  # a step goes 1000 // whole down
        self.timesteps = torch.tensor(timesteps, device=device)


def make_scheduler(method: Method, base: dict[str, Any]) -> Any:
    """The scheduler of a method, with the noise levels of the base model's scheduler config."""
    classes = {c.__name__: c for c in (TCDScheduler, LCMScheduler, EulerDiscreteScheduler)}
    kind = classes.get(method.scheduler, _GivenDDIM)
    # noise levels other than those of the chosen timesteps: Euler refuses both together
    other_levels = dict.fromkeys(
        ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"), False
    )
    fixed = {**other_levels, "timestep_type": "discrete"} if kind is EulerDiscreteScheduler else {}
    scheduler = kind.from_config(base, **fixed, **method.config)
    if method.to_zero:
        scheduler.alphas_cumprod[0] = 1.0  # TCD's last step goes to timestep 0
    return scheduler


def _overridden(config: Mapping[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """A scheduler's config with what the checkpoint says of itself in its place.

    diffusers leaves out of another class's config what was not in the file: a default that is
    overridden must not be listed as one.
    """
    defaults = [name for name in config.get("_use_default_values", []) if name not in settings]
    return dict(config) | settings | {"_use_default_values": defaults}


class Pipeline:
    """SDXL with a method's scheduler, a motion adapter if there is one, a fused LoRA and an
    IP-Adapter."""

    def __init__(
        self,
        files: ModelFiles,
        lora: LoraFile | None,
        device: torch.device,
        dtype: torch.dtype,
        offload: Offload = "none",
        compile: bool = False,
        motion: MotionFiles | None = None,
        method: MethodName = "std",
        allow_partial: bool = False,
    ) -> None:
        """Load the weights and move them to the device. Raises InputError if they do not fit each
        other."""
        check_offload(offload, device)
        self.device, self.dtype = device, dtype
        self.method = zoo().methods[method]
        self.notices = list(files.notices)
        self.on_notice: Callable[[str], None] = self.notices.append
        check_finite(files, motion, dtype)
        with LOADING, loading(f"--model {printable(files.name, 200)}", files.base):
            self.pipe = self._load(files, lora, motion, dtype, allow_partial)
        pipe = self.pipe
        if device.type == "cuda":
            pipe.unet.to(memory_format=torch.channels_last)
            pipe.vae.to(memory_format=torch.channels_last)
        self.savings = Savings(pipe, device, offload, lambda message: self.on_notice(message))
        enable_offload(pipe, offload, device)
        self._parts = files.base  # for errors
        if offload == "none":
            with self._first_use():
                self.savings.work(
                    lambda: pipe.to(device) if self.savings.offload == "none" else None
                )
        if compile:
            pipe.unet = torch.compile(pipe.unet)
        pipe.set_progress_bar_config(disable=True)
        self._prompts: dict[tuple[str, str], dict[str, torch.Tensor]] = {}
        self._style: torch.Tensor | None = None

    def _load(
        self,
        files: ModelFiles,
        lora: LoraFile | None,
        motion: MotionFiles | None,
        dtype: torch.dtype,
        allow_partial: bool,
    ) -> StableDiffusionXLImg2ImgPipeline:
        with loading("image_encoder", files.image_encoder):
            vision, _ = read_config(ImageEncoder, files.image_encoder / "config.json")
            encoder = CLIPVisionModelWithProjection.from_pretrained(
                files.image_encoder,
                config=CLIPVisionConfig(**settings(vision)),
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
            )
        if files.single_file:
            pipe = StableDiffusionXLImg2ImgPipeline.from_single_file(
                str(files.base),
                config=str(files.config),
                dtype=dtype,
                image_encoder=encoder,
                local_files_only=True,
            )
        else:
            pipe = StableDiffusionXLImg2ImgPipeline.from_pretrained(
                files.base,
                image_encoder=encoder,
                local_files_only=True,
                **_load_parts(files, dtype),
            )
        pipe.scheduler = make_scheduler(
            self.method, _overridden(pipe.scheduler.config, files.scheduler)
        )
        if motion is not None:  # before LoRA and IP-Adapter: from_unet2d takes a plain UNet only
            pipe.unet = add_motion(pipe.unet, motion)
        if lora is not None:
            weights = read_lora(lora.path, f"--lora {lora.name}")
            self.notices += [f"{weights.label}: {notice}" for notice in weights.notices]
            matched, total = check_lora(weights, pipe.unet, allow_partial)
            if matched < total:
                self.notices.append(
                    f"--lora {lora.name}: {matched} of {total} tensors match this UNet, the "
                    f"others are left out"
                )
            fuse_lora(weights, pipe.unet, lora.scale)
        check_ip_adapter(str(files.ip_adapter), read_header(files.ip_adapter)[0], pipe.unet)
        folder = files.ip_adapter.parent
        pipe.load_ip_adapter(
            str(folder.parent),
            subfolder=folder.name,
            weight_name=files.ip_adapter.name,
            image_encoder_folder=None,
            local_files_only=True,
        )
        return pipe

    def _first_use(self) -> AbstractContextManager[None]:
        """Around the first use of a part: what its library raises there is due to its files."""
        return loading("the model", self._parts, "does not run with the configs and weights in")

    def _timesteps_of(self, s: ImageSettings, schedule: Schedule) -> list[int]:
        """The timesteps of a run."""
        if isinstance(self.pipe.scheduler, _GivenDDIM):
            self.pipe.scheduler.whole = spread_num_inference_steps(s.steps, s.eta)
        return timesteps(s.steps, s.eta, schedule, self.method.grid)

    @property
    def _gamma(self) -> dict[str, float]:
        """What the scheduler's step takes of the method's stochasticity."""
        return {"eta": self.method.gamma} if isinstance(self.pipe.scheduler, TCDScheduler) else {}

    def set_style(
        self, references: Sequence[Image.Image], weights: Sequence[float], scale: float, blocks: str
    ) -> None:
        """Encode the references (RGB) and keep the weighted mean of their embeddings, unconditional
        and styled.

        `weights` sum to 1. The mean is of what the IP-Adapter takes: hidden states (plus) or image
        embeddings (plain).
        """
        self.pipe.set_ip_adapter_scale(scale if blocks == "all" else scaled(STYLE_BLOCK, scale))
        embed = self.pipe.prepare_ip_adapter_image_embeds
        with torch.inference_mode(), self._first_use():
            each = [
                self.savings.work(
                    partial(embed, r, None, self.device, 1, do_classifier_free_guidance=True)
                )[0]
                for r in references
            ]
            self._style = (
                torch.stack([e * w for e, w in zip(each, weights, strict=True)]).sum(0)
                if len(each) > 1
                else each[0]
            )

    def _prompt(self, prompt: str, negative: str) -> dict[str, torch.Tensor]:
        key = (prompt, negative)
        if key not in self._prompts:
            with torch.inference_mode(), self._first_use():
                values = self.savings.work(
                    lambda: self.pipe.encode_prompt(
                        prompt,
                        device=self.device,
                        do_classifier_free_guidance=True,
                        negative_prompt=negative,
                    )
                )
            names = (
                "prompt_embeds",
                "negative_prompt_embeds",
                "pooled_prompt_embeds",
                "negative_pooled_prompt_embeds",
            )
            self._prompts[key] = dict(zip(names, values, strict=True))
        return self._prompts[key]


class ImagePipeline(Pipeline):
    """Picture after picture, as published."""

    def stylize(
        self,
        image: Image.Image,
        s: ImageSettings,
        schedule: Schedule,
        on_step: Callable[[int], None],
    ) -> Image.Image:
        """Stylize one RGB picture whose sides are multiples of 8; `on_step` gets the number of
        steps done.

        Raises StdError when memory runs out or the result is not finite.
        """
        style = self._style if s.cfg > 1 or self._style is None else self._style.chunk(2)[1]

        def step_done(pipe: Any, index: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            on_step(index + 1)
            return {}

        prompt = self._prompt(s.prompt, s.negative_prompt)
        in_unet = False

        def entered(*_: Any) -> None:
            nonlocal in_unet
            in_unet = True

        def left(*_: Any) -> None:
            nonlocal in_unet
            in_unet = False

        def run() -> Any:
            left()
            unet = self.pipe.unet  # another one, should a compiled one have been given up
            hooks = [unet.register_forward_pre_hook(entered), unet.register_forward_hook(left)]
            try:
                return self.pipe(
                    image=image,
                    ip_adapter_image_embeds=[style],
                    guidance_scale=s.cfg,
                    callback_on_step_end=step_done,
                    generator=torch.Generator("cpu").manual_seed(s.seed),
                    timesteps=self._timesteps_of(s, schedule),
                    **self._gamma,
                    # img2img would cut the timesteps by it: they are the whole run already
                    strength=1.0,
                    **prompt,
                )
            finally:
                for hook in hooks:
                    hook.remove()

        with warnings.catch_warnings():
            # a picture of NaN is cast to bytes before anyone can look at it
            warnings.filterwarnings("error", "invalid value encountered in cast", RuntimeWarning)
            # diffusers calls it itself
            warnings.filterwarnings("ignore", "`upcast_vae` is deprecated", FutureWarning)
            try:
                out = self.savings.work(run, lambda: 0 if in_unet else max(image.size))
            except RuntimeWarning:
                raise StdError(_not_a_number(self.dtype)) from None
        return out.images[0]  # type: ignore[no-any-return]


class VideoPipeline(Pipeline):
    """Video to video, in the pieces that the wavefront puts together: diffusers has no such
    pipeline for SDXL.

    Without a motion adapter a window is one frame, and the result is the picture pipeline's.
    """

    def prepare(self, s: ImageSettings, schedule: Schedule, size: tuple[int, int]) -> None:
        """Fix what a run keeps the same: timesteps, guidance, embeddings. `size` is the frames'
        (width, height)."""
        pipe, guided = self.pipe, s.cfg > 1
        self._cfg, self._seed = s.cfg, s.seed
        self._latent_shape = (4, size[1] // pipe.vae_scale_factor, size[0] // pipe.vae_scale_factor)
        pipe.scheduler.set_timesteps(timesteps=self._timesteps_of(s, schedule))
        self._timesteps = pipe.scheduler.timesteps  # int64, or float32 with Euler
        text = self._prompt(s.prompt, s.negative_prompt)
        at = (size[1], size[0])
        width = int(text["pooled_prompt_embeds"].shape[-1])
        ids = pipe._get_add_time_ids(
            at,
            (0, 0),
            at,
            6.0,
            2.5,
            at,
            (0, 0),
            at,
            dtype=self.dtype,
            text_encoder_projection_dim=width,
        )
        # (1, tokens, C), with guidance (2, ...): negative, positive
        self._states = text["prompt_embeds"]
        self._pooled, self._time_ids = text["pooled_prompt_embeds"], ids[0].to(self.device)
        if guided:
            self._states = torch.cat([text["negative_prompt_embeds"], self._states])
            self._pooled = torch.cat([text["negative_pooled_prompt_embeds"], self._pooled])
            self._time_ids = torch.cat([ids[1].to(self.device), self._time_ids])
        assert self._style is not None
        self._tokens = self._style if guided else self._style.chunk(2)[1]  # (2 or 1, 1, tokens, C)
        if self.dtype == torch.float16 and pipe.vae.config.force_upcast:
            pipe.vae.to(torch.float32)
        if self.device.type == "cuda" and self.savings.offload == "none":
            # what they had to tell is known: room for the frames
            for encoder in (pipe.text_encoder, pipe.text_encoder_2, pipe.image_encoder):
                encoder.to("cpu")

    def windows_at_once(self, window: int) -> int:
        """How many windows of `window` frames fit into the GPU's free memory together; at most one
        per step.

        On a CPU one is as fast as many.
        """
        if self.device.type != "cuda":
            return 1
        trial = torch.zeros(1, self._latent_shape[0], window, *self._latent_shape[1:]).to(
            self.device, self.dtype
        )
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        self.predict(trial, [0])
        each = torch.cuda.max_memory_allocated(self.device) - before
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info(self.device)[0] * 0.7  # the VAE works at the same time
        return max(1, min(len(self._timesteps), int(free / each)))

    @torch.inference_mode()
    def encode(self, image: Image.Image) -> torch.Tensor:
        """A frame of the working size -> its latent (4, h, w): the mode of the VAE's posterior, so
        that it repeats."""
        vae = self.pipe.vae
        pixels = self.pipe.image_processor.preprocess(image).to(self.device, vae.dtype)
        mode = self.savings.work(
            lambda: vae.encode(pixels).latent_dist.mode()[0], lambda: max(image.size)
        )
        latent = mode * vae.config.scaling_factor
        return latent.to(self.dtype)  # type: ignore[no-any-return]

    def add_noise(self, latent: torch.Tensor) -> torch.Tensor:
        """The latent at the first timestep. The noise follows from the seed alone, wherever the run
        began."""
        noise = seeded_noise(self._seed, self._latent_shape).to(latent)
        return self.pipe.scheduler.add_noise(latent, noise, self._timesteps[:1])  # type: ignore[no-any-return]

    def predict(self, latents: torch.Tensor, steps: list[int]) -> torch.Tensor:
        """The guided prediction of B windows (B, 4, F, h, w), each at the timestep of its own step.

        Raises torch.OutOfMemoryError if the GPU cannot hold more than one of them; StdError if it
        cannot hold one.
        """
        if len(latents) > 1:
            with self.savings.turn:
                return self._predict(latents, steps)
        return self.savings.work(lambda: self._predict(latents, steps))

    @torch.inference_mode()
    def _predict(self, latents: torch.Tensor, steps: list[int]) -> torch.Tensor:
        b, frames, guided = len(latents), latents.shape[2], len(self._tokens) == 2
        t = self._timesteps[steps].to(self.device)
        pairs = zip(latents, steps, strict=True)
        latents = torch.stack(
            [self._scheduler().scale_model_input(x, self._timesteps[k]) for x, k in pairs]
        )
        if guided:
            latents, t = torch.cat([latents, latents]), torch.cat([t, t])
        moving = isinstance(self.pipe.unet, UNetMotionModel)
        out = self.pipe.unet(
            latents if moving else latents.squeeze(2),  # without motion F is 1
            t,
            self._states.repeat_interleave(b * frames, 0),  # per frame; all else is per window
            added_cond_kwargs={
                "text_embeds": self._pooled.repeat_interleave(b, 0),
                "time_ids": self._time_ids.repeat_interleave(b, 0),
                "image_embeds": [self._tokens.repeat_interleave(b, 0)],
            },
            return_dict=False,
        )[0]
        out = out if moving else out.unsqueeze(2)
        if guided:
            unconditional, conditional = out.chunk(2)
            out = unconditional + self._cfg * (conditional - unconditional)
        return out  # type: ignore[no-any-return]

    def step(self, prediction: torch.Tensor, latent: torch.Tensor, k: int) -> torch.Tensor:
        """One step of the method's scheduler, of one frame (4, h, w).

        Its noise, if it adds any, follows from the seed and k: it is shared by all frames as the
        first noise is.
        """
        scheduler, t = self._scheduler(), self._timesteps[k]
        scheduler.scale_model_input(latent, t)  # Euler warns where this was not called
        noise = (
            {}
            if isinstance(scheduler, DDIMScheduler)
            else {"generator": _step_generator(self._seed, k)}
        )
        return scheduler.step(prediction, t, latent, **self._gamma, **noise, return_dict=False)[0]  # type: ignore[no-any-return]

    def _scheduler(self) -> Any:
        """It counts its calls: each is the first of a new one."""
        return copy.copy(self.pipe.scheduler)

    @torch.inference_mode()
    def decode(self, latent: torch.Tensor) -> NDArray[np.uint8]:
        """A finished latent (4, h, w) -> RGB pixels (H, W, 3). Raises StdError if it is not
        finite."""
        vae, side = self.pipe.vae, max(latent.shape) * self.pipe.vae_scale_factor
        scaled = latent[None].to(vae.dtype) / vae.config.scaling_factor
        pixels = self.savings.work(
            lambda: vae.decode(scaled, return_dict=False)[0][0], lambda: side
        ).float()
        if not torch.isfinite(pixels).all():
            raise StdError(_not_a_number(self.dtype))
        pixels = (pixels / 2 + 0.5).clamp(0, 1).permute(1, 2, 0)  # (3, H, W) -> (H, W, 3)
        return (pixels * 255).round().to(torch.uint8).cpu().numpy()  # type: ignore[no-any-return]


def seeded_noise(seed: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Standard normal noise that all frames of a run share, from a CPU generator, so that it is the
    same everywhere.

    Noise of each frame's own, in part or whole, measured worse on a real clip: flicker 10.3 with
    half of the variance shared, 1.6 with all of it (levels of 255, the embedded pack frame by
    frame).
    """
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))


def _step_generator(seed: int, k: int) -> torch.Generator:
    """Of the noise that step k adds: another than `seeded_noise`'s."""
    return torch.Generator("cpu").manual_seed((seed + 0x9E3779B97F4A7C15 * (k + 1)) % 2**63)


class oom_is_one_line:
    """Turns CUDA's out-of-memory error into one line."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, torch.OutOfMemoryError):
            raise StdError(OUT_OF_MEMORY) from error


def _load_parts(files: ModelFiles, dtype: torch.dtype) -> dict[str, Any]:
    """The networks and tokenizers of a folder, by the classes that std runs, whatever its files
    name."""
    parts: dict[str, Any] = {}
    for part, kind in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL)):
        folder = files.base / part
        with loading(part, folder):
            parts[part] = kind.from_pretrained(folder, **_loading_options(files, folder, dtype))
    for part, kind in (
        ("text_encoder", CLIPTextModel),
        ("text_encoder_2", CLIPTextModelWithProjection),
    ):
        folder = files.base / part
        with loading(part, folder):
            text, _ = read_config(TextEncoder, folder / "config.json")
            config = CLIPTextConfig(**settings(text))
            parts[part] = kind.from_pretrained(
                folder, config=config, **_loading_options(files, folder, dtype)
            )
    for part in ("tokenizer", "tokenizer_2"):
        with loading(part, files.base / part):
            parts[part] = CLIPTokenizer.from_pretrained(files.base / part, local_files_only=True)
    return parts


def _loading_options(files: ModelFiles, folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    """Of `from_pretrained`: a part that lacks the variant is read without it, as diffusers'
    pipelines do."""
    variant = files.variant if any(folder.glob(f"*.{files.variant}*")) else None
    return {"dtype": dtype, "variant": variant, "use_safetensors": True, "local_files_only": True}


def _not_a_number(dtype: torch.dtype) -> str:
    wider = {torch.float16: "try --dtype bf16 or --dtype fp32", torch.bfloat16: "try --dtype fp32"}
    none_is = "no precision is wider: use another model or LoRA, or a smaller scale or --cfg"
    return f"the result is not a number in {name_dtype(dtype)}: {wider.get(dtype, none_is)}"


def scaled(value: Any, scale: float) -> Any:
    """`STYLE_BLOCK`, or a part of it, times `scale`."""
    if isinstance(value, dict):
        return {k: scaled(v, scale) for k, v in value.items()}
    return [v * scale for v in value] if isinstance(value, list) else value * scale


def add_motion(unet: UNet2DConditionModel, motion: MotionFiles) -> UNetMotionModel:
    """The UNet with the adapter's temporal layers between its own; denoises (B, 4, F, h, w)."""
    with loading(f"--motion {motion.name}", motion.weights), torch.device("meta"):
        adapter = MotionAdapter.from_config(motion.config)
    shapes = read_header(motion.weights)[0]
    check_motion(motion.name, from_hotshot(shapes) if motion.hotshot else shapes, adapter)
    weights = load_file(motion.weights)
    adapter.load_state_dict(from_hotshot(weights) if motion.hotshot else weights, assign=True)
    return join_motion(unet, adapter)


def join_motion(unet: UNet2DConditionModel, adapter: MotionAdapter) -> UNetMotionModel:
    """The UNet with the adapter's layers, in the UNet's dtype."""
    moving = UNetMotionModel.from_unet2d(unet, adapter)
    # from_unet2d leaves it random
    moving.add_embedding.load_state_dict(unet.add_embedding.state_dict())
    return moving.to(unet.dtype).eval()


def name_dtype(dtype: torch.dtype) -> str:
    return {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}[dtype]
