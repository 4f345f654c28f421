"""The public function, on the embedded pack, against diffusers itself."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.color import rgb2lab

import std_cli
from std_cli import Stylizer, stylize_image
from std_cli.errors import InputError
from std_cli.media.write_picture import read_metadata
from std_cli.stylize.plan import plan_images
from std_cli.stylize.stages import resized
from std_cli.weights.resolve import TINY, resolve_model
from tests.micro import micro

PALETTE = json.loads((TINY / "std.json").read_text())["i2i"]["palette"]
QUICK = {"steps": 1, "size": 64, "output_size": "model"}
FAST = QUICK | {"model": "tiny"}


@pytest.fixture(scope="module")
def stylizer():
    """The embedded pack, loaded once for the calls that need no model of their own."""
    with Stylizer(model="tiny") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def small():
    """The same with a model of few layers, for what happens around the network."""
    with Stylizer(model=micro()) as loaded:
        yield loaded


def difference(a, b):
    return int(np.abs(np.asarray(a, int) - np.asarray(b, int)).max())


def snippet(image, reference, prompt, negative, n, eta, cfg, seed, blocks=None):
    """The published snippet, on the pack, in fp32 with a seeded CPU generator."""
    from diffusers import StableDiffusionXLImg2ImgPipeline, TCDScheduler

    folder = resolve_model("tiny").base
    pipe = StableDiffusionXLImg2ImgPipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.scheduler = TCDScheduler.from_config(
        pipe.scheduler.config, timestep_spacing="leading", steps_offset=1
    )
    pipe.load_ip_adapter(
        str(folder),
        subfolder="ip_adapter",
        weight_name="ip-adapter-plus_tiny.safetensors",
        image_encoder_folder=None,
    )
    pipe.set_ip_adapter_scale(
        blocks or {"down": 0, "mid": 0, "up": {"block_0": [0, 1, 0], "block_1": 0}}
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        prompt=prompt,
        negative_prompt=negative,
        num_inference_steps=n,
        guidance_scale=cfg,
        strength=eta,
        image=image,
        ip_adapter_image=reference,
        generator=torch.Generator("cpu").manual_seed(seed),
    ).images[0]


@pytest.mark.parametrize(
    ("steps", "eta", "n", "cfg"), [(8, 0.75, 11, 6), (4, 0.95, 5, 2.5), (2, 0.5, 4, 1)]
)
def test_quickstart_equals_the_published_snippet(photo, reference, steps, eta, n, cfg):
    image, style = photo.resize((96, 64)), Image.open(reference).copy()
    want = snippet(image, style, "stick figure", "blurred", n, eta, cfg, 7)
    [got] = stylize_image(
        image,
        style,
        model="tiny",
        size=(96, 64),
        output_size="model",
        prompt="stick figure",
        negative_prompt="blurred",
        steps=steps,
        eta=eta,
        cfg=cfg,
        seed=7,
        schedule="quickstart",
        style_blocks="style",
        palette=0,
        lora="none",
        device="cpu",
        dtype="fp32",
    )
    assert difference(got, want) <= 1


def test_pictures_are_compared_with_their_sources(small, tmp_path, photo, reference):
    """In RGB and with alpha; the half of the result is the result as it is alone."""
    opaque = photo.resize((64, 48))
    clear = opaque.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(opaque.size))
    for source in (opaque, clear):
        before = np.asarray(source)
        [alone] = small.images(source, reference, **QUICK)
        [side] = small.images(
            source, reference, tmp_path / "s.png", compare="side", overwrite=True, **QUICK
        )
        with Image.open(tmp_path / "s.png") as written:
            assert written.size == side.size == (128, 48)
        assert np.array_equal(np.asarray(side)[:, :64], before)
        assert np.array_equal(np.asarray(side)[:, 64:], np.asarray(alone))
        [wipe] = small.images(source, reference, compare="wipe", labels=True, **QUICK)
        assert wipe.size == (64, 48) and (np.asarray(wipe)[:, 32] == 255).all()
        assert np.array_equal(np.asarray(wipe)[20:, :31], before[20:, :31])
        assert np.array_equal(np.asarray(wipe)[20:, 33:], np.asarray(alone)[20:, 33:])
    with pytest.raises(InputError, match="--labels: add --compare"):
        stylize_image(opaque, reference, labels=True, **FAST)


def test_stock_diffusers_loads_the_pack_in_half_precision(photo, reference):
    """No variant argument, and every weight is used: nothing in the pack is of our own making."""
    from diffusers import StableDiffusionXLImg2ImgPipeline

    folder = resolve_model("tiny").base
    pipe = StableDiffusionXLImg2ImgPipeline.from_pretrained(folder, dtype=torch.float16)
    attention = [name.startswith("CrossAttn") for name in pipe.unet.config.down_block_types]
    assert attention == [False, False, True, True]
    assert sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) <= 36e6


@pytest.mark.parametrize(
    ("steps", "eta", "schedule"),
    [(1, 0.01, "quickstart"), (3, 1.0, "aligned"), (40, 0.5, "quickstart")],
)
def test_steps_are_the_steps_that_run(photo, reference, steps, eta, schedule):
    seen = []
    [out] = stylize_image(
        photo,
        reference,
        model=micro(),
        size=64,
        output_size="model",
        steps=steps,
        eta=eta,
        schedule=schedule,
        on_event=lambda e: seen.append(e.get("step")) if e.get("stage") == "picture" else None,
    )
    assert seen == list(range(steps + 1))
    assert out.size == (64, 64)


def test_same_seed_same_picture_and_neighbours_do_not_matter(stylizer, photo, reference):
    a, b = stylizer.images([photo, photo.rotate(90)], str(reference), seed=3, **QUICK)
    [c] = stylizer.images(photo.rotate(90), reference, seed=3, **QUICK)
    [d] = stylizer.images(photo.rotate(90), reference, seed=4, **QUICK)
    assert difference(b, c) == 0
    assert difference(a, b) > 0 and difference(c, d) > 0


def test_weights_of_references_are_normalised(stylizer, photo, reference, tmp_path):
    other = tmp_path / "blue.png"
    Image.new("RGB", (64, 64), "blue").save(other)

    def run(*styles):
        return next(stylizer.images(photo, list(styles), style_scale=2, **QUICK))

    alone, equal = run(str(reference)), run(f"{reference}:1", f"{other}:1")
    assert difference(run(f"{reference}:3", f"{other}:3"), equal) == 0
    assert difference(run(f"{reference}:3"), alone) == 0
    assert difference(equal, alone) > 0
    assert difference(run((reference, 1.0), (other, 1e-9)), alone) <= 1


def test_style_scale_zero_does_not_follow_the_reference(stylizer, photo, reference, tmp_path):
    other = Image.new("RGB", (64, 64), "blue")
    options = QUICK | {"style_scale": 0, "palette": 0}
    a, b = (next(stylizer.images(photo, style, **options)) for style in (reference, other))
    assert difference(a, b) == 0


def test_files_alpha_and_metadata(tmp_path, photo, reference):
    rgba = photo.resize((100, 60)).convert("RGBA")
    rgba.putalpha(Image.linear_gradient("L").resize((100, 60)))
    folder = tmp_path / "fotos ü"
    folder.mkdir()
    rgba.save(folder / "a.png")
    photo.resize((60, 100)).save(folder / "b.jpg")
    events = []
    out = tmp_path / "out"
    results = stylize_image(folder, reference, out, on_event=events.append, seed=5, **FAST)
    assert sorted(p.name for p in out.iterdir()) == ["a_stylized.png", "b_stylized.png"]
    assert [r.mode for r in results] == ["RGBA", "RGB"]
    with Image.open(out / "a_stylized.png") as saved:
        assert saved.mode == "RGBA"
        assert abs(saved.width / saved.height - 100 / 60) < 0.05  # a pixel of 40
    kept = read_metadata(out / "b_stylized.png")
    assert kept["settings"]["seed"] == 5 and kept["settings"]["steps"] == 1
    [style] = kept["settings"]["style"]
    assert (style["name"], style["weight"], len(style["sha256"])) == ("style.png", 1.0, 16)
    assert (
        kept["settings"]["model"]["name"] == "tiny"
        and len(kept["settings"]["model"]["sha256"]) == 16
    )
    assert kept["version"] == std_cli.__version__ and kept["input"] == "b.jpg"
    json.dumps(events)
    kinds = [e["event"] for e in events]
    assert kinds[:2] == ["progress", "start"] and kinds.count("result") == 2


def test_a_model_folder_with_defaults_of_its_own(tmp_path, photo, reference):
    import shutil

    folder = tmp_path / "mine"
    shutil.copytree(resolve_model("tiny").base, folder)
    (folder / "std.json").write_text(
        '{"base_resolution": 64, "size_by": "long_side", "i2i": {"steps": 2, "cfg": 1.0}}'
    )
    steps = []
    [out] = stylize_image(
        photo,
        reference,
        model=str(folder),
        output_size="model",
        on_event=lambda e: steps.append(e["settings"]) if e["event"] == "start" else None,
    )
    assert out.size == (64, 64)
    assert (steps[0]["steps"], steps[0]["cfg"], steps[0]["eta"]) == (2, 1.0, 0.75)
    (folder / "std.json").write_text('{"i2i": {"steps": 0}}')
    with pytest.raises(InputError, match=r"std\.json: steps 0"):
        stylize_image(photo, reference, model=str(folder))


def test_a_lora_changes_the_picture_by_its_scale(tmp_path, photo, reference):
    from diffusers import UNet2DConditionModel
    from safetensors.torch import save_file

    layer = "up_blocks.0.resnets.0.conv1"
    weight = (
        UNet2DConditionModel.from_pretrained(resolve_model("tiny").base, subfolder="unet")
        .get_submodule(layer)
        .weight
    )
    torch.manual_seed(0)
    state = {
        f"unet.{layer}.lora_A.weight": torch.randn(4, weight.shape[1], 3, 3) * 0.3,
        f"unet.{layer}.lora_B.weight": torch.randn(weight.shape[0], 4, 1, 1) * 0.3,
    }
    save_file(state, tmp_path / "x_eta0.85.safetensors", metadata={"schedule": "aligned"})
    lora, events = tmp_path / "x_eta0.85.safetensors", []

    def run(spec, **more):
        return stylize_image(
            photo, reference, lora=spec, on_event=events.append, **{**FAST, **more}
        )[0]

    plain, half, full = run("none"), run(f"{lora}:0.5"), run(str(lora))
    assert difference(half, plain) > 0 and difference(full, half) > 0
    assert not [e for e in events if e["event"] == "notice"], "its eta is taken over"
    assert difference(run(f"{lora}:0", schedule="quickstart", eta=0.25), plain) <= 1
    starts = [e for e in events if e["event"] == "start"]
    assert (
        starts[0]["settings"]["schedule"] == "quickstart"
        and starts[1]["settings"]["schedule"] == "aligned"
    )
    assert starts[0]["settings"]["eta"] == 0.25 and starts[1]["settings"]["eta"] == 0.85
    assert any("trained for 0.85" in e["message"] for e in events if e["event"] == "notice")


def test_settings_that_cannot_be(photo, reference):
    for wrong in (
        {"device": "cuda:99"},
        {"offload": "model", "device": "cpu"},
        {"size": (0, 64)},
        {"seed": -1},
    ):
        with pytest.raises(InputError, match="--" + next(iter(wrong))):
            stylize_image(photo, reference, **{**FAST, **wrong})


@pytest.mark.parametrize(
    ("wanted", "size"),
    [(None, (100, 60)), ("source", (100, 60)), ("model", (64, 38)), ("96x30", (96, 30))],
)
def test_the_result_has_the_size_of_the_source_unless_asked(
    small, tmp_path, photo, reference, wanted, size
):
    """Made larger as frames of videos are: by Lanczos, what is transparent linearly."""
    rgba = photo.resize((100, 60)).convert("RGBA")
    alpha = Image.linear_gradient("L").resize((100, 60))
    rgba.putalpha(alpha)
    for source, kept in ((rgba.convert("RGB"), None), (rgba, alpha)):
        [inner] = small.images(source, reference, **QUICK)
        options = QUICK | {"output_size": wanted}
        [out] = small.images(source, reference, tmp_path / "o.png", overwrite=True, **options)
        assert out.size == size
        larger = resized(np.asarray(inner.convert("RGB")), size)
        assert np.array_equal(np.asarray(out.convert("RGB")), larger)
        if kept is not None:
            assert np.array_equal(np.asarray(out.getchannel("A")), resized(np.asarray(kept), size))
        record = read_metadata(tmp_path / "o.png")["settings"]
        assert record["output_size"] == ([96, 30] if wanted == "96x30" else wanted or "source")
        plan = plan_images(
            source, reference, tmp_path / "p.png", model=micro(), probe=False, **options
        )
        [planned] = plan["inputs"]
        assert (planned["width"], planned["height"]) == size and planned["working"] == [64, 64]


def test_a_large_transparent_picture_keeps_its_own_alpha(small, photo, reference, monkeypatch):
    """Large pictures are made smaller while they are read; what is transparent is not."""
    monkeypatch.setattr("std_cli.media.pictures.LARGE", 10_000)
    rgba = photo.resize((400, 300)).convert("RGBA")
    alpha = Image.effect_noise((400, 300), 90)
    rgba.putalpha(alpha)
    [out] = small.images(rgba, reference, **QUICK | {"output_size": "source"})
    assert out.getchannel("A").tobytes() == alpha.tobytes()


def test_a_size_that_the_format_cannot_hold_is_refused_first(tmp_path, photo, reference):
    for options in ({"output_size": "16384x64"}, {"output_size": "8192x64", "compare": "side"}):
        with pytest.raises(InputError, match=r"16384 pixels long, and \.webp holds 16383"):
            stylize_image(photo, reference, tmp_path / "o.webp", **FAST | options)


def test_the_palette_is_the_references_and_colors_can_be_kept(stylizer, tmp_path, photo):
    """Of two references the mix counts, by their weights and by what is seen of them."""
    red, blue = (Image.new("RGBA", (48, 48), c) for c in ("#c04020", "#2040c0"))
    for picture in (red, blue):  # a light half, and hidden green
        picture.paste("#e8e0d8", (0, 0, 48, 20))
        picture.paste((0, 255, 0, 0), (0, 40, 48, 48))
    styles = [(red, 3.0), (blue, 1.0)]
    options = QUICK | {"steps": 2}
    plain, mixed, own = (
        next(stylizer.images(photo, styles, tmp_path / f"{i}.png", **options, **more))
        for i, more in enumerate([{"palette": 0}, {"palette": 1}, {"keep_colors": True}])
    )
    seen = [np.asarray(picture)[:40, :, :3].reshape(-1, 3) for picture, _ in styles]
    wanted = 0.75 * seen[0].mean(0) + 0.25 * seen[1].mean(0)
    off = [np.abs(np.asarray(p).mean((0, 1)) - wanted).max() for p in (plain, mixed)]
    assert off[1] < 8 < off[0]
    source = photo.resize(own.size)
    chroma = [rgb2lab(np.asarray(p.convert("RGB")))[..., 1:] for p in (source, own, plain)]
    kept, lost = (np.abs(chroma[0] - c).mean() for c in chroma[1:])
    assert kept < 0.5 * lost
    settings = [read_metadata(tmp_path / f"{i}.png")["settings"] for i in range(3)]
    assert [s["palette"] for s in settings] == [0, 1, PALETTE]
    assert [s["keep_colors"] for s in settings] == [False, False, True]
    with Image.open(tmp_path / "2.png") as file:
        assert f"Palette: {PALETTE:g}, Keep colors: True, Version" in file.info["parameters"]


def test_a_palette_of_one_color_makes_no_other_numbers(stylizer, photo):
    """Flat inputs and references of every kind: no NaN, and a picture that can still be seen."""
    flat = [Image.new("RGB", (64, 64), c) for c in ("black", "white", "red")]
    for source, style in [(photo, f) for f in flat] + [(flat[0], photo), (flat[1], flat[2])]:
        [made] = stylizer.images(source, style, palette=1, **QUICK)
        assert made.size == (64, 64) or source is photo
        if source is photo:
            assert np.asarray(made.convert("L")).std() > 2
