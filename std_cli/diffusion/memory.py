"""How much memory a run needs, before it runs.

Weights are counted from the headers of their files. What a network needs while it works is not a
closed formula but its own code, run on torch's meta device, which has shapes and no numbers: the
bytes of all tensors that live at once are added up, and the most there ever were is the answer, for
any config, size, count of frames and precision. Attention is counted as the fused kernels do it,
which never hold the matrix of weights. Not in it: what a kernel takes for itself while it works
(cuDNN's workspaces), and what the allocator cannot use again; MARGIN stands for both.

Checked against the resident memory of the tiny pack on a CPU (tests/test_plan.py): within 2% for
the UNet and the encoder, 15% for the decoder. For SDXL and on GPUs it is an estimate.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from std_cli.diffusion.devices import torch_dtype
from std_cli.weights.configs.base import read_config
from std_cli.weights.configs.networks import VAE, UNet
from std_cli.weights.files import read_header
from std_cli.weights.loading import loading
from std_cli.weights.motion import MotionFiles
from std_cli.weights.resolve import ModelFiles, weight_files

if TYPE_CHECKING:
    import torch

PROCESS = 2**29
"""Bytes of main memory that Python and the libraries take for themselves, measured."""
MARGIN = 1.1
"""Free memory that a run should have, as a multiple of the estimate."""

SDXL = {
    "unet": 2_567_463_684,
    "vae": 83_653_863,
    "text_encoder": 123_060_480,
    "text_encoder_2": 694_659_840,
    "image_encoder": 632_076_800,
    "ip_adapter": 423_748_864,
    "motion": 236_779_200,
}
"""Parameters of SDXL base 1.0, CLIP ViT-H, IP-Adapter-plus ViT-H and HotShot-XL."""
SDXL_LAYER = 2560 * 1280 * 9
"""Parameters of its UNet's largest layer, a convolution."""
SDXL_UNET: dict[str, Any] = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "layers_per_block": 2,
    "projection_class_embeddings_input_dim": 2816,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "use_linear_projection": True,
}
SDXL_VAE: dict[str, Any] = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "force_upcast": True,
    "layers_per_block": 2,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
"""What of their configs shapes the networks of SDXL base 1.0."""
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}


# --- weights -----------------------------------------------------------------------------------


def count_parameters(files: Iterable[Path], prefix: str = "") -> int:
    """Of safetensors files, by their headers; `prefix`: of the keys that count."""
    total = 0
    for file in files:
        for key, shape in read_header(file)[0].items():
            if key.startswith(prefix):
                total += _product(shape)
    return total


def model_parameters(model: ModelFiles | None, motion: MotionFiles | None = None) -> dict[str, int]:
    """Parameters by part: unet, vae, text_encoder, text_encoder_2, image_encoder, ip_adapter,
    motion if there is one.

    A model that is not downloaded (None) counts as SDXL base, and has no motion in it.
    """
    if model is None:
        counts = {part: count for part, count in SDXL.items() if part != "motion"}
    else:
        counts = {part: count_parameters(*found) for part, found in weight_files(model).items()}
        counts["image_encoder"] = count_parameters([model.image_encoder / "model.safetensors"])
        counts["ip_adapter"] = count_parameters([model.ip_adapter])
    return counts | ({"motion": count_parameters([motion.weights])} if motion else {})


def largest_layer(model: ModelFiles | None) -> int:
    """Parameters of the largest layer of the UNet; SDXL's of a model that is not downloaded."""
    if model is None:
        return SDXL_LAYER
    files, prefix = weight_files(model)["unet"]
    shapes = [item for file in files for item in read_header(file)[0].items()]
    return max(_product(shape) for key, shape in shapes if key.startswith(prefix))


def weight_bytes(
    parameters: Mapping[str, int], dtype: str, vae_in_fp32: bool = False
) -> dict[str, int]:
    """Bytes of the weights by part, in fp32, fp16 or bf16. `vae_in_fp32`: whatever the others are
    in."""
    return {
        part: count * (4 if part == "vae" and vae_in_fp32 else BYTES[dtype])
        for part, count in parameters.items()
    }


def network_configs(model: ModelFiles | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the UNet's config, the VAE's); SDXL's for a model that is not downloaded."""
    if model is None:
        return SDXL_UNET, SDXL_VAE
    folder = model.config or model.base
    _, unet = read_config(UNet, folder / "unet" / "config.json")
    _, vae = read_config(VAE, folder / "vae" / "config.json")
    return unet, vae


# --- activations -------------------------------------------------------------------------------


def activation_bytes(
    unet_config: dict[str, Any],
    vae_config: dict[str, Any],
    size: tuple[int, int],
    *,
    dtype: str,
    motion_config: dict[str, Any] | None = None,
    frames: int = 1,
    guided: bool = True,
    tokens: int = 77,
    vae_in_fp32: bool = False,
) -> dict[str, int]:
    """Bytes that live at once, in addition to the weights: "unet" at one step of one window,
    "vae_encode" and "vae_decode" of one frame. `size` is (width, height) in pixels; windows
    together take "unet" times their number.

    frames: of a window, with a motion adapter. guided: classifier-free guidance, two predictions at
    once. tokens: of the prompt. Source: the networks' own code; see above.
    """
    import torch
    from diffusers import AutoencoderKL, MotionAdapter, UNet2DConditionModel, UNetMotionModel

    kind = torch_dtype(dtype)
    vae_kind = torch.float32 if vae_in_fp32 else kind
    with loading("the UNet or the VAE", Path("its config.json")), torch.device("meta"):
        unet = UNet2DConditionModel.from_config(unet_config)
        if motion_config is not None:
            unet = UNetMotionModel.from_unet2d(unet, MotionAdapter.from_config(motion_config))
        vae = AutoencoderKL.from_config(vae_config)
    unet, vae = _cast(unet, kind), _cast(vae, vae_kind)
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    width, height, batch = size[0] // factor, size[1] // factor, 2 if guided else 1
    count = frames if motion_config is not None else 1
    ids = 6 * unet.config.addition_time_embed_dim

    def empty(*shape: int, dtype: Any = kind) -> torch.Tensor:
        return torch.empty(*shape, dtype=dtype, device="meta")

    latents = empty(batch, 4, *([frames] if motion_config is not None else []), height, width)
    states = empty(batch * count, tokens, unet.config.cross_attention_dim)
    pooled = empty(batch, unet.config.projection_class_embeddings_input_dim - ids)
    added = {"text_embeds": pooled, "time_ids": empty(batch, 6)}
    times = empty(batch, dtype=torch.int64)
    pixels, latent = (
        empty(1, 3, size[1], size[0], dtype=vae_kind),
        empty(1, 4, height, width, dtype=vae_kind),
    )
    return {
        "unet": peak_bytes(lambda: unet(latents, times, states, added_cond_kwargs=added)[0], unet),
        "vae_encode": peak_bytes(lambda: vae.encode(pixels).latent_dist.mode(), vae),
        "vae_decode": peak_bytes(lambda: vae.decode(latent)[0], vae),
    }


def peak_bytes(work: Callable[[], object], module: "torch.nn.Module") -> int:
    """The most bytes of tensors that live at once in `work`, those of `module`'s own weights and
    buffers left out.

    On the meta device this costs neither memory nor time; on another it is counted of the real
    work.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    no_numbers = next(module.parameters()).device.type == "meta"

    class Fused(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if no_numbers and func is torch.nn.functional.scaled_dot_product_attention:
                query, _, value = args  # as diffusers calls it
                return query.new_empty(*query.shape[:-1], value.shape[-1])
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), counting((*module.parameters(), *module.buffers())) as live, Fused():
        work()
    return live.peak


@dataclass
class Live:
    """Bytes of the tensors that are alive, now and at the most; by the part that was at work when
    they were made."""

    now: int = 0
    peak: int = 0
    part: str = ""
    parts: Counter[str] = field(default_factory=Counter)
    parts_at_peak: dict[str, int] = field(default_factory=dict)

    def add(self, size: int, part: str) -> None:
        self.now += size
        self.parts[part] += size
        if self.now > self.peak:
            self.peak, self.parts_at_peak = self.now, dict(self.parts)


@contextmanager
def counting(
    own: "Iterable[torch.Tensor]" = (), held: "Iterable[torch.Tensor]" = ()
) -> Iterator[Live]:
    """Inside, every tensor that an operation makes, forwards or backwards, counts as long as
    anything holds its memory: the graph for the backward pass, too. Views and what is written in
    place are no memory of their own.

    own: tensors that do not count. held: tensors that count from the start, until they are gone.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    left_out = {t.untyped_storage()._cdata for t in own}
    result = _Remembered()
    alive: dict[int, object] = {}
    live = Live()

    def gone(key: int, size: int, part: str) -> None:
        live.add(-size, part)
        del alive[key]

    def count(tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in left_out and key not in alive:
            alive[key] = weakref.finalize(storage, gone, key, size, live.part)
            live.add(size, live.part)

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            out = result(func, args, kwargs or {})
            for tensor in tree_leaves(out):
                if isinstance(tensor, torch.Tensor):
                    count(tensor)
            return out

    list(map(count, held))
    del own, held  # nothing lives because it is counted
    with Counting():  # type: ignore[no-untyped-call]
        yield live


class _Remembered:
    """Computes an operation on the meta device once for each function and shapes. The kernels of
    that device are Python, and SDXL's UNet has the same transformer block 70 times."""

    def __init__(self) -> None:
        self._known: dict[object, tuple[list[Any], Any]] = {}

    def __call__(self, func: Any, args: Any, kwargs: Any) -> Any:
        import torch
        from torch.utils._pytree import tree_flatten, tree_unflatten

        given, form = tree_flatten((args, kwargs))
        inputs = [x for x in given if isinstance(x, torch.Tensor)]
        if not inputs or any(x.device.type != "meta" for x in inputs):
            return func(*args, **kwargs)
        key = func, str(form), *(_layout(x) if isinstance(x, torch.Tensor) else x for x in given)
        if key in self._known:
            layouts, form = self._known[key]
            made = [
                torch.empty_strided(*x[:2], dtype=x[2], device="meta") if x else None
                for x in layouts
            ]
            return tree_unflatten(made, form)
        out = func(*args, **kwargs)
        made, form = tree_flatten(out)
        tensors = [x for x in made if isinstance(x, torch.Tensor)]
        own = {x.untyped_storage()._cdata for x in inputs}
        # a view, and what is written in place, is no new tensor
        fresh = tensors and not any(x.untyped_storage()._cdata in own for x in tensors)
        if fresh and all(x is None or isinstance(x, torch.Tensor) for x in made):
            self._known[key] = [None if x is None else _layout(x) for x in made], form
        return out


def _layout(tensor: Any) -> tuple[Any, ...]:
    return tuple(tensor.shape), tensor.stride(), tensor.dtype


def living(device: str) -> list[Any]:
    """The process's tensors on a type of device, one for each memory."""
    import gc

    import torch

    gc.collect()
    found = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor) and thing.layout == torch.strided:
            storage = thing.untyped_storage()
            if storage.device.type == device:  # a fake tensor's is meta
                found[storage._cdata] = thing
    return list(found.values())


# --- what fits ---------------------------------------------------------------------------------


def offload_parts(
    weights: Mapping[str, int],
    activations: Mapping[str, int],
    *,
    batch: int = 1,
    encoders_leave: bool = False,
    together: bool = False,
    layer: int = 0,
) -> dict[str, dict[str, int]]:
    """{--offload mode: {part: bytes}}: what is on the device when a run takes the most of it, in
    the modes none, model, group and sequential. The parts are those of the weights, layers (those
    that are there in group: the one at work and the next), and at_work.

    encoders_leave: in a video on a GPU the text and image encoders go to main memory once
    prompts and references are encoded. together: in a video on a CPU the UNet and the VAE work at
    the same time. What the encoders need at work is small and left out, as are the layers that are
    on the GPU in sequential. layer: bytes of the largest.
    """
    encoders = {part: weights[part] for part in ("text_encoder", "text_encoder_2", "image_encoder")}
    whole = {part: size for part, size in weights.items() if part not in encoders}
    unet, coder = (
        activations["unet"] * batch,
        [activations["vae_encode"], activations["vae_decode"]],
    )
    work = {"at_work": unet + sum(coder) if together else max(unet, *coder)}

    def most(*moments: dict[str, int]) -> dict[str, int]:
        return max(moments, key=lambda parts: sum(parts.values()))

    return {
        "none": most(dict(weights), whole | work) if encoders_leave else {**weights, **work},
        "model": most(
            whole | {"at_work": unet},  # the VAE stays while the UNet works
            {"vae": weights["vae"], "at_work": max(coder)},
            *({part: size} for part, size in encoders.items()),
        ),
        "group": {"vae": weights["vae"], "layers": 2 * layer, **work},
        "sequential": work,
    }


def loading_bytes(parameters: Mapping[str, int], dtype: str) -> int:
    """The most main memory that loading takes: all weights, each of which is held once."""
    return sum(weight_bytes(parameters, dtype).values())


def _cast(module: Any, dtype: Any) -> Any:
    """As `module.to(dtype)`, without what diffusers says of it."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)
    return module.eval()


def _product(shape: Sequence[int]) -> int:
    total = 1
    for side in shape:
        total *= side
    return total
