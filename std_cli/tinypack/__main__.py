"""Train the embedded pack from nothing: `python -m std_cli.tinypack WORK` (needs the `train`
extra).

Stages run in order and each is skipped where its result exists, so the same command resumes:
pictures, VAE, latents, denoiser, the pack folder, temporal layers. What was run for the shipped
weights is in std_cli/packs/tiny/README.md.
"""

import argparse
import logging
import os
import shutil
from pathlib import Path

import torch

from std_cli.tinypack import data, export, vae
from std_cli.tinypack import train_denoiser as train
from std_cli.tinypack import train_motion as motion


def main() -> None:
    p = argparse.ArgumentParser(
        prog="python -m std_cli.tinypack", description="Train the embedded pack."
    )
    p.add_argument("work", type=Path, help="folder for everything that the training makes")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--shards", type=int, default=34, help="of 100 style groups each")
    p.add_argument("--vae-steps", type=int, default=1500)
    p.add_argument("--facts-steps", type=int, default=300)
    p.add_argument("--steps", type=int, default=100_000, help="of the denoiser, at most")
    p.add_argument("--minutes", type=float, default=80, help="for the denoiser, at most")
    p.add_argument(
        "--start", type=Path, help="a pack folder to train on from, such as std_cli/packs/tiny"
    )
    p.add_argument("--rate", type=float, default=1e-3, help="learning rate of the denoiser")
    p.add_argument("--clips", type=int, default=400, help="moving scenes for the temporal layers")
    p.add_argument(
        "--motion-minutes",
        type=float,
        default=20,
        help="for the temporal layers, at most; 0 leaves them out",
    )
    a = p.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_flush_denormal(True)  # 10 x slower steps on a CPU otherwise, once activations die out
    pictures, vae_folder, latents, out = (
        a.work / n for n in ("data", "vae", "latents", "denoiser")
    )
    if len(list(pictures.glob("groups-????.npz"))) < a.shards:
        data.make_shards(pictures, a.seed, a.shards, os.cpu_count() or 1)
    if not vae_folder.exists() and a.start:
        shutil.copytree(a.start / "vae", vae_folder)
    if not vae_folder.exists():
        vae.train(pictures, vae_folder, a.seed, a.vae_steps)
    train.encode(pictures, vae_folder, latents, a.seed)
    out.mkdir(exist_ok=True)
    if not (out / "tokenizer").exists() and a.start:
        shutil.copytree(a.start / "tokenizer", out / "tokenizer")
    if not (out / "average.pt").exists():
        start = export.load_parts(a.start) if a.start else None
        train.train(
            pictures, latents, out, a.seed, a.steps, a.minutes, a.rate, a.facts_steps, start
        )
    export.export(vae_folder, out, a.work / "pack")
    if a.motion_minutes:
        motion.run(a.work, a.work / "pack", seed=a.seed, clips=a.clips, minutes=a.motion_minutes)
        export.add_motion(a.work / "motion_adapter", a.work / "pack")


if __name__ == "__main__":
    main()
