"""The video pipeline's pieces against the picture pipeline and against diffusers."""

from functools import partial

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, MotionAdapter
from PIL import Image

from std_cli import read_settings, stylize_image
from std_cli.config import ImageSettings
from std_cli.diffusion.pipeline import ImagePipeline, make_scheduler
from std_cli.diffusion.video_pipeline import VideoPipeline, seeded_noise, step_generator
from std_cli.diffusion.windows import Wavefront
from std_cli.errors import InputError
from std_cli.schedule import timesteps
from std_cli.stylize.pictures import prepare_images
from std_cli.stylize.workload import picture_inputs
from std_cli.weights.files import read_object
from std_cli.weights.motion import HOTSHOT_CONFIG, from_hotshot, resolve_motion
from std_cli.weights.resolve import resolve_model
from std_cli.weights.zoo import zoo
from tests.diffusion.test_windows import run
from tests.micro import micro
from tests.weights.test_zoo import spacing

IMG2IMG = "diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_img2img"
CPU, FP32 = torch.device("cpu"), torch.float32


def make_adapter(folder, zero=True, **changed):
    """A random motion adapter for the UNet; `zero`: its temporal layers add nothing."""
    unet = read_object(resolve_model(micro()).base / "unet" / "config.json")
    config = {
        "block_out_channels": unet["block_out_channels"],
        "motion_layers_per_block": unet["layers_per_block"],
        "motion_num_attention_heads": 4,
        "motion_norm_num_groups": unet["norm_num_groups"],
        "motion_max_seq_length": 16,
        "use_motion_mid_block": False,
    } | changed
    torch.manual_seed(0)
    adapter = MotionAdapter(**config)
    for name, parameter in adapter.named_parameters():
        if zero and ".proj_out." in name:
            torch.nn.init.zeros_(parameter)
    adapter.save_pretrained(folder)
    return str(folder)


def pictures(count, size=(64, 48)):
    r = np.random.default_rng(3)
    coarse = r.integers(0, 256, (count, 6, 8, 3), dtype=np.uint8)
    return [Image.fromarray(c).resize(size, Image.Resampling.BICUBIC) for c in coarse]


def video_pipeline(spec, s, size):
    model = resolve_model(micro())
    motion = resolve_motion(spec, model)
    pipeline = VideoPipeline(model, None, CPU, FP32, motion=motion)
    pipeline.set_style([Image.new("RGB", (64, 64), "teal")], [1.0], s.style_scale, s.style_blocks)
    before = set(vars(pipeline))
    conditions = pipeline.prepare(s, "quickstart", size)
    assert set(vars(pipeline)) == before  # nothing of the run is left on it
    return pipeline, conditions


@pytest.mark.parametrize("cfg", [3.0, 1.0])
@pytest.mark.parametrize("motion", ["zeroed", "none"])
def test_without_motion_it_is_the_picture_pipeline_frame_by_frame(
    tmp_path, monkeypatch, motion, cfg
):
    s = ImageSettings(
        model=micro(),
        prompt="sea",
        negative_prompt="",
        steps=3,
        cfg=cfg,
        seed=7,
        style_blocks="all",
    )
    frames, length = pictures(5), 1 if motion == "none" else 4
    video, conditions = video_pipeline(
        make_adapter(tmp_path) if motion == "zeroed" else "none", s, frames[0].size
    )
    predict, step = (partial(f, conditions) for f in (video.predict, video.step))
    wave = Wavefront(length, max(1, length // 2), s.steps, predict, step, batch=2)
    done = run(wave, [video.add_noise(conditions, video.encode(p)) for p in frames])
    ours = [video.decode(f.latent) for f in done]

    still = ImagePipeline(resolve_model(micro()), None, CPU, FP32)
    still.set_style([Image.new("RGB", (64, 64), "teal")], [1.0], s.style_scale, s.style_blocks)
    for i, picture in enumerate(frames):
        latent = video.encode(picture)
        # img2img takes a 4-channel "image" as latents, and draws its noise here
        monkeypatch.setattr(
            f"{IMG2IMG}.randn_tensor", lambda *a, n=latent.shape, **k: seeded_noise(7, n)[None]
        )
        out = still.pipe(
            image=latent[None],
            ip_adapter_image_embeds=[still.style if cfg > 1 else still.style.chunk(2)[1]],
            guidance_scale=cfg,
            timesteps=timesteps(s.steps, s.eta, "quickstart"),
            strength=1.0,
            output_type="np",
            **still.encode_prompt(s.prompt, s.negative_prompt),
        ).images[0]
        assert np.abs(out * 255 - ours[i]).max() < 0.51  # ours is rounded to bytes


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_step_of_many_frames_is_the_scheduler_s_of_each(dtype, monkeypatch):
    """Of every method, those that add noise too: bit for bit, at every step, with a generator for
    each frame."""
    monkeypatch.setattr("std_cli.diffusion.pipeline.has_arithmetic", lambda device, dtype: True)
    video = VideoPipeline(resolve_model(micro()), None, CPU, dtype)
    video.set_style([Image.new("RGB", (64, 64), "teal")], [1.0], 1.0, "all")
    base, noisy = dict(video.pipe.scheduler.config), 0
    for name, method in zoo().methods.items():
        video.method = method
        video.pipe.scheduler = make_scheduler(method, base)
        s = ImageSettings(
            model=micro(), prompt="", negative_prompt="", steps=3, method=name, lora="none"
        )
        conditions = video.prepare(s, spacing(name), (64, 48))
        random = torch.Generator().manual_seed(1)
        shape = (5, *conditions.latent_shape)
        predictions, latents = (torch.randn(shape, generator=random).to(dtype) for _ in range(2))
        noise = seeded_noise(s.seed, conditions.latent_shape).to(dtype)
        noised = conditions.fresh().add_noise(latents, noise, conditions.timesteps[:1])
        assert torch.equal(video.add_noise(conditions, latents), noised), name
        for k, t in enumerate(conditions.timesteps):
            together = video.step(conditions, predictions, latents, k)
            alone = []
            for prediction, latent in zip(predictions, latents, strict=True):
                scheduler = conditions.fresh()
                scheduler.scale_model_input(latent, t)
                more = {} if isinstance(scheduler, DDIMScheduler) else {"generator": drawn(k)}
                more |= video.gamma
                alone.append(scheduler.step(prediction, t, latent, **more).prev_sample)
                drew = more.get("generator")
                noisy += drew is not None and not torch.equal(
                    drew.get_state(), drawn(k).get_state()
                )
            assert together.dtype == dtype and torch.equal(together, torch.stack(alone)), (name, k)
    assert noisy > 0


def drawn(k):
    return step_generator(0, k)


def test_motion_makes_frames_depend_on_their_neighbours(tmp_path):
    s = ImageSettings(model=micro(), prompt="", negative_prompt="", steps=2, style_blocks="all")
    video, conditions = video_pipeline(make_adapter(tmp_path, zero=False), s, (64, 48))
    latents = torch.randn(
        1, 4, 4, *conditions.latent_shape[1:], generator=torch.Generator().manual_seed(0)
    )
    other = latents.clone()
    other[:, :, 3] += 1
    a, b = (video.predict(conditions, x, [0], [range(4)]) for x in (latents, other))
    assert (a[:, :, 0] - b[:, :, 0]).abs().max() > 1e-3


def test_windows_of_one_batch_may_be_at_different_steps(tmp_path):
    s = ImageSettings(model=micro(), prompt="", negative_prompt="", steps=4, style_blocks="all")
    video, conditions = video_pipeline(make_adapter(tmp_path, zero=False), s, (64, 48))
    latents = torch.randn(
        2, 4, 4, *conditions.latent_shape[1:], generator=torch.Generator().manual_seed(0)
    )
    both = video.predict(conditions, latents, [0, 3], [range(4)] * 2)
    for i, step in enumerate((0, 3)):
        one = video.predict(conditions, latents[i : i + 1], [step], [range(4)])
        torch.testing.assert_close(both[i : i + 1], one, atol=1e-4, rtol=0)


def test_a_decoded_frame_is_the_same_whichever_are_decoded_with_it():
    video = video_pipeline("auto", ImageSettings(steps=2, style_blocks="all"), (64, 48))[0]
    frames = list(torch.randn(7, 4, 12, 16, generator=torch.Generator().manual_seed(0)))

    def decoded(at_once, *groups):
        video.savings.frames = at_once
        return [video.levels(d) for group in groups for d in video.begin_decoding(frames[group])]

    whole = decoded(4, slice(0, 7))
    for split in (1, 2, 6):
        found = decoded(4, slice(0, split), slice(split, 7))
        assert all(map(np.array_equal, whole, found))
    alone = decoded(1, slice(0, 7))
    assert all(np.abs(a - b).max() < 0.01 for a, b in zip(whole, alone, strict=True))


def test_noise_follows_from_the_seed():
    noise = seeded_noise(1, (4, 64, 64))
    assert torch.equal(noise, seeded_noise(1, (4, 64, 64))) and not torch.equal(
        noise, seeded_noise(2, (4, 64, 64))
    )
    assert noise.mean().abs() < 0.03 and (noise.std() - 1).abs() < 0.03


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"block_out_channels": (32, 48)}, "block_out_channels"),
        ({"motion_layers_per_block": 2}, "layers_per_block"),
    ],
)
def test_an_adapter_for_another_unet_is_refused(tmp_path, changed, message):
    folder = make_adapter(tmp_path, **changed)
    with pytest.raises(InputError, match=f"--motion .* does not fit --model .*micro: .*{message}"):
        resolve_motion(folder, resolve_model(micro()))


def test_a_folder_that_is_no_adapter_is_refused(tmp_path):
    with pytest.raises(
        InputError, match="_class_name .UNet2DConditionModel.: must be .MotionAdapter."
    ):
        resolve_motion(str(resolve_model("tiny").base / "unet"), resolve_model("tiny"))
    with pytest.raises(InputError, match="no motion adapter"):
        resolve_motion("absent folder", resolve_model("tiny"))


def test_hotshot_keys_become_exactly_a_motion_adapters():
    """SDXL's real shapes on the meta device; 15 pairs of attention blocks, each with its own copy
    of the encoding."""
    with torch.device("meta"):
        adapter = MotionAdapter(**HOTSHOT_CONFIG).state_dict()
    theirs = {}
    for key, tensor in adapter.items():
        key = key.replace(".motion_modules.", ".temporal_attentions.").replace(
            ".norm3.", ".ff_norm."
        )
        key = key.replace(".norm1.", ".norms.0.").replace(".norm2.", ".norms.1.")
        key = key.replace(".attn1.", ".attention_blocks.0.").replace(
            ".attn2.", ".attention_blocks.1."
        )
        if key.endswith("pos_embed.pe"):
            stem = key.removesuffix("pos_embed.pe")
            for k in (0, 1):
                theirs[f"{stem}attention_blocks.{k}.pos_encoder.positional_encoding"] = tensor
        else:
            theirs[key] = tensor
    assert (len(theirs), len(adapter)) == (420, 405)
    found = from_hotshot(theirs)
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in adapter.items()}


# --- guidance at less work ---------------------------------------------------------------------

FIRST = ImageSettings(
    model=micro(), prompt="sea", negative_prompt="", steps=4, cfg=5.0, cfg_steps=2,
    style_blocks="all",
)  # fmt: skip
EVERY = FIRST.model_copy(update={"cfg_steps": 3, "cfg_every": 2})
GUIDED = {"first": (FIRST, 2, [2, 2, 1, 1]), "every second": (EVERY, 3, [2, 1, 2, 1])}
"""{case: (settings, guided steps, predictions in each step)}"""


def counted(unet):
    """The list that every forward's count of samples is added to."""
    calls = []
    unet.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    return calls


@pytest.mark.parametrize("case", GUIDED)
@pytest.mark.parametrize("motion", ["auto", "none"])
def test_windows_are_guided_in_the_steps_that_are_asked_for(motion, case):
    """A loop that is written out: each half of the guidance is an evaluation of its own."""
    settings, guided, evaluations = GUIDED[case]
    video, conditions = video_pipeline(motion, settings, (64, 64))
    frames = 1 if motion == "none" else 4
    window = torch.randn(4, frames, 16, 16, generator=torch.Generator().manual_seed(1))
    unet = video.pipe.unet

    def evaluated(x, k, which):
        x = conditions.fresh().scale_model_input(x[None], conditions.timesteps[k])
        return unet(
            x if motion == "auto" else x.squeeze(2),
            conditions.timesteps[k],
            conditions.states[which : which + 1].expand(frames, -1, -1),
            added_cond_kwargs={
                "text_embeds": conditions.pooled[which : which + 1],
                "time_ids": conditions.time_ids[which : which + 1],
                "image_embeds": [conditions.style[which : which + 1]],
            },
        ).sample.reshape(4, frames, 16, 16)

    wanted, at = window, []
    found = torch.stack([video.add_noise(conditions, x) for x in window.unbind(1)], 1)
    found[:4] = window
    calls = counted(unet)
    with torch.inference_mode():
        for k, t in enumerate(conditions.timesteps):
            prediction = evaluated(wanted, k, 1)
            if evaluations[k] == 2:
                without = evaluated(wanted, k, 0)
            if k < guided:
                prediction = without + 5.0 * (prediction - without)
            wanted = torch.stack(
                [conditions.fresh().step(p, t, x, eta=0.0).prev_sample
                 for p, x in zip(prediction.unbind(1), wanted.unbind(1), strict=True)], 1
            )  # fmt: skip
        calls.clear()
        for k in range(4):
            at.append(found)
            prediction = video.predict(conditions, found[None], [k], [range(frames)])[0]
            found = video.step(
                conditions, prediction.transpose(0, 1), found.transpose(0, 1), k
            ).transpose(0, 1)
    assert calls == evaluations
    torch.testing.assert_close(found, wanted, rtol=0, atol=5e-5)
    # windows at different steps in one call
    calls.clear()
    together = video.predict(conditions, torch.stack(at), [0, 1, 2, 3], [range(frames)] * 4)
    assert calls == [6]
    for k, (x, prediction) in enumerate(zip(at, together, strict=True)):
        alone = video.predict(conditions, x[None], [k], [range(frames)])[0]
        torch.testing.assert_close(prediction, alone, rtol=0, atol=5e-5)


def test_a_run_that_reuses_predictions_resumes_bit_for_bit():
    """Also from the middle of a round, where some windows are a step ahead."""
    video, conditions = video_pipeline("auto", EVERY, (64, 64))
    random = torch.Generator().manual_seed(1)
    latents = [torch.randn(conditions.latent_shape, generator=random) for _ in range(13)]

    def wavefront():
        predict, step = (partial(f, conditions) for f in (video.predict, video.step))
        return Wavefront(8, 4, EVERY.steps, predict, step, 1)

    def finished(stop_at):
        wave, out, works = wavefront(), [], 0
        for number in range(len(latents) + 1):
            if number < len(latents):
                wave.push(video.add_noise(conditions, latents[number]))
            else:
                wave.end()
            work = wave.work()
            while (done := next(work, None)) is not None:
                out += done
                works += 1
                if works == stop_at:
                    state, wave = wave.state(), wavefront()
                    wave.load_state(*state)
                    work = wave.work()
        return [f.latent for f in out], works

    whole, works = finished(None)
    assert [x.shape for x in whole] == [conditions.latent_shape] * len(latents)
    for stop_at in (2, works // 2, works - 3):
        resumed, _ = finished(stop_at)
        assert all(torch.equal(a, b) for a, b in zip(resumed, whole, strict=True))


@pytest.mark.parametrize("case", GUIDED)
def test_a_picture_is_guided_in_the_steps_that_are_asked_for(case):
    settings, guided, evaluations = GUIDED[case]
    still = ImagePipeline(resolve_model(micro()), None, CPU, FP32)
    [picture] = pictures(1)
    still.set_style([Image.new("RGB", (64, 64), "teal")], [1.0], 1.0, "all")
    pipe, text = still.pipe, still.encode_prompt("sea", "")
    random = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        pixels = pipe.image_processor.preprocess(picture)
        x = pipe.vae.encode(pixels).latent_dist.sample(random) * pipe.vae.config.scaling_factor
        scheduler = make_scheduler(zoo().methods["std"], dict(pipe.scheduler.config))
        scheduler.set_timesteps(timesteps=timesteps(4, FIRST.eta, "quickstart"))
        x = scheduler.add_noise(x, torch.randn(x.shape, generator=random), scheduler.timesteps[:1])
        ids = pipe._get_add_time_ids(
            (48, 64), (0, 0), (48, 64), 6.0, 2.5, (48, 64), (0, 0), (48, 64),
            dtype=FP32, text_encoder_projection_dim=text["pooled_prompt_embeds"].shape[-1],
        )  # fmt: skip

        def evaluated(which, negative):
            return pipe.unet(
                x, t, text[f"{negative}prompt_embeds"],
                added_cond_kwargs={
                    "text_embeds": text[f"{negative}pooled_prompt_embeds"],
                    # diffusers gives the positive ones first
                    "time_ids": ids[1 - which],
                    "image_embeds": [still.style.chunk(2)[which]],
                },
            ).sample  # fmt: skip

        for k, t in enumerate(scheduler.timesteps):
            prediction = evaluated(1, "")
            if evaluations[k] == 2:
                without = evaluated(0, "negative_")
            if k < guided:
                prediction = without + 5.0 * (prediction - without)
            x = scheduler.step(prediction, t, x, eta=0.0).prev_sample
        wanted = pipe.vae.decode(x / pipe.vae.config.scaling_factor).sample[0]
        wanted = (wanted / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).numpy() * 255
    calls = counted(pipe.unet)
    found = still.stylize(picture, settings, "quickstart", lambda step: None)
    assert calls == [2, 2, 2, 2]  # before the unconditional half is taken out
    assert np.abs(found - wanted).max() < 0.05
    everywhere = FIRST.model_copy(update={"cfg_steps": None, "cfg_every": 1})
    full = still.stylize(picture, everywhere, "quickstart", lambda step: None)
    all_four = FIRST.model_copy(update={"cfg_steps": 4})
    assert np.array_equal(still.stylize(picture, all_four, "quickstart", lambda step: None), full)
    assert np.abs(full - found).max() > 0.5


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"cfg_steps": 3, "cfg": 1.0}, "--cfg-steps 3: --cfg 1 is without guidance"),
        ({"cfg_steps": 9}, "--cfg-steps 9: there are 8 steps: give at most 8"),
        ({"cfg_steps": 5, "steps": 4}, "--cfg-steps 5: there are 4 steps"),
        ({"cfg_steps": 0}, "--cfg-steps 0: "),
        ({"cfg_every": 2, "cfg": 1.0}, "--cfg-every 2: --cfg 1 is without guidance"),
        ({"cfg_every": 9}, "--cfg-every 9: there are 8 steps: give at most 8"),
        ({"cfg_every": 0}, "--cfg-every 0: "),
    ],
)
def test_steps_that_cannot_be_guided(more, message):
    picture = Image.new("RGB", (64, 64))
    with pytest.raises(InputError, match=message):
        prepare_images(picture, picture, model=micro(), **more)


def test_a_plan_counts_the_guided_steps(tmp_path):
    picture = Image.new("RGB", (64, 64))
    how = {"model": micro(), "steps": 4, "cfg": 3.0, "device": "cpu"}
    counts = [
        picture_inputs(prepare_images(picture, picture, **how, **fewer))[0]["evaluations"]
        for fewer in (
            {},
            {"cfg_steps": 1},
            {"cfg_steps": 3},
            {"cfg_every": 2},
            {"cfg_steps": 3, "cfg_every": 3},
        )
    ]
    assert counts == [8, 5, 7, 6, 5]
    fewer = {"cfg_steps": 1, "cfg_every": 2}
    stylize_image(picture, picture, tmp_path / "a.png", size=64, **fewer, **how)
    record = read_settings(tmp_path / "a.png")
    assert record["settings"].items() >= fewer.items()
    with Image.open(tmp_path / "a.png") as made:
        assert "CFG steps: 1, CFG every: 2" in made.info["parameters"]
