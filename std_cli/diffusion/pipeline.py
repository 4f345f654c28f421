"""diffusers' pipeline with all that std adds to it, built once; and pictures, one after the other.

The work itself is diffusers' `StableDiffusionXLImg2ImgPipeline`, so that a run equals the published
snippet. This module decides which weights go where, keeps embeddings between pictures, and sets the
exact timesteps. `video_pipeline` builds on it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    MotionAdapter,
    SchedulerMixin,
    StableDiffusionXLImg2ImgPipeline,
    TCDScheduler,
    UNet2DConditionModel,
    UNetMotionModel,
)
from diffusers.hooks import apply_layerwise_casting
from PIL import Image
from torch import Tensor
from transformers import CLIPTokenizer

from std_cli.config import ImageSettings, Offload
from std_cli.diffusion import vae as own_vae
from std_cli.diffusion.compiled import compile_networks
from std_cli.diffusion.devices import has_arithmetic, name_dtype
from std_cli.diffusion.out_of_memory import OUT_OF_MEMORY, Savings, check_offload, enable_offload
from std_cli.diffusion.streams import Streams
from std_cli.environment import LOADING
from std_cli.errors import StdError, printable
from std_cli.media.palette import Levels
from std_cli.schedule import Schedule, spread_num_inference_steps, timesteps
from std_cli.weights.files import read_header
from std_cli.weights.fit import check_ip_adapter, check_motion
from std_cli.weights.loading import loading
from std_cli.weights.lora import LoraFile, check_lora, fuse_lora, read_lora
from std_cli.weights.motion import MotionFiles, from_hotshot
from std_cli.weights.networks import read_ip_adapter, read_motion, read_network
from std_cli.weights.resolve import ModelFiles
from std_cli.weights.sdxl_files import WEIGHTS
from std_cli.weights.zoo import Method, MethodName, zoo

LAYERS = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.Conv1d, torch.nn.Embedding)
"""Layers that diffusers casts."""
STYLE_BLOCK = {
    "down": 0,
    "mid": 0,
    "up": {"block_0": [0, 1, 0], "block_1": 0},
}  # where SDXL paints style (examples/method.md, The published setting)


class _GivenDDIM(DDIMScheduler):  # type: ignore[misc]  # untyped
    """DDIM that takes the timesteps of a run, as the other schedulers do, of `whole` over all the
    noise."""

    whole = 1

    def set_timesteps(
        self, num_inference_steps: Any = None, device: Any = None, timesteps: Any = None
    ) -> None:
        super().set_timesteps(self.whole, device)  # a step goes 1000 // whole down
        self.timesteps = torch.tensor(timesteps, device=device)


def make_scheduler(method: Method, base: Mapping[str, object]) -> Any:
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
        training: bool = False,
    ) -> None:
        """Load the weights and move them to the device. Raises InputError if they do not fit each
        other.

        training: the networks compute in the precision that was asked for even where a processor
        has no arithmetic in it, as autocast does around them.
        """
        check_offload(offload, device)
        self.device = device
        self.dtype = dtype if training or has_arithmetic(device, dtype) else torch.float32
        """That the networks compute in; the weights are held in the one that was asked for."""
        self.method = zoo().methods[method]
        self._parts = files.base  # for errors
        self.notices: list[str] = []
        self.on_notice: Callable[[str], None] = self.notices.append
        # straight to the GPU; if it is too small, its memory is freed and the savings take over
        in_main = device.type == "mps" or offload != "none"
        place = torch.device("cpu") if in_main else device
        load = partial(self._load, files, lora, motion, dtype, allow_partial)
        with LOADING, loading(f"--model {printable(files.name, 200)}", files.base):
            try:
                pipe = load(place)
            except torch.OutOfMemoryError:
                pipe = None  # and not here: the error holds what was loaded
            self.pipe = pipe = pipe or load(torch.device("cpu"))
        self.savings = Savings(pipe, device, offload, lambda message: self.on_notice(message))
        enable_offload(pipe, offload, device)
        if offload == "none" and pipe.device.type != device.type:
            with self._first_use():
                self.savings.attempt(
                    lambda: pipe.to(device) if self.savings.offload == "none" else None
                )
        if compile:
            compile_networks(pipe, device)
            self.savings.compiled = True
        pipe.set_progress_bar_config(disable=True)
        self.streams = Streams(device)
        self._prompts: dict[tuple[str, str], dict[str, torch.Tensor]] = {}
        self.style: torch.Tensor | None = None
        """What `set_style` encoded, without and with the style: (2, 1, tokens, C) of an IP-Adapter
        plus, (2, 1, C) of a plain one."""

    def _load(
        self,
        files: ModelFiles,
        lora: LoraFile | None,
        motion: MotionFiles | None,
        dtype: torch.dtype,
        allow_partial: bool,
        device: torch.device,
    ) -> StableDiffusionXLImg2ImgPipeline:
        self.notices[:] = files.notices
        pipe = StableDiffusionXLImg2ImgPipeline.from_pretrained(
            files.config or files.base,
            local_files_only=True,
            **_load_parts(files, dtype, device),
        )
        adapter = read_ip_adapter(files, dtype, device)
        if motion is not None:  # before LoRA and IP-Adapter: join_motion takes a plain UNet
            pipe.unet = add_motion(pipe.unet, motion)
        pipe.scheduler = make_scheduler(
            self.method, _overridden(pipe.scheduler.config, files.scheduler)
        )
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
        with _remembering_processors(pipe.unet):
            pipe.load_ip_adapter(adapter, subfolder="", weight_name="", image_encoder_folder=None)
        if self.device.type == "cuda":
            pipe.unet.to(memory_format=torch.channels_last)
            pipe.vae.to(memory_format=torch.channels_last)
        if self.dtype != dtype:
            self.notices.append(
                f"this processor has no arithmetic in {name_dtype(dtype)}: the weights are held in "
                f"it, and each layer works in {name_dtype(self.dtype)}"
            )
            for network in (pipe.unet, pipe.vae):
                compute_in(network, self.dtype)
        elif dtype == torch.float16:
            self._choose_precision(pipe.vae)
        return pipe

    def _choose_precision(self, vae: Any) -> None:
        """Of the VAE in a run in fp16, by what its weights allow."""
        with self._first_use():
            chosen = own_vae.choose_precision(vae, self.device)
        if chosen != torch.float16:
            self.notices.append(
                f"the VAE works in {name_dtype(chosen)}: in fp16 its weights can lead to numbers "
                "that fp16 does not hold"
            )

    def _first_use(self) -> AbstractContextManager[None]:
        """Around the first use of a part: what its library raises there is due to its files."""
        return loading("the model", self._parts, "does not run with the configs and weights in")

    def choose_timesteps(
        self, scheduler: SchedulerMixin, settings: ImageSettings, schedule: Schedule
    ) -> list[int]:
        """The timesteps of a run, which `scheduler`, one of diffusers', is to be given."""
        if isinstance(scheduler, _GivenDDIM):
            scheduler.whole = spread_num_inference_steps(settings.steps, settings.eta)
        return timesteps(settings.steps, settings.eta, schedule, self.method.grid)

    @property
    def gamma(self) -> dict[str, float]:
        """Arguments of the scheduler's step for the method's stochasticity."""
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

        def embed(reference: Image.Image) -> Tensor:
            self._return_encoders()
            embeds: list[Tensor] = self.pipe.prepare_ip_adapter_image_embeds(
                reference, None, self.device, 1, do_classifier_free_guidance=True
            )
            return embeds[0]

        with torch.inference_mode(), self._first_use():
            each = [self.savings.attempt(partial(embed, r)) for r in references]
            self.style = (
                torch.stack([e * w for e, w in zip(each, weights, strict=True)]).sum(0)
                if len(each) > 1
                else each[0]
            )

    @property
    def _encoders(self) -> tuple[Any, ...]:
        """Of prompts and references."""
        return self.pipe.text_encoder, self.pipe.text_encoder_2, self.pipe.image_encoder

    def _return_encoders(self) -> None:
        """To the device, if a video before has left its memory to the frames."""
        if self.device.type == "cuda" and self.savings.offload == "none":
            with torch.inference_mode(False):  # the weights stay ordinary tensors
                for encoder in self._encoders:
                    encoder.to(self.device)

    def encode_prompt(self, prompt: str, negative: str) -> dict[str, torch.Tensor]:
        """The four embeddings of a prompt and its negative, by their names. They are kept."""
        key = (prompt, negative)

        def encode() -> tuple[Tensor, ...]:
            self._return_encoders()
            embeds: tuple[Tensor, ...] = self.pipe.encode_prompt(
                prompt,
                device=self.device,
                do_classifier_free_guidance=True,
                negative_prompt=negative,
            )
            return embeds

        if key not in self._prompts:
            with torch.inference_mode(), self._first_use():
                values = self.savings.attempt(encode)
            names = (
                "prompt_embeds",
                "negative_prompt_embeds",
                "pooled_prompt_embeds",
                "negative_pooled_prompt_embeds",
            )
            self._prompts[key] = dict(zip(names, values, strict=True))
        return self._prompts[key]


class ImagePipeline(Pipeline):
    """Stylizes one picture after the other, as published."""

    def stylize(
        self,
        image: Image.Image,
        s: ImageSettings,
        schedule: Schedule,
        on_step: Callable[[int], None],
    ) -> Levels:
        """Stylize one RGB picture whose sides are multiples of 8; `on_step` gets the number of
        steps done.

        Raises StdError when memory runs out or the result is not finite.
        """
        style = self.style if s.cfg > 1 or self.style is None else self.style.chunk(2)[1]

        step = 0

        def step_done(pipe: Any, index: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            nonlocal step
            step = index + 1
            on_step(step)
            return {}

        prompt = self.encode_prompt(s.prompt, s.negative_prompt)
        pipe, side = self.pipe, max(image.size)
        generator = torch.Generator("cpu")
        pixels = pipe.image_processor.preprocess(image).to(self.device)

        def encode() -> torch.Tensor:
            generator.manual_seed(s.seed)
            return own_vae.sample(pipe.vae, pixels, self.dtype, generator)

        def denoise() -> torch.Tensor:
            nonlocal step
            step = 0
            generator.set_state(drawn)
            latents: torch.Tensor = pipe(
                image=latent,  # of 4 channels: it is not encoded again
                ip_adapter_image_embeds=[style],
                guidance_scale=s.cfg,
                callback_on_step_end=step_done,
                generator=generator,
                timesteps=self.choose_timesteps(pipe.scheduler, s, schedule),
                **self.gamma,
                # img2img would cut the timesteps by it: they are the whole run already
                strength=1.0,
                output_type="latent",
                **prompt,
            ).images
            return latents

        with torch.inference_mode():
            latent = self.savings.attempt(encode, lambda: side)
            drawn = generator.get_state()
            with _fewer_evaluations(pipe.unet, s, lambda: step):
                denoised = self.savings.attempt(denoise)
            decoded = self.savings.attempt(lambda: own_vae.decode(pipe.vae, denoised), lambda: side)
            pipe.maybe_free_model_hooks()
        # 0 to 1
        shares: Levels = pipe.image_processor.postprocess(decoded, output_type="np")[0]
        if not np.isfinite(shares).all():
            raise StdError(not_a_number(self.dtype))
        return shares * 255


@contextmanager
def _fewer_evaluations(unet: Any, s: ImageSettings, step: Callable[[], int]) -> Iterator[None]:
    """Inside, the UNet evaluates the conditional half of diffusers' batches alone in the steps that
    do not predict without the conditions. `step`: the number of the step at work.

    For the other half it returns what guidance then reuses, or, where the step is not guided, the
    conditional half again: guidance adds `cfg` times 0.
    """
    kept: Tensor | None = None

    def whole() -> bool:
        return step() in s.unconditional_steps

    def half(values: Any) -> Any:
        if isinstance(values, list):
            return [half(each) for each in values]
        return values.chunk(2)[1]

    def before(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if whole():
            return None
        added = {name: half(values) for name, values in kwargs["added_cond_kwargs"].items()}
        states = half(kwargs["encoder_hidden_states"])
        fewer = {"encoder_hidden_states": states, "added_cond_kwargs": added}
        return (half(args[0]), *args[1:]), kwargs | fewer

    def after(module: Any, args: Any, output: Any) -> Any:
        nonlocal kept
        if whole():
            kept = output[0].chunk(2)[0]
            return None
        conditional: Tensor = output[0]
        other = kept if kept is not None and step() < s.guided_steps else conditional
        return (torch.cat([other, conditional]),)

    if s.cfg <= 1:
        yield
        return
    hooks = [
        unet.register_forward_pre_hook(before, with_kwargs=True),
        unet.register_forward_hook(after),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class oom_is_one_line:
    """Turns CUDA's out-of-memory error into one line."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, torch.OutOfMemoryError):
            raise StdError(OUT_OF_MEMORY) from error


def _load_parts(files: ModelFiles, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """The networks and tokenizers of a model, by the classes that std runs, whatever its files
    name."""
    folder = files.config or files.base
    parts: dict[str, Any] = {}
    for part in ("image_encoder", *WEIGHTS):
        place = files.image_encoder if part == "image_encoder" else folder / part
        with loading(part, files.base if files.single_file else place):
            parts[part] = read_network(part, files, dtype, device)
    for part in ("tokenizer", "tokenizer_2"):
        with loading(part, folder / part):
            parts[part] = CLIPTokenizer.from_pretrained(folder / part, local_files_only=True)
    return parts


@contextmanager
def _remembering_processors(unet: Any) -> Iterator[None]:
    """Inside, a UNet knows its attention processors.

    diffusers' loader of IP-Adapters asks for all of them at each, which takes 1.2 s for SDXL.
    """
    kind, known = type(unet), unet.attn_processors
    unet.__class__ = type(kind.__name__, (kind,), {"attn_processors": property(lambda _: known)})
    try:
        yield
    finally:
        unet.__class__ = kind


def compute_in(network: torch.nn.Module, dtype: torch.dtype) -> None:
    """Let a network's layers work in `dtype`, one after the other, while the weights of the large
    ones stay in the dtype that they are in (diffusers' layerwise casting).

    Its inputs are cast, too: diffusers' pipeline makes latents in the text encoder's dtype.
    """
    for module in network.modules():
        if isinstance(module, LAYERS):
            apply_layerwise_casting(module, module.weight.dtype, dtype, None)
        else:  # norms, and what is no layer: small
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                tensor.data = _cast(tensor.data, dtype)
    network.register_forward_pre_hook(
        lambda _, args, kwargs: (_cast(args, dtype), _cast(kwargs, dtype)), with_kwargs=True
    )


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """The floating-point tensors in it in `dtype`, all else as it is."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: _cast(each, dtype) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_cast(each, dtype) for each in value)
    return value


def not_a_number(dtype: torch.dtype) -> str:
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
    adapter.load_state_dict(read_motion(motion, unet.dtype, unet.device), assign=True)
    return join_motion(unet, adapter)


def join_motion(unet: UNet2DConditionModel, adapter: MotionAdapter) -> UNetMotionModel:
    """The UNet with the adapter's layers, in the UNet's dtype.

    It is made of the tensors of both, none of which is copied but for its dtype: leave the two
    alone afterwards.
    """
    # its own way, from_unet2d, would hold the UNet twice, once in fp32, and leaves add_embedding
    # random
    with torch.device("meta"):
        moving = UNetMotionModel.from_unet2d(unet, adapter, load_weights=False)
    dtype = unet.dtype  # once: diffusers looks through all modules for it
    layers = {key: tensor.to(dtype) for key, tensor in adapter.state_dict().items()}
    moving.load_state_dict(unet.state_dict() | layers, assign=True)
    return moving.eval()
