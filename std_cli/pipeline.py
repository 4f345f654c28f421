"""Every inference call to diffusers: build the pipeline once, then stylize picture after picture.

The work itself is diffusers' `StableDiffusionXLImg2ImgPipeline`, so that a run equals the published snippet;
what is ours is what surrounds it: which weights go where, embeddings kept between pictures, the exact timesteps.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import StableDiffusionXLImg2ImgPipeline, TCDScheduler
from PIL import Image
from transformers import CLIPVisionModelWithProjection

from std_cli.config import ImageSettings, Offload
from std_cli.errors import InputError, StdError
from std_cli.lora import check_lora, read_lora
from std_cli.schedule import Schedule, timesteps
from std_cli.weights import LoraFile, ModelFiles

STYLE_BLOCK = {
    "down": 0,
    "mid": 0,
    "up": {"block_0": [0, 1, 0], "block_1": 0},
}  # where SDXL paints style (METHOD section 2)


def choose_device(name: str) -> torch.device:
    """The torch device of `auto`, `cuda`, `cuda:N`, `mps` or `cpu`. Raises InputError if this machine has none."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, index = name.partition(":")
    count = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}[kind]
    if count <= int(index or 0):
        raise InputError(
            f"--device {name}: this machine has {count or 'no'} {kind} device{'s'[: count != 1]}: use --device auto"
        )
    return torch.device(name)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """fp16 on a GPU, as published, and fp32 on a CPU, unless the user chose."""
    if name == "auto":
        name = "fp32" if device.type == "cpu" else "fp16"
    return {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[name]


class ImagePipeline:
    """SDXL img2img with TCD, a fused STD LoRA and an IP-Adapter."""

    def __init__(
        self,
        files: ModelFiles,
        lora: LoraFile | None,
        device: torch.device,
        dtype: torch.dtype,
        offload: Offload = "none",
        compile: bool = False,
    ) -> None:
        """Load the weights and move them to the device. Raises InputError if they do not fit each other."""
        if offload != "none" and device.type == "cpu":
            raise InputError(f"--offload {offload} moves weights to a GPU, and this runs on the CPU: leave it out")
        self.device, self.dtype = device, dtype
        self.notices: list[str] = []
        try:
            self.pipe = self._load(files, lora, dtype)
        except (OSError, ValueError, RuntimeError, KeyError) as e:
            raise InputError(f"--model {files.name}: its weights cannot be loaded: {_first_line(e)}") from e
        pipe = self.pipe
        if device.type == "cuda":
            pipe.unet.to(memory_format=torch.channels_last)
            pipe.vae.to(memory_format=torch.channels_last)
        if offload == "model":
            pipe.enable_model_cpu_offload(device=device)
        elif offload == "sequential":
            pipe.enable_sequential_cpu_offload(device=device)
        else:
            with oom_is_one_line():
                pipe.to(device)
        if compile:
            pipe.unet = torch.compile(pipe.unet)
        pipe.set_progress_bar_config(disable=True)
        self._prompts: dict[tuple[str, str], dict[str, torch.Tensor]] = {}
        self._style: torch.Tensor | None = None

    def _load(self, files: ModelFiles, lora: LoraFile | None, dtype: torch.dtype) -> StableDiffusionXLImg2ImgPipeline:
        encoder = CLIPVisionModelWithProjection.from_pretrained(files.image_encoder, dtype=dtype, use_safetensors=True)
        if files.single_file:
            pipe = StableDiffusionXLImg2ImgPipeline.from_single_file(
                str(files.base), config=str(files.config), dtype=dtype, image_encoder=encoder, local_files_only=True
            )
        else:
            pipe = StableDiffusionXLImg2ImgPipeline.from_pretrained(
                files.base,
                dtype=dtype,
                variant=files.variant,
                image_encoder=encoder,
                use_safetensors=True,
                local_files_only=True,
            )
        # as published; TCD itself ignores both
        pipe.scheduler = TCDScheduler.from_config(pipe.scheduler.config, timestep_spacing="leading", steps_offset=1)
        if lora is not None:
            weights = read_lora(lora)
            matched, total = check_lora(weights, pipe.unet)
            if matched < total:
                self.notices.append(
                    f"--lora {lora.name}: {matched} of {total} tensors match this UNet, the others are left out"
                )
            pipe.load_lora_into_unet(
                weights.state_dict, weights.network_alphas, pipe.unet, adapter_name="std", _pipeline=pipe
            )
            pipe.fuse_lora(components=["unet"], lora_scale=lora.scale)
            pipe.unload_lora_weights()
        folder = files.ip_adapter.parent
        pipe.load_ip_adapter(
            str(folder.parent),
            subfolder=folder.name,
            weight_name=files.ip_adapter.name,
            image_encoder_folder=None,
            local_files_only=True,
        )
        return pipe

    def set_style(self, references: Sequence[Image.Image], weights: Sequence[float], scale: float, blocks: str) -> None:
        """Encode the references (RGB) and keep the weighted mean of their embeddings, unconditional and styled.

        `weights` sum to 1. The mean is of what the IP-Adapter takes: hidden states (plus) or image embeddings (plain).
        """
        self.pipe.set_ip_adapter_scale(scale if blocks == "all" else _scaled(STYLE_BLOCK, scale))
        with torch.inference_mode():
            each = [
                self.pipe.prepare_ip_adapter_image_embeds(r, None, self.device, 1, do_classifier_free_guidance=True)[0]
                for r in references
            ]
            self._style = (
                torch.stack([e * w for e, w in zip(each, weights, strict=True)]).sum(0) if len(each) > 1 else each[0]
            )

    def _prompt(self, prompt: str, negative: str) -> dict[str, torch.Tensor]:
        key = (prompt, negative)
        if key not in self._prompts:
            with torch.inference_mode():
                values = self.pipe.encode_prompt(
                    prompt, device=self.device, do_classifier_free_guidance=True, negative_prompt=negative
                )
            names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
            self._prompts[key] = dict(zip(names, values, strict=True))
        return self._prompts[key]

    def stylize(
        self, image: Image.Image, s: ImageSettings, schedule: Schedule, on_step: Callable[[int], None]
    ) -> Image.Image:
        """Stylize one RGB picture whose sides are multiples of 8; `on_step` gets the number of steps done.

        Raises StdError when memory runs out or the result is not finite.
        """
        style = self._style if s.cfg > 1 or self._style is None else self._style.chunk(2)[1]

        def step_done(pipe: Any, index: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            on_step(index + 1)
            return {}

        with oom_is_one_line(), warnings.catch_warnings():
            # a picture of NaN is cast to bytes before anyone can look at it
            warnings.filterwarnings("error", "invalid value encountered in cast", RuntimeWarning)
            warnings.filterwarnings("ignore", "`upcast_vae` is deprecated", FutureWarning)  # diffusers calls it itself
            try:
                out = self.pipe(
                    image=image,
                    ip_adapter_image_embeds=[style],
                    guidance_scale=s.cfg,
                    callback_on_step_end=step_done,
                    generator=torch.Generator("cpu").manual_seed(s.seed),
                    timesteps=timesteps(s.steps, s.eta, schedule),
                    strength=1.0,  # img2img would cut the timesteps by it: they are the whole run already
                    **self._prompt(s.prompt, s.negative_prompt),
                )
            except RuntimeWarning:
                raise StdError(
                    f"the result is not a number in {name_dtype(self.dtype)}: try --dtype bf16 or --dtype fp32"
                ) from None
        return out.images[0]  # type: ignore[no-any-return]


class oom_is_one_line:
    """Turns CUDA's out-of-memory error into one line."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, torch.OutOfMemoryError):
            raise StdError(
                "the GPU is out of memory: use a smaller --size, or --offload model, or --offload sequential"
            ) from error


def _scaled(value: Any, scale: float) -> Any:
    if isinstance(value, dict):
        return {k: _scaled(v, scale) for k, v in value.items()}
    return [v * scale for v in value] if isinstance(value, list) else value * scale


def name_dtype(dtype: torch.dtype) -> str:
    return {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}[dtype]


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
