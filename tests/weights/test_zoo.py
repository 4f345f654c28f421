"""The table of models and methods; each baseline's timesteps, steps and defaults against its
authors' usage."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, LCMScheduler, TCDScheduler
from PIL import Image
from pydantic import ValidationError

from std_cli import stylize_image
from std_cli.config import ImageSettings, image_settings
from std_cli.diffusion.pipeline import (
    ImagePipeline,
    make_scheduler,
)
from std_cli.diffusion.video_pipeline import VideoPipeline, seeded_noise, step_generator
from std_cli.errors import InputError
from std_cli.schedule import quickstart_num_inference_steps, timesteps
from std_cli.stylize.model_choice import choose_schedule
from std_cli.stylize.request import request_notices
from std_cli.weights.hub import source
from std_cli.weights.lora import resolve_lora
from std_cli.weights.resolve import resolve_model
from std_cli.weights.zoo import ModelEntry, find_entry, method_lora, std_lora, zoo

# diffusers' Euler scheduler reads a tensor as NumPy 2 no longer likes
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

BASELINES = [name for name in zoo().methods if name != "std"]
SDXL = {  # scheduler/scheduler_config.json of SDXL base 1.0
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}


def test_every_entry_is_whole():
    models = zoo().models
    assert len([e for e in models.values() if e.method == "std"]) == 8
    assert {e.eta for e in models.values() if e.method == "std"} == {0.65, 0.75, 0.85, 0.95}
    assert {e.method for e in models.values() if e.kind == "lora"} == {*zoo().methods} - {"none"}
    assert all(e.files[-1].startswith("std_sdxl_") for e in models.values() if e.method == "std")
    assert not [
        e.name for e in models.values() if any(".." in f or f.startswith("/") for f in e.files)
    ]
    assert source("lcm").command.startswith(
        "hf download latent-consistency/lcm-lora-sdxl --revision a18548dd"
    )
    with pytest.raises(
        InputError, match="not on the Hub: run std models pull dinov2-original and give"
    ):
        source("dinov2-original")
    with pytest.raises(
        InputError, match="no model 'lightnin-8' in the table: did you mean lightning-8"
    ):
        find_entry("lightnin-8")


@pytest.mark.parametrize(
    "wrong",
    [
        {"repo": "", "url": ""},
        {"repo": "", "url": "https://example.org/a.pth"},
        {"files": ()},
        {"revision": "main"},
        {"checked": False},
        {"method": None},
        {"colour": "red"},
    ],
)
def test_an_entry_that_is_not_whole_is_refused(wrong):
    with pytest.raises(ValidationError):
        ModelEntry(**find_entry("lcm").model_dump() | wrong)


def test_the_nearest_lora():
    assert [std_lora("v2v", eta).name for eta in (0.1, 0.7, 0.71, 1.0)] == [
        *("std-v2v-0.65", "std-v2v-0.65", "std-v2v-0.75", "std-v2v-0.95")
    ]
    nearest = [method_lora("lightning", steps).name for steps in (1, 2, 3, 6, 7, 50)]
    assert nearest == [f"lightning-{n}" for n in (2, 2, 2, 4, 8, 8)]
    assert method_lora("lcm", 3).name == "lcm" and method_lora("none", 3) is None


# What the authors' usage runs at full noise: the numbers that their schedulers give, worked out by
# hand.
#   LCM, TCD: every 50/n-th of t = 19, 39, ..., 999, rounded down, from the top
#   PCM, Hyper-SD, SDXL-Lightning: trailing, 1000 - i 1000/n - 1
#   TDD: every 250/n-th of t = 3, 7, ..., 999 (tdd_scheduler.py, set_timesteps with tdd_train_step =
#   250)
#   none: leading with offset 1, as SDXL's scheduler config has it
PUBLISHED = {
    ("lcm", 4): [999, 759, 499, 259],
    ("tcd", 4): [999, 759, 499, 259],
    ("pcm", 4): [999, 749, 499, 249],
    ("pcm", 8): [999, 874, 749, 624, 499, 374, 249, 124],
    ("tdd", 4): [999, 751, 499, 251],
    ("tdd", 8): [999, 875, 751, 627, 499, 375, 251, 127],
    ("hyper-sd", 2): [999, 499],
    ("hyper-sd", 8): [999, 874, 749, 624, 499, 374, 249, 124],
    ("lightning", 4): [999, 749, 499, 249],
    ("none", 20): list(range(951, 0, -50)),
}


def spacing(method):
    return choose_schedule(ImageSettings(method=method), None)


@pytest.mark.parametrize(("method", "steps"), PUBLISHED)
def test_timesteps_at_full_noise_are_the_published_ones(method, steps):
    assert (
        timesteps(steps, 1.0, spacing(method), zoo().methods[method].grid)
        == PUBLISHED[method, steps]
    )


def theirs(method):
    """The scheduler as the authors' usage makes it, from SDXL's config."""
    match method:
        case "lcm":
            return LCMScheduler.from_config(SDXL)
        case "tcd":
            return TCDScheduler.from_config(SDXL)
        case "tdd":  # their class has TCD's rule for timesteps, on another grid
            return TCDScheduler.from_config(SDXL, original_inference_steps=250)
        case "pcm" | "hyper-sd":
            return DDIMScheduler.from_config(SDXL, timestep_spacing="trailing")
        case "lightning":
            return EulerDiscreteScheduler.from_config(SDXL, timestep_spacing="trailing")
        case "none":
            return EulerDiscreteScheduler.from_config(SDXL)


@pytest.mark.parametrize("method", BASELINES)
@pytest.mark.parametrize("eta", [0.65, 0.75, 0.82, 0.95, 1.0])
def test_timesteps_are_what_img2img_runs_with_the_authors_scheduler(method, eta):
    facts, limit = zoo().methods[method], {"lcm": 50, "tcd": 50, "tdd": 250}.get(method, 1000)
    for steps in range(1, 51):
        n = quickstart_num_inference_steps(steps, eta)
        ours = timesteps(steps, eta, spacing(method), facts.grid)
        assert len(ours) == steps and ours == sorted(set(ours), reverse=True) and ours[-1] >= 0
        if n <= limit:
            scheduler = theirs(method)
            scheduler.set_timesteps(n)
            assert ours == scheduler.timesteps[:n].tolist()[n - steps :], (steps, n)


def test_a_run_that_has_no_such_timesteps():
    with pytest.raises(InputError, match="--eta 0.01 is too small for 50 steps"):
        timesteps(50, 0.01, "trailing")


def walk(scheduler, ts, step):
    """A fixed "network" through a whole run; `step` takes one step of it."""
    scheduler.set_timesteps(timesteps=ts)
    sample = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(1))
    for t in scheduler.timesteps:
        sample = step(scheduler, 0.3 * scheduler.scale_model_input(sample, t), t, sample)
    return sample


@pytest.mark.parametrize("method", ["pcm", "hyper-sd"])
def test_ddim_steps_as_published(method):
    scheduler, reference = make_scheduler(zoo().methods[method], SDXL), theirs(method)
    for n in (4, 8, 11, 48):
        ts = timesteps(n, 1.0, "trailing")
        scheduler.whole = n
        ours = walk(scheduler, ts, lambda s, e, t, x: s.step(e, t, x).prev_sample)
        reference.set_timesteps(n)
        sample = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(1))
        for t in reference.timesteps[:n]:
            sample = reference.step(0.3 * sample, t, sample).prev_sample
        assert torch.equal(ours, sample)


def test_tdd_steps_as_its_scheduler_does():
    """Its formula (DPM-Solver++ of order 1 to s = floor((1 - eta) t'), then noise up to t'; the
    last step is clean)."""
    facts = zoo().methods["tdd"]
    scheduler, generator = make_scheduler(facts, SDXL), torch.Generator().manual_seed(5)
    ts = PUBLISHED["tdd", 4]
    ours = walk(
        scheduler,
        ts,
        lambda s, e, t, x: s.step(e, t, x, eta=facts.gamma, generator=generator).prev_sample,
    )
    abar = DDIMScheduler.from_config(SDXL).alphas_cumprod
    noise = torch.Generator().manual_seed(5)
    x = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(1))
    for t, following in zip(ts, [*ts[1:], None], strict=True):
        a_t, s_t = abar[t].sqrt(), (1 - abar[t]).sqrt()
        clean = (x - s_t * 0.3 * x) / a_t
        if following is None:
            x = clean
            break
        at = int(np.floor((1 - 0.2) * following))
        a_s, s_s = abar[at].sqrt(), (1 - abar[at]).sqrt()
        h = (a_s.log() - s_s.log()) - (a_t.log() - s_t.log())
        x = (s_s / s_t) * x - a_s * (torch.exp(-h) - 1) * clean
        up = abar[following] / abar[at]
        x = up.sqrt() * x + (1 - up).sqrt() * torch.randn(x.shape, generator=noise)
    torch.testing.assert_close(ours, x, rtol=1e-4, atol=1e-4)


def test_defaults_come_from_the_method_and_yield_to_the_user():
    pack = {"i2i": {"cfg": 3.0, "steps": 5}}
    assert (lambda s: (s.steps, s.cfg))(image_settings({"method": "std"}, pack)) == (5, 3.0)
    for given, wanted in [
        ({"method": "lcm"}, (4, 1)),
        ({"method": "pcm"}, (8, 4.5)),
        ({"method": "pcm", "steps": 4}, (4, 3)),
        ({"method": "hyper-sd", "steps": 2}, (2, 1)),
        ({"method": "hyper-sd", "cfg": 7.0}, (8, 7)),
        ({"method": "tdd"}, (4, 1.7)),
        ({"method": "none"}, (25, 5)),
    ]:
        s = image_settings(given, pack)
        assert (s.steps, s.cfg) == wanted, given
    with pytest.raises(
        InputError, match="--schedule aligned is STD's: leave it out with --method lcm"
    ):
        image_settings({"method": "lcm", "schedule": "aligned"})
    with pytest.raises(InputError, match="--method magic"):
        image_settings({"method": "magic"})
    assert request_notices(image_settings({"method": "lightning", "cfg": 6}), None) == [
        "--cfg 6: lightning is published for 1 to 1"
    ]
    assert request_notices(image_settings({"cfg": 12}), None) == []


def test_the_lora_of_a_method_and_a_pack():
    tiny = resolve_model("tiny")
    with pytest.raises(
        InputError, match="--method tcd: its LoRA is made for SDXL, not for --model tiny"
    ):
        resolve_lora("auto", model=tiny, task="i2i", eta=0.75, method="tcd", steps=4)
    assert resolve_lora("none", model=tiny, task="i2i", eta=0.75, method="tcd", steps=4) is None
    assert resolve_lora("auto", model=tiny, task="i2i", eta=0.75, method="none", steps=4) is None


# --- pictures and videos -----------------------------------------------------------------------


@pytest.mark.parametrize("method", BASELINES)
def test_a_video_takes_the_steps_of_the_picture(method, monkeypatch):
    """Without a motion adapter: the same latent, the same noise, and the same number of steps,
    exactly --steps."""
    s = ImageSettings(
        model="tiny",
        prompt="",
        negative_prompt="",
        steps=3,
        cfg=2.0,
        seed=7,
        method=method,
        lora="none",
    )
    picture = Image.effect_noise((64, 48), 60).convert("RGB")
    style = [Image.new("RGB", (64, 64), "teal")]
    tiny, schedule = resolve_model("tiny"), spacing(method)
    video = VideoPipeline(tiny, None, torch.device("cpu"), torch.float32, method=method)
    video.set_style(style, [1.0], 1.0, "all")
    conditions = video.prepare(s, schedule, picture.size)
    assert len(conditions.timesteps) == 3
    clean = video.encode(picture)
    latent = video.add_noise(conditions, clean)
    for k in range(3):
        prediction = video.predict(conditions, latent[None, :, None], [k], [range(1)])[0, :, 0]
        [latent] = video.step(conditions, prediction[None], latent[None], k)
    ours = video.decode(latent)

    still = ImagePipeline(tiny, None, torch.device("cpu"), torch.float32, method=method)
    still.set_style(style, [1.0], 1.0, "all")
    draws = iter([seeded_noise(7, clean.shape)[None]])
    img2img = (
        "diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_img2img.randn_tensor"
    )
    monkeypatch.setattr(img2img, lambda *a, **k: next(draws))
    for name in ("tcd", "lcm"):
        steps = iter(range(3))
        monkeypatch.setattr(
            f"diffusers.schedulers.scheduling_{name}.randn_tensor",
            lambda shape, *a, steps=steps, **k: torch.randn(
                clean.shape, generator=step_generator(7, next(steps))
            )[None],
        )
    ran = []
    out = still.pipe(
        image=clean[None],
        ip_adapter_image_embeds=[still.style],
        guidance_scale=s.cfg,
        timesteps=still.choose_timesteps(still.pipe.scheduler, s, schedule),
        strength=1.0,
        callback_on_step_end=lambda pipe, i, t, kept: ran.append(int(t)) or {},
        **still.gamma,
        **still.encode_prompt("", ""),
    ).images[0]
    assert ran == timesteps(3, 0.75, schedule, zoo().methods[method].grid)
    assert np.abs(np.asarray(out, int) - ours).max() <= 1


def test_a_run_by_a_method(picture, reference):
    events = []
    request = {
        "model": "tiny",
        "size": 64,
        "steps": 2,
        "device": "cpu",
        "method": "pcm",
        "lora": "none",
    }
    [out] = stylize_image(picture, reference, on_event=events.append, **request)
    [start] = [e for e in events if e["event"] == "start"]
    assert [start["settings"][k] for k in ("method", "schedule", "cfg", "steps")] == [
        "pcm",
        "trailing",
        1.2,
        2,
    ]
    [other] = stylize_image(picture, reference, **request | {"method": "none", "cfg": 1.2})
    assert out.size == other.size and out.tobytes() != other.tobytes()
