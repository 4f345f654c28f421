"""The schedules against diffusers: its TCDScheduler, and the slicing of its SDXL img2img
pipeline."""

import math
from itertools import pairwise, product
from types import SimpleNamespace

import pytest
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline, TCDScheduler
from hypothesis import example, given, settings
from hypothesis import strategies as st

from std_cli.errors import InputError
from std_cli.schedule import GRIDS, quickstart_num_inference_steps, timesteps

STEPS = range(1, 51)
HUNDREDTHS = [i / 100 for i in range(1, 101)]

any_steps = st.integers(1, 50)
any_eta = st.floats(0, 1, exclude_min=True)
any_schedule = st.sampled_from(["quickstart", "aligned"])
settings.register_profile("no deadline", deadline=None)  # a busy machine is not a failure
settings.load_profile("no deadline")


def tcd(grid=50):
    return TCDScheduler(timestep_spacing="leading", steps_offset=1, original_inference_steps=grid)


def img2img(n, eta, grid=50):
    """The timesteps that the real pipeline runs for num_inference_steps = n, strength = eta."""
    pipe = SimpleNamespace(scheduler=tcd(grid))
    pipe.scheduler.set_timesteps(n)
    ran, count = StableDiffusionXLImg2ImgPipeline.get_timesteps(pipe, n, eta, "cpu")
    assert count == len(ran)
    return ran.tolist()


def run(ours, gamma):
    """Lets the real scheduler walk our timesteps; returns the sample at the end."""
    scheduler = tcd()
    scheduler.set_timesteps(timesteps=ours)
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(1, 4, 2, 2, generator=generator)
    for t in scheduler.timesteps:
        sample = scheduler.step(0.5 * sample, t, sample, eta=gamma, generator=generator).prev_sample
    return sample


def test_the_published_run():
    assert quickstart_num_inference_steps(8, 0.75) == 11
    assert timesteps(8, 0.75, "quickstart") == [739, 639, 559, 459, 379, 279, 199, 99]


@pytest.mark.parametrize(
    "eta, start", [(0.65, 679), (0.75, 779), (0.85, 879), (0.95, 979), (1.0, 999), (0.01, 39)]
)
def test_aligned_starts_where_training_starts(eta, start):
    assert {timesteps(steps, eta, "aligned")[0] for steps in range(1, 41)} == {start}


def test_aligned_by_hand():
    # 39 grid points up to 779, of which every 39 / 4 = 9.75th: indices 0, 9, 19, 29 from the top
    assert timesteps(4, 0.75, "aligned") == [779, 599, 399, 199]
    # 40 steps do not fit in 39 points: 78 of the grid of 100, every 1.95th, so 779 - 10 * (0, 1, 3,
    # 5, ...)
    assert timesteps(40, 0.75, "aligned")[:4] == [779, 769, 749, 729]


@given(steps=any_steps, eta=st.floats(0.001, 1))
@example(steps=29, eta=0.29)
@example(steps=50, eta=1 - 2**-53)
def test_quickstart_count_is_the_smallest_that_works(steps, eta):
    n = quickstart_num_inference_steps(steps, eta)
    assert min(int(n * eta), n) == steps
    assert min(int((n - 1) * eta), n - 1) < steps


@given(steps=any_steps, eta=any_eta, schedule=any_schedule)
@example(steps=50, eta=0.01, schedule="quickstart")
@example(steps=50, eta=5e-324, schedule="quickstart")
@example(steps=50, eta=5e-324, schedule="aligned")
def test_as_many_distinct_descending_timesteps_as_asked(steps, eta, schedule):
    ours = timesteps(steps, eta, schedule)
    assert len(ours) == steps
    assert ours == sorted(set(ours), reverse=True)
    assert ours[0] <= 999
    assert ours[-1] >= 0


def expected_quickstart(steps, eta):
    """What img2img runs, on the coarsest grid that TCD accepts; the lowest timesteps where none is
    fine enough."""
    n = quickstart_num_inference_steps(steps, eta)
    if n > 1000:
        return list(range(steps))[::-1]
    return img2img(n, eta, next(grid for grid in GRIDS if grid >= n))


@pytest.mark.parametrize("steps", STEPS)
def test_quickstart_is_what_img2img_runs(steps):
    for eta in HUNDREDTHS:
        assert timesteps(steps, eta, "quickstart") == expected_quickstart(steps, eta), eta


@given(steps=any_steps, eta=st.floats(0.001, 1))
def test_quickstart_is_what_img2img_runs_at_any_eta(steps, eta):
    assert timesteps(steps, eta, "quickstart") == expected_quickstart(steps, eta)


@given(steps=any_steps, eta=any_eta)
def test_aligned_is_what_tcd_sets_up_to_the_training_start(steps, eta):
    start = min(math.ceil(50 * eta), 49)
    points = next((n for n in ((start + 1) * grid // 50 for grid in GRIDS) if n >= steps), None)
    if points is None:
        assert eta <= 0.02 and steps > 40
        assert timesteps(steps, eta, "aligned") == list(range(steps))[::-1]
    else:
        grid = points * 50 // (start + 1)
        scheduler = tcd(grid)
        # TCD keeps int(grid * strength) points
        scheduler.set_timesteps(steps, strength=(points + 0.5) / grid)
        assert timesteps(steps, eta, "aligned") == scheduler.timesteps.tolist()


@pytest.mark.parametrize("schedule", ["quickstart", "aligned"])
def test_tcd_takes_every_schedule_and_every_step_of_it_is_finite(schedule):
    scheduler, legs = tcd(), set()
    for steps, eta in product(STEPS, HUNDREDTHS):
        ours = timesteps(steps, eta, schedule)
        scheduler.set_timesteps(timesteps=ours)
        assert scheduler.timesteps.tolist() == ours
        legs |= {*pairwise(ours), (ours[-1],)}
    for leg in legs:  # a step depends on nothing but its timestep and the next
        assert run(list(leg), gamma=0.0).isfinite().all(), leg


@given(steps=any_steps, eta=any_eta, schedule=any_schedule, gamma=st.sampled_from([0.0, 0.3, 1.0]))
def test_tcd_runs_any_schedule_to_the_end(steps, eta, schedule, gamma):
    assert run(timesteps(steps, eta, schedule), gamma).isfinite().all()


@pytest.mark.parametrize("eta", [0.0, -0.1, 1.01, math.inf, math.nan])
def test_eta_outside_its_range_is_refused(eta):
    with pytest.raises(InputError, match=r"--eta .*above 0 and up to 1"):
        timesteps(8, eta, "aligned")
    with pytest.raises(InputError, match="--eta"):
        quickstart_num_inference_steps(8, eta)


@pytest.mark.parametrize("steps", [0, -1, 51])
def test_steps_outside_their_range_are_refused(steps):
    with pytest.raises(InputError, match=rf"--steps {steps} .*from 1 to 50"):
        timesteps(steps, 0.75, "quickstart")


def test_an_eta_that_no_count_of_steps_serves_is_refused():
    with pytest.raises(InputError, match="--eta 5e-324 is too small"):
        quickstart_num_inference_steps(1, 5e-324)
