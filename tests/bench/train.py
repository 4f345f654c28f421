"""The step of `std distill` against a plain port of the reference's, a process each:
`python -m tests.bench.train`.

The port does what METHOD's sections 3 to 6 say of the reference: a second UNet in fp32 as teacher,
its two passes under guidance one after the other, the target network under no gradient, captions
encoded, pictures encoded (again for the real branch, unless --encode-once) in every step, fakes
decoded for the generator and once more for the discriminator, all pictures of a batch at once. Same
weights, shapes, LoRA, losses, discriminator and features on both sides; no style reference.
Printed: seconds per update, wall and CPU time, and peak memory: of the process, and net of what it
was after the imports. Side by side in turns, so that what else the machine does falls on all. The
embedded pack, on a CPU; tests.bench.gpu measures the same sides on a GPU, with SDXL's shapes.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np

from tests.bench.gpu.machine import Peak, synchronize

Changes = dict[str, dict[str, Any]]
SIDES: dict[str, Changes] = {
    "port": {},
    "ours": {},
    "ours, checkpointing": {"model": {"gradient_checkpointing": True}},
}
"""What is compared, with what it changes in the configuration."""


@dataclass(frozen=True)
class Request:
    """What one process measures."""

    side: Literal["port", "ours"]
    changes: Changes
    folder: str
    """With the folder "pictures" of `make_pictures` in it."""
    size: int
    """Of the pictures, pixels."""
    batch: int
    steps: int
    """Updates that are timed, after `warmup` others."""
    warmup: int
    model: str = "tiny"
    device: str = "cpu"
    rank: int = 16
    encode_once: bool = False


class Measured(TypedDict):
    wall: list[float]
    """Seconds of each update."""
    cpu: list[float]
    first: float
    """Seconds of the very first update."""
    base: int
    """Bytes before anything is loaded, 0 on a GPU."""
    peak: int


# --- what both sides share ---------------------------------------------------------------------


def make_config(request: Request, run: str):
    from std_cli.distill.config import make_config

    sections = {
        "run": {"output": f"{run}/run", "max_steps": request.warmup + request.steps},
        "model": {"name": request.model, "device": request.device},
        "data": {
            "sources": [f"{request.folder}/pictures"],
            "size": [request.size, request.size],
            "workers": 1,
            "held_out": 0,
        },
        "lora": {"rank": request.rank, "alpha": request.rank},
        "distill": {"unconditional_pooled": "caption", "ema": 0.95},
        "adversarial": {"features": "random", "mode": "xs-xr"},
        "optimizer": {
            "batch": request.batch,
            "accumulation": 1,
            "scale_lr": False,
            "warmup_steps": 1,
        },
    }
    return make_config(
        {name: values | request.changes.get(name, {}) for name, values in sections.items()}
    )


def make_pictures(folder, side):
    from PIL import Image

    folder.mkdir()
    rows = []
    for i in range(16):
        small = np.random.default_rng(i).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC).save(
            folder / f"{i}.png"
        )
        rows.append(json.dumps({"file_name": f"{i}.png", "text": f"picture number {i}"}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))


# --- ours --------------------------------------------------------------------------------------


def ours(config):
    from accelerate import PartialState

    from std_cli.distill.build import build, find_parts
    from std_cli.distill.training_run import plan_run

    run = plan_run(config, PartialState(cpu=config.model.device == "cpu"))
    run.folder.mkdir()
    trainer = build(run, find_parts(config))

    def update(step, batch):
        return trainer.update(step, [trainer.train_lane(step, trainer.lanes[0], batch)])

    return trainer.data, update


# --- the port ----------------------------------------------------------------------------------


def port(config, encode_once):
    import torch
    from diffusers import UNet2DConditionModel
    from peft import LoraConfig

    from std_cli.diffusion.devices import choose_device
    from std_cli.diffusion.pipeline import Pipeline
    from std_cli.distill.augment import augment, prepare
    from std_cli.distill.dataset import Dataset
    from std_cli.distill.discriminator import (
        Discriminator,
        discriminator_loss,
        generator_loss,
        gradient_penalty,
    )
    from std_cli.distill.find_samples import find_samples
    from std_cli.distill.solver import Solver
    from std_cli.weights.dino import tiny_dino
    from std_cli.weights.resolve import resolve_model

    device = choose_device(config.model.device)
    files = resolve_model(config.model.name)
    pipe = Pipeline(files, None, device, torch.float32).pipe
    pipe.unload_ip_adapter()
    unet, vae = pipe.unet.requires_grad_(False), pipe.vae.requires_grad_(False)
    teacher = UNet2DConditionModel.from_pretrained(
        files.base / "unet", dtype=torch.float32, use_safetensors=True
    )
    teacher.to(device).requires_grad_(False)
    lora = config.lora
    unet.add_adapter(
        LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.targets))
    )
    learning = [p for p in unet.parameters() if p.requires_grad]
    features = tiny_dino().to(device)
    width = pipe.text_encoder_2.config.projection_dim
    judge = Discriminator(features.channels, width, len(features.blocks)).to(device).eval()
    o, a, d = config.optimizer, config.adversarial, config.distill
    optimizers = torch.optim.AdamW(learning, o.lr), torch.optim.AdamW(judge.parameters(), a.lr)
    solver = Solver(pipe.scheduler.alphas_cumprod, d.points, pipe.scheduler.config.prediction_type)
    n_eta, reach = solver.start(d.eta), solver.reach(d.eta, d.range_rate)
    found = find_samples([Path(s) for s in config.data.sources])
    data = Dataset(found, config.data.size, frames=1, stride=1, flip=0.5)
    random = torch.Generator().manual_seed(0)
    bank = []
    half = device.type == "cuda"

    def encode(pixels):
        with torch.no_grad():
            return vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor

    def decode(z):
        return vae.decode(z / vae.config.scaling_factor, return_dict=False)[0].float()

    def see(pixels):
        return features(prepare(augment(pixels, random), features.size, random))

    def predict(network, x, n, states, added):
        out = network(
            x, solver.timestep(n).to(device), states, added_cond_kwargs=added, return_dict=False
        )[0]
        return solver.split(out.float(), x, n)

    def run(step, batch):
        with torch.autocast(device.type, torch.float16, enabled=half):
            losses = generator_and_judge(batch)
        del losses
        for optimizer, parameters in zip(
            optimizers, (learning, list(judge.parameters())), strict=True
        ):
            torch.nn.utils.clip_grad_norm_(parameters, o.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        judge.iterate()

    def generator_and_judge(batch):
        with torch.no_grad():
            states, _, pooled, _ = pipe.encode_prompt(
                batch.captions, device=device, do_classifier_free_guidance=False
            )
            empty = pipe.encode_prompt(
                [""] * len(batch.captions), device=device, do_classifier_free_guidance=False
            )[0]
        pixels = batch.pixels[:, 0].to(device)
        x0 = encode(pixels)
        ids = torch.tensor(
            [
                [*s, *c, *config.data.size]
                for s, c in zip(batch.original_size, batch.crop, strict=True)
            ]
        )
        added = {"text_embeds": pooled, "time_ids": ids.float().to(device)}
        noise = torch.randn(x0.shape, generator=random).to(device)
        slot = None
        if bank and torch.rand((), generator=random) < config.bank.rate:
            slot = int(torch.randint(len(bank), (), generator=random))
            x, n = bank[slot]
        else:
            n = torch.full((len(x0),), n_eta)
            x = solver.add_noise(x0, noise, solver.timestep(n))
        s = (n - 1 - torch.randint(reach, (), generator=random)).clamp_min(0)

        student_x0, student_eps = predict(unet, x, n, states, added)
        x_s = solver.move(student_x0, student_eps, s)
        with torch.no_grad():
            c_x0, c_eps = predict(teacher, x, n, states, added)
            u_x0, u_eps = predict(teacher, x, n, empty, added)
            w = d.w_min + (d.w_max - d.w_min) * torch.rand((), generator=random).item()
            x_prev = solver.move(c_x0 + w * (c_x0 - u_x0), c_eps + w * (c_eps - u_eps), n)
            goal = solver.move(*predict(unet, x_prev, n - 1, states, added), s)
        if slot is None and len(bank) < config.bank.length:
            bank.append((x_prev, n - 1))
        elif slot is not None:
            bank[slot] = x_prev, n - 1
            if int(n[0]) - 1 <= 1:
                del bank[slot]
        difference = x_s - goal
        loss = ((difference.square() + d.huber_c**2).sqrt() - d.huber_c).mean()

        text = pooled.float()
        judge.requires_grad_(False)
        (loss + a.weight * generator_loss(judge(see(decode(x_s)), text), a.loss)).backward()
        judge.requires_grad_(True)
        with torch.no_grad():
            real_x0 = x0 if encode_once else encode(pixels)
            r = (torch.rand(len(s), generator=random) * solver.level(s)).long()
            real = see(decode(solver.add_noise(real_x0, noise, r)))
            fake = see(decode(x_s.detach()))
        u = torch.rand(len(x0), generator=random).to(device)
        penalty = gradient_penalty(judge, real, fake, text, u)
        judged = discriminator_loss(judge(real, text), judge(fake, text), a.loss)
        (judged + a.gradient_penalty * penalty).backward()
        return loss.item(), judged.item()

    return data, run


# --- measure -----------------------------------------------------------------------------------


def measure(request: Request) -> Measured:
    import torch
    from diffusers import StableDiffusionXLImg2ImgPipeline, UNet2DConditionModel  # noqa: F401  imports are the base

    import std_cli.distill.train  # noqa: F401
    from std_cli.distill.loader import Loader

    device = torch.device(request.device)
    wall, cpu = [], []
    with tempfile.TemporaryDirectory(dir=request.folder) as run, Peak(device) as peak:
        config = make_config(request, run)
        data, step = port(config, request.encode_once) if request.side == "port" else ours(config)
        how = {
            "lanes": [0],
            "lane_count": 1,
            "batch": request.batch,
            "start_step": 0,
            "seed": 0,
            "workers": 1,
        }
        with Loader(data, **how) as loader:
            for i in range(request.warmup + request.steps):
                batch = next(loader)
                synchronize(device)
                begin = time.perf_counter(), time.process_time()
                step(i, batch)
                synchronize(device)
                wall.append(time.perf_counter() - begin[0])
                cpu.append(time.process_time() - begin[1])
    return {
        "wall": wall[request.warmup :],
        "cpu": cpu[request.warmup :],
        "first": wall[0],
        "base": peak.base,
        "peak": peak.most,
    }


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--one", metavar="REQUEST", help=argparse.SUPPRESS)
    p.add_argument("--size", type=int, default=128)
    p.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    p.add_argument("--rank", type=int, default=16)
    p.add_argument("--steps", type=int, default=20)
    p.add_argument("--warmup", type=int, default=3)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--encode-once", action="store_true")
    a = p.parse_args()
    if a.one:
        import torch

        torch.set_num_threads(a.threads)
        return print(json.dumps(measure(Request(**json.loads(a.one)))))
    with tempfile.TemporaryDirectory() as folder:
        make_pictures(Path(folder) / "pictures", a.size)
        for batch in a.batch:
            compare(a, folder, batch)


def compare(a, folder, batch):
    found = {side: [] for side in SIDES}
    for i in range(a.rounds):
        for side in list(SIDES)[:: 1 if i % 2 else -1]:
            request = Request(
                side="port" if side == "port" else "ours",
                changes=SIDES[side],
                folder=folder,
                size=a.size,
                batch=batch,
                steps=a.steps,
                warmup=a.warmup,
                rank=a.rank,
                encode_once=a.encode_once,
            )
            command = [sys.executable, "-W", "ignore", "-m", "tests.bench.train"]
            command += ["--threads", str(a.threads), "--one", json.dumps(asdict(request))]
            out = subprocess.run(command, capture_output=True, text=True)
            if out.returncode:
                sys.exit(out.stderr)
            found[side].append(json.loads(out.stdout.splitlines()[-1]))
    print(
        f"{a.size} x {a.size}, batch {batch}, rank {a.rank}, {a.rounds} rounds of {a.steps} updates"
    )
    print(f"{'':22}{'wall s':>9}{'CPU s':>9}{'imports MiB':>13}{'peak MiB':>10}{'net MiB':>9}")
    rows = {}
    for side, runs in found.items():
        wall, cpu = (float(np.mean([s for r in runs for s in r[key]])) for key in ("wall", "cpu"))
        base, peak = (float(np.median([r[key] for r in runs])) / 2**20 for key in ("base", "peak"))
        rows[side] = wall, cpu, peak, peak - base
        print(
            f"{side:22}{wall:9.3f}{cpu:9.3f}{base:13.0f}{peak:10.0f}{peak - base:9.0f}", flush=True
        )
    for side in list(SIDES)[1:]:
        faster = [rows["port"][i] / rows[side][i] for i in (0, 1)]
        memory = [rows[side][i] / rows["port"][i] for i in (2, 3)]
        print(
            f"{side}: {faster[0]:.2f} x the updates per second ({faster[1]:.2f} by CPU time), "
            f"{memory[0]:.2f} x the memory ({memory[1]:.2f} net of the imports)"
        )


if __name__ == "__main__":
    main()
