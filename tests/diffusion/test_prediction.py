"""What a model predicts, and zero terminal SNR, through every method, schedule and the solver of
the training.

The noise levels are worked out here, after algorithm 1 of Lin et al. 2023 (arXiv 2305.08891).
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from std_cli import stylize_image
from std_cli.diffusion.pipeline import make_scheduler
from std_cli.distill.solver import Solver
from std_cli.errors import InputError
from std_cli.schedule import spread_num_inference_steps, timesteps
from std_cli.weights.resolve import TINY, resolve_model
from std_cli.weights.sdxl_files import checkpoint_scheduler
from std_cli.weights.zoo import MethodName, zoo
from tests.micro import micro

# diffusers' Euler scheduler reads a tensor as NumPy 2 no longer likes
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
BASE = json.loads((TINY / "scheduler" / "scheduler_config.json").read_text())


def levels(zero: bool) -> torch.Tensor:
    """abar of timesteps 0 to 999, float64; `zero`: moved and scaled so that the last is 0 and the
    first as it was."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    root = (1 - betas).cumprod(0).sqrt()
    return ((root - root[-1]) * root[0] / (root[0] - root[-1]) if zero else root) ** 2


def output(prediction: str, x: torch.Tensor, x0: torch.Tensor, abar: torch.Tensor) -> torch.Tensor:
    """What a network gives at x if it knows the picture."""
    a, b = abar.sqrt().float(), (1 - abar).sqrt().float()
    eps = (x - a * x0) / b
    return {"epsilon": eps, "v_prediction": a * eps - b * x0, "sample": x0}[prediction]


@pytest.mark.parametrize("eta", [0.75, 1.0])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("method", list(zoo().methods))
def test_every_method_finds_the_picture(
    method: MethodName, zero: bool, prediction: str, eta: float
) -> None:
    """Of a network that knows it, from the noise that the method starts with, whatever its
    scheduler adds."""
    facts, steps = zoo().methods[method], 6
    if (zero and prediction == "epsilon" and eta == 1) or (prediction, facts.scheduler[:5]) == (
        "sample",
        "Euler",
    ):
        return  # refused before, as the next test shows
    scheduler = make_scheduler(
        facts, BASE | {"prediction_type": prediction, "rescale_betas_zero_snr": zero}
    )
    schedules = ("quickstart", "aligned") if facts.spacing == "grid" else (facts.spacing,)
    abar = levels(zero)
    for schedule in schedules:
        chosen = timesteps(steps, eta, schedule, facts.grid)
        scheduler.whole = spread_num_inference_steps(steps, eta)  # of DDIM
        scheduler.set_timesteps(timesteps=chosen)
        random = torch.Generator().manual_seed(0)
        x0, noise = (torch.randn(1, 4, 8, 8, generator=random) for _ in range(2))
        x = scheduler.add_noise(x0, noise, scheduler.timesteps[:1])
        for t in scheduler.timesteps:
            seen = scheduler.scale_model_input(x, t)
            more = {"generator": random} if facts.scheduler != "DDIMScheduler" else {}
            more |= {"eta": facts.gamma} if facts.scheduler == "TCDScheduler" else {}
            guess = output(
                prediction,
                seen,
                x0,
                abar[int(t)].clamp_min(2**-24 if "Euler" in facts.scheduler else 0),
            )
            x = scheduler.step(guess, t, x, **more).prev_sample
        left = (1 - abar[0]).sqrt().item()  # at timestep 0, where some end
        assert torch.isfinite(x).all() and (x - x0).abs().max() < 5 * left, (
            schedule,
            (x - x0).abs().max(),
        )


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_solver_of_the_training(prediction: str, zero: bool) -> None:
    scheduler = make_scheduler(zoo().methods["std"], BASE | {"rescale_betas_zero_snr": zero})
    solver = Solver(scheduler.alphas_cumprod, 50, prediction)  # type: ignore[arg-type]
    torch.testing.assert_close(solver.alphas_cumprod, levels(zero).float(), rtol=1e-3, atol=1e-6)
    random = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(3, 4, 8, 8, generator=random) for _ in range(2))
    n = torch.tensor([3, 38, 48 if prediction == "epsilon" else 49])
    x = solver.add_noise(x0, noise, solver.timestep(n))
    abar = levels(zero)[solver.timestep(n)].view(-1, 1, 1, 1)
    found, eps = solver.split(output(prediction, x, x0, abar), x, n)
    torch.testing.assert_close(found, x0, rtol=0, atol=2e-3)
    torch.testing.assert_close(eps, noise, rtol=0, atol=2e-3)
    moved = solver.move(found, eps, torch.tensor([0, 20, 30]))
    assert torch.isfinite(moved).all()


@pytest.mark.parametrize("method", ["lightning", "none"])
@pytest.mark.parametrize("settings", [{"use_karras_sigmas": True}, {"timestep_type": "continuous"}])
def test_noise_levels_of_another_sampler_are_left_out(
    method: MethodName, settings: dict[str, Any]
) -> None:
    facts, v = zoo().methods[method], {"prediction_type": "v_prediction"}
    plain, other = (make_scheduler(facts, BASE | v | more) for more in ({}, settings))
    for scheduler in (plain, other):
        scheduler.set_timesteps(timesteps=[626, 251, 1])
    assert torch.equal(plain.sigmas, other.sigmas)


def folder_that_says(tmp_path: Path, **settings: Any) -> Path:
    folder = tmp_path / f"mine{len(list(tmp_path.iterdir()))}"
    shutil.copytree(micro(), folder, copy_function=os.link)
    config = folder / "scheduler" / "scheduler_config.json"
    config.unlink()
    config.write_text(json.dumps(BASE | settings))
    return folder


def test_what_a_folder_says(tmp_path: Path, photo: Image.Image, reference: Path) -> None:
    request: dict[str, Any] = {"size": 64, "steps": 2, "device": "cpu", "eta": 1.0}
    blind = folder_that_says(tmp_path, rescale_betas_zero_snr=True, prediction_type="epsilon")
    for more in ({}, {"schedule": "aligned"}, {"method": "pcm", "lora": "none"}):
        with pytest.raises(
            InputError, match="--eta 1: .*timestep 999.*predicts nothing.*smaller --eta"
        ):
            stylize_image(photo, reference, model=str(blind), **request, **more)
    sample = folder_that_says(tmp_path, prediction_type="sample")
    with pytest.raises(
        InputError, match=r"--method lightning: .*Euler.*'sample'.*use another method"
    ):
        stylize_image(
            photo, reference, model=str(sample), method="lightning", lora="none", **request
        )
    with pytest.raises(InputError, match="not an SDXL model: it is made for EDMEulerScheduler"):
        resolve_model(str(folder_that_says(tmp_path, _class_name="EDMEulerScheduler")))
    v = folder_that_says(tmp_path, rescale_betas_zero_snr=True, prediction_type="v_prediction")
    [one] = stylize_image(photo, reference, model=str(v), **request)
    [other] = stylize_image(photo, reference, model=micro(), **request)
    assert np.abs(np.asarray(one, int) - np.asarray(other, int)).max() > 30


@pytest.mark.parametrize(
    ("keys", "metadata", "settings", "notice"),
    [
        ([], {}, {}, ""),
        (["v_pred"], {}, {"prediction_type": "v_prediction"}, ""),
        (
            ["v_pred", "ztsnr"],
            {},
            {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
            "",
        ),
        ([], {"modelspec.prediction_type": "v"}, {"prediction_type": "v_prediction"}, ""),
        ([], {"modelspec.predict_key": "v"}, {"prediction_type": "v_prediction"}, ""),
        ([], {"modelspec.prediction_type": "epsilon"}, {"prediction_type": "epsilon"}, ""),
        (
            ["v_pred"],
            {"modelspec.prediction_type": "epsilon"},
            {"prediction_type": "v_prediction"},
            "x: its metadata say modelspec.prediction_type 'epsilon', its tensor v_pred says "
            "v_prediction: "
            "v_prediction is used",
        ),
        (
            [],
            {"modelspec.prediction_type": "flow"},
            {},
            "'flow', which std does not know: epsilon is used",
        ),
    ],
)
def test_what_a_single_file_says(
    keys: list[str], metadata: dict[str, str], settings: dict[str, Any], notice: str, tmp_path: Path
) -> None:
    save_file(
        {key: torch.zeros(0) for key in (*keys, "other")}, tmp_path / "x.safetensors", metadata
    )
    found, notices = checkpoint_scheduler("x", tmp_path / "x.safetensors")
    assert found == settings
    assert len(notices) == bool(notice) and notice in "".join(notices)
