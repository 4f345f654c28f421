"""From a run's configuration to its trainer: the weights are named and checked, then loaded."""

import math
from dataclasses import dataclass, replace

import torch
from torch import nn

from std_cli.diffusion.devices import choose_device, choose_dtype
from std_cli.diffusion.pipeline import STYLE_BLOCK, Pipeline, scaled
from std_cli.distill.bank import Bank
from std_cli.distill.caption_cache import CaptionCache
from std_cli.distill.conditioner import Conditioner
from std_cli.distill.config import DistillConfig, OptimizerSection
from std_cli.distill.dataset import Dataset
from std_cli.distill.discriminator import Discriminator
from std_cli.distill.judge import Judge
from std_cli.distill.roles import Roles
from std_cli.distill.solver import Solver
from std_cli.distill.spatial_head import HeadPair
from std_cli.distill.text_condition import TextCondition, load_text_condition
from std_cli.distill.trainer import Lane, Trainer
from std_cli.distill.training_run import TrainingRun
from std_cli.errors import InputError
from std_cli.paths import user_path
from std_cli.weights.dino import Dino, load_dino, tiny_dino
from std_cli.weights.fingerprints import fingerprint
from std_cli.weights.motion import MotionFiles, resolve_motion
from std_cli.weights.parts import check_model
from std_cli.weights.resolve import ModelFiles, blind_at_the_end, resolve_features, resolve_model


@dataclass(frozen=True)
class Parts:
    """The weights that a run needs: files that were checked, and the small networks, loaded."""

    model: ModelFiles
    motion: MotionFiles | None
    features: Dino | None
    """The feature network of the discriminator; None without an adversarial loss."""
    text: TextCondition | None
    """The discriminator's text tower; None where it gets SDXL's pooled embedding."""
    fingerprints: dict[str, str]
    """{key of the configuration: what identifies the weights that it names}."""


def find_parts(config: DistillConfig) -> Parts:
    """Find all weights of a configuration. Raises InputError for those that are missing, damaged,
    or do not suit the configuration, before anything is written or a big network is loaded."""
    model = resolve_model(config.model.name)
    motion = resolve_motion(config.model.motion, model) if config.run.task == "v2v" else None
    if config.run.task == "v2v" and motion is None:
        raise InputError(
            f"model.motion {config.model.motion}: {model.name} has no motion adapter, and task v2v "
            f"needs one: name a folder of one made for this model"
        )
    check_model(model, motion)
    _check_start(config, model)
    if motion is not None:
        _check_frames(config, motion)
    _check_optimizer(config.optimizer)
    adversarial = config.adversarial
    features = text = None
    if adversarial.weight and adversarial.features != "none":
        features = _load_features(adversarial.features)
        if adversarial.text != "pooled":
            text = load_text_condition(user_path(adversarial.text, "adversarial.text"))
    return Parts(model, motion, features, text, _fingerprints(config, model, motion))


def build(run: TrainingRun, parts: Parts) -> Trainer:
    """Load the model and make all that training needs. The run's folder must be there, as the
    captions' embeddings are written to it.

    The networks' first values follow from the seed: they are drawn from torch's global random
    state in the order student, spatial head, discriminator.
    """
    config = run.config
    world = run.world
    device = choose_device(config.model.device) if world.num_processes == 1 else world.device
    run.on_event({"event": "progress", "stage": "load", "model": parts.model.name})
    conditioner = _load_conditioner(run, parts, device)
    pipe = conditioner.pipe
    captions = CaptionCache(
        [entry.caption for entry in run.found.entries],
        conditioner.encode_text,
        run.folder,
        parts.fingerprints["model.name"],
        config.data.text_cache * 2**30,
    )
    if captions.cached:
        for encoder in (pipe.text_encoder, pipe.text_encoder_2):
            encoder.to("cpu")
    torch.manual_seed(config.run.seed)
    roles = _make_roles(config, pipe.unet)
    head = None
    if config.distill.head != "raw":
        head = HeadPair(config.distill.head == "hlearn", device)
    learning = [*roles.parameters.values(), *(head.student.parameters() if head else ())]
    lr = config.optimizer.lr * run.lr_scale
    optimizer = make_optimizer(config.optimizer, learning, lr, device)
    judge = _make_judge(run, parts, captions.shapes["pooled"].numel(), device)
    solver = Solver(
        pipe.scheduler.alphas_cumprod, config.distill.points, pipe.scheduler.config.prediction_type
    )
    return Trainer(
        run=run,
        data=_make_dataset(run),
        captions=captions,
        conditioner=conditioner,
        roles=roles,
        solver=solver,
        head=head,
        judge=judge,
        optimizer=optimizer,
        scaler=_make_scaler(conditioner.pipeline.dtype, device),
        lanes=_make_lanes(run, solver),
        weights=parts.fingerprints,
        model_name=parts.model.name,
    )


# --- checks ------------------------------------------------------------------------------------


def _check_start(config: DistillConfig, model: ModelFiles) -> None:
    """Raises InputError where training would begin at a timestep at which the model predicts
    nothing."""
    distill = config.distill
    # as Solver.start has it; the last point of the grid, N - 1, is timestep 999
    start = math.ceil(round(distill.points * distill.eta, 9))
    if blind_at_the_end(model) and start >= distill.points - 1:
        raise InputError(
            f"distill.eta {distill.eta:g}: training begins at the last timestep, where model.name "
            f"{config.model.name} predicts nothing (its scheduler_config.json says epsilon and "
            "rescale_betas_zero_snr): use 0.95"
        )


def _check_frames(config: DistillConfig, motion: MotionFiles) -> None:
    """Raises InputError for clips with more frames than the motion adapter has positions for."""
    most = int(motion.config.get("motion_max_seq_length", 32))  # 32 is diffusers' default
    if config.data.frames > most:
        raise InputError(
            f"data.frames {config.data.frames}: the motion adapter {motion.name} takes at most "
            f"{most}: lower it"
        )


def _check_optimizer(section: OptimizerSection) -> None:
    """Raises InputError where the optimizer's library is not installed."""
    if section.name == "adamw8bit":
        try:
            import bitsandbytes  # noqa: F401
        except ImportError:
            raise InputError(
                "optimizer.name adamw8bit: needs bitsandbytes: pip install 'std-cli[8bit]', or use "
                "adamw"
            ) from None


def _fingerprints(
    config: DistillConfig, model: ModelFiles, motion: MotionFiles | None
) -> dict[str, str]:
    adversarial = config.adversarial
    found = {"model.name": fingerprint(model.base)}
    if motion is not None:
        found["model.motion"] = fingerprint(motion.weights)
    if adversarial.weight:
        features = adversarial.features
        if features not in ("none", "random"):
            features = fingerprint(resolve_features(features))
        text = adversarial.text
        if text != "pooled":
            text = fingerprint(user_path(text, "adversarial.text"))
        found |= {"adversarial.features": features, "adversarial.text": text}
    return found


# --- the parts of a trainer --------------------------------------------------------------------


def _load_features(name: str) -> Dino:
    return tiny_dino() if name == "random" else load_dino(resolve_features(name))


def _load_conditioner(run: TrainingRun, parts: Parts, device: torch.device) -> Conditioner:
    config = run.config
    pipeline = Pipeline(
        parts.model,
        None,
        device,
        choose_dtype(config.model.dtype, device, training=True),
        motion=parts.motion,
        training=True,
    )
    if config.model.compile:  # the whole UNet, with its backward pass
        pipeline.pipe.unet = torch.compile(pipeline.pipe.unet)
    if run.references:
        scale = config.style.scale
        blocks = scale if config.style.blocks == "all" else scaled(STYLE_BLOCK, scale)
        pipeline.pipe.set_ip_adapter_scale(blocks)
    return Conditioner(
        pipeline,
        unconditional_pooled=config.distill.unconditional_pooled,
        style=bool(run.references),
    )


def _make_dataset(run: TrainingRun) -> Dataset:
    data = run.config.data
    return Dataset(
        replace(run.found, entries=run.samples),
        data.size,
        frames=data.frames,
        stride=data.stride,
        flip=data.flip,
        references=run.references,
    )


def _make_roles(config: DistillConfig, unet: nn.Module) -> Roles:
    lora = config.lora
    roles = Roles(
        unet,
        rank=lora.rank,
        alpha=lora.alpha,
        dropout=lora.dropout,
        targets=lora.targets,
        motion=lora.motion,
        ema=config.distill.ema,
    )
    if config.model.gradient_checkpointing:
        roles.checkpoint_activations()
    return roles


def _make_judge(
    run: TrainingRun, parts: Parts, pooled_width: int, device: torch.device
) -> Judge | None:
    """The discriminator's side; None without features."""
    if parts.features is None:
        return None
    adversarial = run.config.adversarial
    features = parts.features.to(device)
    width = parts.text([""]).shape[1] if parts.text is not None else pooled_width
    network = Discriminator(features.channels, width, len(features.blocks)).to(device).eval()
    lr = adversarial.lr * run.lr_scale
    return Judge(
        features,
        parts.text,
        network,
        make_optimizer(run.config.optimizer, list(network.parameters()), lr, device),
        loss=adversarial.loss,
        penalty=adversarial.gradient_penalty,
        frames=adversarial.frames,
    )


def _make_scaler(dtype: torch.dtype, device: torch.device) -> torch.amp.GradScaler:
    """Half precision alone needs its gradients scaled; disabled it changes nothing."""
    enabled = dtype == torch.float16 and device.type in ("cuda", "cpu")
    return torch.amp.GradScaler(device.type if enabled else "cpu", enabled=enabled)


def _make_lanes(run: TrainingRun, solver: Solver) -> list[Lane]:
    """This process's share of the lanes, each with an empty bank."""
    config = run.config
    accumulation = config.optimizer.accumulation
    first = run.world.process_index * accumulation
    slots = config.bank.length * config.optimizer.batch
    start = solver.start(config.distill.eta)
    return [
        Lane(number, Bank(slots, config.bank.retire_at, start))
        for number in range(first, first + accumulation)
    ]


def make_optimizer(
    section: OptimizerSection, parameters: list[nn.Parameter], lr: float, device: torch.device
) -> torch.optim.Optimizer:
    """AdamW over `parameters`, or its 8-bit form, which `find_parts` found to be installed."""
    if section.name == "adamw":
        return torch.optim.AdamW(
            parameters,
            lr=lr,
            betas=section.betas,
            eps=section.eps,
            weight_decay=section.weight_decay,
            fused=device.type == "cuda",
        )
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(  # type: ignore[no-any-return]
        parameters,
        lr=lr,
        betas=section.betas,
        eps=section.eps,
        weight_decay=section.weight_decay,
    )
