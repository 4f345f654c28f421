"""The Python API: one loaded model, typed options, messages in a caller's words, cancelling."""

import inspect
import logging
import os
import subprocess
import sys
import threading
import typing
import warnings

import numpy as np
import pytest

import std_cli
from std_cli import Cancelled, InputError, Stylizer, read_settings, stylize_image
from std_cli.config import ImageSettings, VideoSettings
from std_cli.errors import in_callers_words
from std_cli.stylize import options
from tests.micro import micro
from tests.stylize.test_videos import make_clip

LOOK = dict(steps=1, size=64, output_size="model", cfg=1)


@pytest.fixture(scope="module")
def stylizer():
    with Stylizer(model=micro()) as made:
        yield made


def loads(events):
    return sum(e["event"] == "progress" and e["stage"] == "load" for e in events)


def test_a_model_is_loaded_once_and_results_are_as_of_single_calls(stylizer, photo, reference):
    events = []
    other = np.full((48, 64, 3), (200, 30, 30), np.uint8)
    calls = [(reference, {}), (other, {"seed": 3}), (reference, {"style_scale": 0.5, "eta": 0.5})]
    results = [
        list(stylizer.images(photo, style, on_event=events.append, **LOOK, **more))
        for style, more in calls
    ]
    assert loads(events) == 1

    for [result], (style, more) in zip(results, calls, strict=True):
        [alone] = stylize_image(photo, style, model=micro(), **LOOK, **more)
        assert result.tobytes() == alone.tobytes()


def test_what_changes_between_calls_counts(stylizer, photo, reference, monkeypatch):
    """Another shape of equal bytes is another style; an interrupted change of style is not kept."""
    bars = np.zeros((32, 64, 3), np.uint8)
    bars[:, :32] = (250, 200, 20)
    wide, tall = bars, bars.reshape(64, 32, 3)
    found = [stylizer.image(photo, style, **LOOK).tobytes() for style in (wide, tall)]
    [alone] = stylize_image(photo, tall, model=micro(), **LOOK)
    assert found[1] == alone.tobytes() != found[0]

    pipeline = stylizer._loaded.pipeline
    encode = pipeline.pipe.prepare_ip_adapter_image_embeds
    with monkeypatch.context() as patch:
        patch.setattr(pipeline.pipe, "prepare_ip_adapter_image_embeds", None)
        with pytest.raises(InputError):  # as a model whose weights do not run
            stylizer.image(photo, reference, style_scale=4, **LOOK)
    assert pipeline.pipe.prepare_ip_adapter_image_embeds == encode
    assert stylizer.image(photo, tall, **LOOK).tobytes() == found[1]


def test_one_picture_is_one(stylizer, tmp_path, photo, reference):
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.png"):
        photo.resize((32, 32)).save(tmp_path / "in" / name)
    with pytest.raises(InputError, match="one picture, and 2"):
        stylizer.image(tmp_path / "in", reference, **LOOK)


def test_a_second_call_loads_nothing(photo, reference, monkeypatch):
    """No file of weights is opened and no module imported; the time is what is left: the figures
    are those of `python -m tests.bench.api`."""
    with Stylizer(model="tiny") as stylizer:
        first = stylizer.image(photo, reference, **LOOK)
        pipeline, modules = stylizer._loaded.pipeline, set(sys.modules)

        def refuse(*args, **options):
            raise AssertionError("loaded again")

        monkeypatch.setattr("std_cli.stylize.stylizer.load_pipeline", refuse)
        monkeypatch.setattr("std_cli.stylize.stylizer.set_style", refuse)
        second = stylizer.image(photo, reference, **LOOK)
        assert stylizer._loaded.pipeline is pipeline and set(sys.modules) == modules
    assert first.tobytes() == second.tobytes()


def test_threads_wait_for_each_other(stylizer, photo, reference):
    styles = [reference, np.zeros((32, 32, 3), np.uint8)]
    expected = [stylizer.image(photo, style, **LOOK).tobytes() for style in styles]
    found, errors = {}, []

    def work(i):
        try:
            found[i] = stylizer.image(photo, styles[i % 2], **LOOK).tobytes()
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and all(found[i] == expected[i % 2] for i in range(10))


def test_pictures_and_videos_by_one_object(tmp_path, photo, reference):
    clip = make_clip(tmp_path / "in.mp4", frames=3)
    events = []
    with Stylizer(model=micro()) as stylizer:
        [result] = stylizer.video(
            clip, reference, tmp_path / "out.mp4", on_event=events.append, **LOOK
        )
        picture = next(stylizer.images(photo, reference, tmp_path / "out.png", **LOOK))
    assert result["frames"] == 3 and result["output"] == str(tmp_path / "out.mp4")
    kept = read_settings(tmp_path / "out.png")
    assert kept["settings"]["steps"] == 1 and picture.size == (64, 64)
    assert read_settings(str(tmp_path / "out.mp4"))["frames"] == 3
    assert read_settings(clip) is None
    with pytest.raises(InputError, match="no such file"):
        read_settings(tmp_path / "none.mp4")


def test_a_cancelled_run_leaves_nothing_half_written(stylizer, tmp_path, photo, reference):
    cancel, out = threading.Event(), tmp_path / "out.png"

    def on_event(event):
        if event["event"] == "progress" and event.get("step") == 1:
            cancel.set()

    with pytest.raises(Cancelled):
        list(
            stylizer.images(
                photo, reference, out, on_event=on_event, cancel=cancel, steps=3, size=64
            )
        )
    assert list(tmp_path.glob("*out*")) == []

    class Stop(Exception):
        pass

    def stop(event):
        raise Stop

    with pytest.raises(Stop):
        list(stylizer.images(photo, reference, out, on_event=stop, **LOOK))
    assert stylizer.image(photo, reference, **LOOK).size == (64, 64)


def test_a_cancelled_video_resumes(tmp_path, reference, monkeypatch):
    monkeypatch.setattr("std_cli.stylize.video_run.SEGMENT", 2)
    clip, out, cancel = make_clip(tmp_path / "in.mp4", frames=8), tmp_path / "out.mp4", None
    cancel = threading.Event()

    def on_event(event):
        if event["event"] == "progress" and event["stage"] == "video" and event["frame"] >= 4:
            cancel.set()

    with Stylizer(model=micro(), motion="none") as stylizer:
        with pytest.raises(Cancelled):
            stylizer.video(clip, reference, out, on_event=on_event, cancel=cancel, **LOOK)
        assert not out.exists()
        [result] = stylizer.video(clip, reference, out, **LOOK)
    assert result["frames"] == 8 and result["resumed"] >= 2


@pytest.mark.parameters
def test_errors_speak_of_parameters(photo, reference, tmp_path):
    with pytest.raises(InputError, match=r"^style_scale 7: "):
        stylize_image(photo, reference, model="tiny", style_scale=7)
    with pytest.raises(InputError, match=r"^dtype 'half'|^dtype half"):
        Stylizer(model="tiny", dtype="half")
    with pytest.raises(InputError, match=r"^lora "):
        stylize_image(photo, reference, model="tiny", lora=str(tmp_path / "none.safetensors"))
    (tmp_path / "there.png").write_bytes(b"")
    with pytest.raises(InputError, match="overwrite=True"):
        stylize_image(photo, reference, tmp_path / "there.png", model="tiny")


@pytest.mark.parameters
def test_the_words_of_messages():
    def words(message):
        return in_callers_words(message, {"ip_adapter", "resume", "style"})

    assert words("--ip-adapter plain: no") == "ip_adapter plain: no"
    assert words("-o x.png: give --no-resume") == "output x.png: give resume=False"
    for text in ("run std models verify --repair sdxl", "a--style", "--- x", "in my--style.png"):
        assert words(text) == text


@pytest.mark.parametrize(
    ("typed", "settings"),
    [(options.ImageOptions, ImageSettings), (options.VideoOptions, VideoSettings)],
)
def test_typed_options_are_the_settings(typed, settings):
    hints = typing.get_type_hints(typed)
    assert set(hints) == set(settings.model_fields)
    for name, field in settings.model_fields.items():
        wanted = set(typing.get_args(field.annotation)) or {field.annotation}
        if typing.get_origin(field.annotation) is typing.Literal:
            wanted = {field.annotation}
        wanted = {  # without the bounds of numbers
            typing.get_args(kind)[0] if typing.get_origin(kind) is typing.Annotated else kind
            for kind in wanted
        }
        assert wanted <= {*typing.get_args(hints[name])}, name


def test_signatures_list_every_option():
    for function, kind in (
        (std_cli.stylize_image, ImageSettings),
        (std_cli.stylize_images, ImageSettings),
        (std_cli.stylize_video, VideoSettings),
    ):
        parameters = inspect.signature(function).parameters
        assert set(kind.model_fields) <= set(parameters)
        assert parameters["eta"].default == 0.75 and parameters["eta"].annotation == float | None
        assert not any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def test_what_the_caller_set_is_as_before(stylizer, photo, reference):
    logger = logging.getLogger("diffusers")
    before = logger.level, logging.root.manager.disable, warnings.filters[:]
    stylizer.image(photo, reference, **LOOK)
    assert (logger.level, logging.root.manager.disable, warnings.filters[:]) == before


REFUSED = """
import sys
from std_cli import InputError, Stylizer
try:
    Stylizer(model="tiny").image("no.png", "no.png")
except InputError as e:
    print(e)
assert not {"torch", "diffusers", "transformers"} & set(sys.modules)
"""
LOADED = """
import os, sys
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from std_cli import stylize_image
before = dict(os.environ)
picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)

def stylize(**how):
    [out] = stylize_image(picture, picture, model=sys.argv[1], size=32, steps=1, **how)
    return out.tobytes()

with ThreadPoolExecutor(3) as threads:
    results = [done.result() for done in [threads.submit(stylize) for _ in range(3)]]
assert results.count(results[0]) == 3
assert not {name for name in os.environ.keys() - before if "VERBOSITY" in name or "TQDM" in name}
import diffusers.utils.logging, transformers.utils.logging, logging
for library in (diffusers, transformers):
    assert library.utils.logging.get_verbosity() == logging.WARNING
    assert library.utils.logging.is_progress_bar_enabled()
print("silent until here", file=sys.stderr, flush=True)
stylize(verbose=True)
"""


def python(code, *arguments):
    quiet = ("VERBOSITY", "PROGRESS", "TQDM")
    environment = {k: v for k, v in os.environ.items() if not any(word in k for word in quiet)}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True
    )


def test_what_is_wrong_is_found_before_anything_heavy_is_imported():
    done = python(REFUSED)
    assert done.returncode == 0 and done.stdout.startswith("no such file"), done.stderr


def test_several_threads_load_at_once_and_the_libraries_are_silent_unless_asked():
    """In a process of its own, as what is imported once is neither imported at once nor loud."""
    done = python(LOADED, micro())
    silent, _, verbose = done.stderr.partition("silent until here\n")
    assert (done.returncode, done.stdout, silent) == (0, "", "")
    assert verbose  # of the processors without torchvision, for one


@pytest.mark.parameters
def test_options_at_the_wrong_place(stylizer, photo, reference, tmp_path):
    with pytest.raises(InputError, match="^lora: is said when a Stylizer is made"):
        stylizer.image(photo, reference, lora="none")
    with pytest.raises(InputError, match="^device: is said"):
        stylizer.video(tmp_path / "in.mp4", reference, device="cpu")
    with pytest.raises(InputError, match="^etta: there is no such option"):
        stylize_image(photo, reference, etta=0.5)


@pytest.mark.parametrize("given, rests", [({}, True), ({"OMP_WAIT_POLICY": "ACTIVE"}, False)])
def test_threads_that_wait_leave_the_cores_to_others_unless_the_user_says_otherwise(given, rests):
    """In a process of its own, as OpenMP reads its variables when torch is loaded."""
    code = (
        "import os, sys; from std_cli import Stylizer; Stylizer(); "
        "print('GOMP_SPINCOUNT' in os.environ, 'torch' in sys.modules)"
    )
    inherited = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, env=inherited | given, capture_output=True, text=True)
    assert found.stdout.split() == [str(rests), "False"], found.stderr
