"""Whether every part of a model is whole, by the headers of its files, before a weight is loaded.

Each network is made on torch's meta device, which has shapes and no numbers. The tensors that it
has must be in the files, in its shapes and as floating-point numbers. The libraries do not ask for
that: transformers fills what is missing in an encoder with random numbers, so that the same command
gives another picture each time.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from std_cli.errors import InputError, counted
from std_cli.weights.files import FLOATS, file_state, read_object, read_tensor_facts
from std_cli.weights.fit import Shapes, check_ip_adapter, check_motion, first_names
from std_cli.weights.lora import LoraFile, check_lora, read_lora
from std_cli.weights.motion import MotionFiles, from_hotshot
from std_cli.weights.networks import made, make_network, stored_names
from std_cli.weights.resolve import ModelFiles, weight_files
from std_cli.weights.sdxl_files import WEIGHTS, shard_index, single_file_key

if TYPE_CHECKING:
    from torch import nn

Stored = Mapping[str, tuple[list[int], str]]
"""{key: (shape, dtype)} of weight files, dtypes as their headers name them."""

_whole: set[tuple[object, ...]] = set()
"""States of the files of models that were checked."""
_fitting: set[tuple[object, ...]] = set()
"""States of the files of LoRAs and of the networks that they were checked against."""


def _state(model: ModelFiles, motion: MotionFiles | None) -> tuple[object, ...]:
    """What the result of a check follows from: the files by name, size and time."""
    configs = model.config or model.base
    files = [file for each, _ in weight_files(model).values() for file in each]
    files += [configs / part / "config.json" for part in WEIGHTS]
    files += [*model.image_encoder.iterdir(), model.ip_adapter]
    files += [motion.weights] if motion else []
    known = tuple(file_state(file) for file in files if file.exists())
    return (*known, repr(motion.config) if motion else "")


def check_model(model: ModelFiles, motion: MotionFiles | None = None) -> None:
    """Raises InputError unless the files of a model, its IP-Adapter and its motion adapter have
    every tensor.

    Tensors beyond those are left alone, as the libraries do. Takes about 2 s for SDXL, and the
    imports; nothing where the same files were checked before.
    """
    state = _state(model, motion)
    if state in _whole:
        return
    networks = {part: make_network(part, (model.config or model.base) / part) for part in WEIGHTS}
    networks["image_encoder"] = make_network("image_encoder", model.image_encoder)
    problems = []
    for part, (files, _) in weight_files(model).items():
        stored = _stored(model.name, files)
        if model.single_file:
            wanted = _in_one_file(part, networks[part], stored)
        else:
            wanted = _in_a_folder(part, networks[part], stored, len(files) == 1)
        problems += _compare(part, stored, wanted)
    encoder = read_tensor_facts(model.image_encoder / "model.safetensors")[0]
    problems += _compare(
        "image_encoder", encoder, _in_a_folder("image_encoder", networks["image_encoder"], encoder)
    )
    adapter = read_tensor_facts(model.ip_adapter)[0]
    problems += _compare(
        "ip_adapter", adapter, _projection(adapter, networks["image_encoder"].config)
    )
    problems += _not_numbers(
        "ip_adapter", adapter, (key for key in adapter if key.startswith("ip_adapter."))
    )
    _refuse(f"--model {model.name}", problems)
    check_ip_adapter(str(model.ip_adapter), _shapes(adapter), networks["unet"])
    if motion is not None:
        _check_motion(motion)
    _whole.add(state)


def check_adapter(
    model: ModelFiles, motion: MotionFiles | None, lora: LoraFile, allow_partial: bool
) -> None:
    """Raises InputError unless a LoRA's layers are those of the model's UNet, with its motion
    adapter. Takes no time where the same files were checked before."""
    import torch
    from diffusers import MotionAdapter, UNetMotionModel

    folder = (model.config or model.base) / "unet"
    config = file_state(folder / "config.json")
    state = (file_state(lora.path), config, repr(motion.config) if motion else "", allow_partial)
    if state in _fitting:
        return
    unet = make_network("unet", folder)
    if motion is not None:
        with torch.device("meta"):
            unet = UNetMotionModel.from_unet2d(unet, MotionAdapter.from_config(motion.config))
    check_lora(read_lora(lora.path, f"--lora {lora.name}"), unet, allow_partial)
    _fitting.add(state)


def check_one_file(name: str, path: Path, config: Path) -> None:
    """Raises InputError unless a checkpoint in one file has every tensor of every part.

    name: what the message calls it. config: the folder with the configs that it lacks.
    """
    stored = read_tensor_facts(path)[0]
    wanted = {
        part: _in_one_file(part, make_network(part, config / part), stored) for part in WEIGHTS
    }
    _refuse(name, [problem for part in WEIGHTS for problem in _compare(part, stored, wanted[part])])


def _refuse(name: str, problems: list[str]) -> None:
    if problems:
        raise InputError(f"{name}: {'; '.join(problems)}: fetch it again, or use another model")


def _check_motion(motion: MotionFiles) -> None:
    import torch
    from diffusers import MotionAdapter

    stored = read_tensor_facts(motion.weights)[0]
    config = motion.weights.parent / "config.json"
    with torch.device("meta"):
        adapter = made(str(config), lambda: MotionAdapter.from_config(motion.config))
    check_motion(
        motion.name, from_hotshot(_shapes(stored)) if motion.hotshot else _shapes(stored), adapter
    )
    if wrong := _not_numbers("its file", stored, stored):
        raise InputError(f"--motion {motion.name}: {wrong[0]}: fetch it again, or use another")


# --- what a network needs ----------------------------------------------------------------------


def _in_a_folder(part: str, network: "nn.Module", stored: Stored, whole: bool = True) -> Shapes:
    """{key in these files: shape} of what a network needs; `whole`: they are one file, no
    shards."""
    shapes = {key: list(tensor.shape) for key, tensor in network.state_dict().items()}
    names = stored_names(part, shapes, stored, whole)
    return {names[key]: shape for key, shape in shapes.items()}


def _in_one_file(part: str, network: "nn.Module", stored: Stored) -> Shapes:
    """{key: shape} of what a network needs in a checkpoint in one file, which has the names and
    shapes of the original code."""
    wanted = {}
    for key, tensor in network.state_dict().items():
        name, shape = single_file_key(part, key), list(tensor.shape)
        if name.endswith((".in_proj_weight", ".in_proj_bias")):
            shape[0] *= 3  # of queries, keys and values
        elif name.endswith(".text_projection"):
            shape.reverse()
        elif (
            part == "vae"
            and ".attentions." in key
            and len(shape) == 2
            and len(stored.get(name, ([],))[0]) == 4
        ):
            shape += [1, 1]  # a convolution of 1 x 1 in the original
        wanted[name] = shape
    return wanted


def _projection(stored: Stored, encoder: Any) -> Shapes:
    """What an IP-Adapter, plain or plus, needs between the image encoder and the UNet, in the
    file's own widths.

    {} for another kind of adapter, of which nothing is known. Source: h94's files, as diffusers'
    loader reads them.
    """
    if "image_proj.proj.weight" in stored:
        width = (stored.get("image_proj.norm.weight") or ([0], ""))[0][0]
        wanted = {"proj.weight": [4 * width, encoder.projection_dim], "proj.bias": [4 * width]}
        wanted |= {"norm.weight": [width], "norm.bias": [width]}
    elif any(key.startswith(("image_proj.layers.", "image_proj.latents")) for key in stored):
        latents = (stored.get("image_proj.latents") or ([1, 16, 0], ""))[0]
        inside = latents[-1]
        heads = (stored.get("image_proj.layers.0.0.to_q.weight") or ([0], ""))[0][0]
        width = (stored.get("image_proj.norm_out.weight") or ([0], ""))[0][0]
        wanted = {
            "latents": latents,
            "proj_in.weight": [inside, encoder.hidden_size],
            "proj_in.bias": [inside],
        }
        wanted |= {"proj_out.weight": [width, inside], "proj_out.bias": [width]}
        wanted |= {"norm_out.weight": [width], "norm_out.bias": [width]}
        for layer in (f"layers.{i}." for i in range(4)):
            for norm in ("0.norm1", "0.norm2", "1.0"):
                wanted |= {f"{layer}{norm}.weight": [inside], f"{layer}{norm}.bias": [inside]}
            wanted |= {
                f"{layer}0.to_q.weight": [heads, inside],
                f"{layer}0.to_kv.weight": [2 * heads, inside],
            }
            wanted |= {f"{layer}0.to_out.weight": [inside, heads]}
            wanted |= {
                f"{layer}1.1.weight": [4 * inside, inside],
                f"{layer}1.3.weight": [inside, 4 * inside],
            }
    else:
        return {}
    return {f"image_proj.{key}": shape for key, shape in wanted.items()}


# --- what the files have -----------------------------------------------------------------------


def _stored(name: str, files: list[Path]) -> Stored:
    """The tensors of a part's file, or of all the shards that its index names."""
    index = shard_index(files[0])
    if index is not None:
        places = read_object(index).get("weight_map")
        if not isinstance(places, dict) or not all(
            isinstance(file, str) for file in places.values()
        ):
            raise InputError(
                f"{index} has no weight_map that names the file of each tensor: fetch it again"
            )
        named = {index.parent / file for file in places.values()}
        if absent := sorted(path.name for path in named - set(files)):
            part = index.parent.name
            raise InputError(
                f"--model {name}: {part} lacks {first_names(absent)}, named by {index.name}: "
                f"fetch it again"
            )
    return {key: fact for file in files for key, fact in read_tensor_facts(file)[0].items()}


def _shapes(stored: Stored) -> Shapes:
    return {key: shape for key, (shape, _) in stored.items()}


def _compare(part: str, stored: Stored, wanted: Shapes) -> list[str]:
    """What is wrong with a part, for an error; [] if it has all that is wanted."""
    lacks = [key for key in wanted if key not in stored]
    wrong = [
        f"{k}: {stored[k][0]} for {shape}"
        for k, shape in wanted.items()
        if k in stored and stored[k][0] != shape
    ]
    problems = []
    if lacks:
        problems.append(
            f"{part} lacks {len(lacks)} of {counted(len(wanted), 'tensor')} (first {lacks[0]})"
        )
    if wrong:
        problems.append(
            f"{part} has {len(wrong)} of {counted(len(wanted), 'tensor')} in another shape "
            f"(first {wrong[0]})"
        )
    return problems + _not_numbers(part, stored, wanted)


def _not_numbers(part: str, stored: Stored, keys: Iterable[str]) -> list[str]:
    found = [
        f"{key}: {stored[key][1]}" for key in keys if key in stored and stored[key][1] not in FLOATS
    ]
    if not found:
        return []
    return [
        f"{part} has {counted(len(found), 'tensor')} without floating-point numbers (first "
        f"{found[0]})"
    ]
