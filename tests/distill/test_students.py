"""What the comparison of students on pictures rests on: its walks against diffusers, its two
trainers, its tables."""

from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from scipy import stats

from std_cli.distill import build
from std_cli.distill.config import load_config
from std_cli.distill.train import distill
from std_cli.distill.trainer import Trainer
from std_cli.media.pictures import read_picture
from std_cli.schedule import timesteps
from tests.bench.students import CONFIG, MixedUp, NoisedData, write_pictures
from tests.bench.students_report import CFGS, STEPS, Found, Line, interval, tables
from tests.bench.students_walk import Model, make_samples, predict
from tests.micro import micro

MODEL = f"model.name='{micro()}'"


@pytest.fixture(scope="module")
def teacher():
    return Model(None, load_config(CONFIG, [MODEL]))


@pytest.fixture(scope="module")
def samples(teacher):
    return make_samples(teacher, 2, 32)


def test_few_steps_are_what_the_pipeline_does(teacher, samples):
    """diffusers' own pipeline with the method's scheduler, as `std stylize` calls it, from the same
    x_0 and noise."""
    [(_, x, c)] = samples.batches()
    pipe, u = teacher.conditioner.pipe, teacher.conditioner.unconditional(c)
    noise = torch.randn((1, *x.shape[1:]), generator=torch.Generator().manual_seed(5))
    begun = teacher.solver.begin(samples.x0[:1], noise, teacher.n_eta)
    c, u = ({k: v[:1] for k, v in d.items()} for d in (c, u))
    for cfg in (1, 6):
        expected = pipe(
            image=samples.x0[:1],
            prompt_embeds=c["states"],
            pooled_prompt_embeds=c["pooled"],
            negative_prompt_embeds=u["states"],
            negative_pooled_prompt_embeds=u["pooled"],
            ip_adapter_image_embeds=[
                torch.cat([u["style"], c["style"]]) if cfg > 1 else c["style"]
            ],
            guidance_scale=cfg,
            generator=torch.Generator().manual_seed(5),
            timesteps=timesteps(4, 0.75, "aligned"),
            strength=1.0,
            eta=0.0,
            output_type="latent",
        ).images
        assert torch.allclose(teacher.walk(begun, c, cfg, 4), expected, atol=1e-4)
        assert torch.allclose(
            teacher.walk(begun, c, cfg, 4, teacher.first(begun, c)), expected, atol=1e-4
        )


def test_the_end_point_is_ddims(teacher, samples):
    [(_, x, c)] = samples.batches()
    ddim = DDIMScheduler.from_config(
        teacher.conditioner.pipe.scheduler.config,
        set_alpha_to_one=False,
        timestep_spacing="trailing",
        clip_sample=False,
    )
    ddim.set_timesteps(50)
    u, expected = c | teacher.conditioner.unconditional(c), x
    with torch.no_grad():
        for t in ddim.timesteps[ddim.timesteps <= 779]:
            output, output_u = (predict(teacher.unet, expected, t.expand(2), d) for d in (c, u))
            expected = ddim.step(output_u + 6 * (output - output_u), t, expected).prev_sample
    assert torch.allclose(teacher.walk(x, c, 6, teacher.n_eta + 1), expected, atol=1e-3)


def run(trainer, folder, *changes):
    """Three updates; before and after each, the bank's entries; and all fresh samples."""
    seen, fresh = [], []

    class Watched(trainer):
        def train_lane(self, step, lane, batch):
            before = list(lane.bank.slots)
            figures = super().train_lane(step, lane, batch)
            seen.append((before, list(lane.bank.slots)))
            return figures

        def start_trajectory(self, batch, i, random):
            fresh.append(super().start_trajectory(batch, i, random))
            return fresh[-1]

    examples = CONFIG.parent
    changes = [
        *changes,
        MODEL,
        f"run.output='{folder}'",
        "run.max_steps=3",
        "data.size=[32, 32]",
        f"style.folder='{examples}'",
    ]
    folder_of_pictures = Path(folder).parent / "pictures"
    folder_of_pictures.mkdir(exist_ok=True)
    for i, path in enumerate(sorted(examples.glob("style-*.png"))):
        (folder_of_pictures / f"{i}.png").write_bytes(path.read_bytes())
        (folder_of_pictures / f"{i}.txt").write_text(f"number {i}")
    changes += [
        f"data.sources=['{folder_of_pictures}']",
        "lora.targets=['to_q']",
        "optimizer.batch=2",
    ]
    with patch.object(build, "Trainer", Watched):
        distill(load_config(CONFIG, changes))
    return seen, fresh


def kept_their_own(seen):
    """Of each slot that had an entry before an update and has it after: whether x_0 is still the
    same one."""
    pairs = [pair for before, after in seen for pair in zip(before, after, strict=True)]
    return [torch.equal(a.x0, b.x0) for a, b in pairs if a is not None and b is not None]


def test_mix_up_mixes(tmp_path):
    mixed, plain = (run(t, tmp_path / t.__name__)[0] for t in (MixedUp, Trainer))
    assert not any(kept_their_own(mixed)) and all(kept_their_own(plain))
    # trajectories continue all the same
    assert {slot.n for slot in mixed[-1][1]} == {slot.n for slot in plain[-1][1]}


def test_noised_data_begins_anywhere(tmp_path, teacher):
    _, fresh = run(NoisedData, tmp_path / "noised", "bank.length=0")
    assert len({e.n for e in fresh}) > 1 and all(1 <= e.n <= teacher.n_eta for e in fresh)
    for e in fresh:
        abar = teacher.solver.alphas_cumprod[20 * e.n + 19]
        noise = (e.x - abar.sqrt() * e.x0) / (1 - abar).sqrt()
        assert 0.8 < noise.std() < 1.2  # 256 numbers


def test_held_out_pictures_are_files_for_std_compare(tmp_path, samples):
    write_pictures(tmp_path, 2, 32)
    contents = [read_picture(path).rgb for path in sorted((tmp_path / "contents").iterdir())]
    assert contents == samples.pictures
    assert len(list((tmp_path / "styles").glob("style-*.png"))) == len(samples.styles)


def test_tables():
    values = np.array([1.0, 2.0, 4.0, 5.0])
    mean, half = interval(values)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (mean - half, mean + half) == pytest.approx((low, high))

    def line(student, seed, steps, cfg, latent):
        other = {m: [1.0] * 4 for m in ("pixel", "sharpness")}
        return Line(student, seed, steps, cfg, {"latent": list(latent), **other})

    offsets = {"none": [0.0], "std": [1.0, 3.0], "lcm": [5.0]}  # of each seed
    lines = [
        line(name, seed, steps, cfg, values + offset + steps)
        for name, each in offsets.items()
        for seed, offset in enumerate(each)
        for steps in STEPS
        for cfg in CFGS
    ]
    assert Line.of_json(lines[0].to_json()) == lines[0]
    found = Found(lines)
    # the mean of two seeds
    assert found.values("std", "latent", 2, 1) == pytest.approx(values + 2 + 2)
    assert found.values("tcd", "latent", 2, 1) is None
    end = Line("the teacher's end point", 0, 0, 4.0, {"pixel": [1.0] * 4})
    text = tables(found, "4 samples.", [end])
    assert "| std | 2 | 6.000 ± 2.905 |" in text  # 3 + 1 + 2; Student's t with 3 degrees of freedom
    assert "| lcm | 3.000 ± 0.000 |" in text  # less std's
    assert "| std, seed 1 | 7.000 ± 2.905 |" in text
    assert "| none, CFG 4: the teacher, twice the evaluations | 1 | 4.000" in text
