"""What --compile does to the networks: traced as for a GPU, without the last stage of the compiler,
which takes minutes."""

import pytest
import torch
from PIL import Image

from std_cli.config import ImageSettings
from std_cli.diffusion.compiled import compile_networks
from std_cli.diffusion.video_pipeline import VideoPipeline
from std_cli.weights.motion import resolve_motion
from std_cli.weights.resolve import resolve_model
from tests.micro import micro


def test_compiled_blocks_keep_the_style_and_are_given_up_offloaded(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    files, cpu = resolve_model(micro()), torch.device("cpu")
    video = VideoPipeline(files, None, cpu, torch.float32, motion=resolve_motion("auto", files))
    s = ImageSettings(model=micro(), prompt="", negative_prompt="", steps=2, style_blocks="all")
    window = torch.randn(1, 4, 4, 16, 16, generator=torch.Generator().manual_seed(0))

    def predicted(color: str) -> torch.Tensor:
        video.set_style([Image.new("RGB", (64, 64), color)], [1.0], 1.0, "all")
        conditions = video.prepare(s, "quickstart", (64, 64))
        return video.predict(conditions, window, [0], [range(4)])

    red, blue, picture = predicted("red"), predicted("blue"), video.decode(window[0, :, 0])
    assert (red - blue).abs().max() > 1e-4
    torch._dynamo.utils.counters.clear()
    compile_networks(video.pipe, cpu, backend="eager")
    compiled = [m for m in video.pipe.unet.modules() if m._compiled_call_impl is not None]
    kinds = {type(m).__name__ for m in compiled}
    assert kinds == {"BasicTransformerBlock", "ResnetBlock2D"}
    temporal = [n for n, m in video.pipe.unet.named_modules() if m in compiled and "motion" in n]
    assert temporal != []
    torch.testing.assert_close(predicted("red"), red, rtol=0, atol=1e-5)
    torch.testing.assert_close(predicted("blue"), blue, rtol=0, atol=1e-5)
    assert abs(video.decode(window[0, :, 0]) - picture).max() < 1e-2
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 3

    monkeypatch.setattr("std_cli.diffusion.out_of_memory.enable_offload", lambda *a: None)
    video.savings.restore({"tile": None, "offload": "model", "compiled": True})
    assert all(m._compiled_call_impl is None for m in video.pipe.unet.modules())
    assert torch.equal(predicted("red"), red)


def test_a_compiler_that_fails_is_given_up_with_its_reason(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    files, cpu = resolve_model(micro()), torch.device("cpu")
    video = VideoPipeline(files, None, cpu, torch.float32)
    s = ImageSettings(model=micro(), prompt="", negative_prompt="", steps=2, style_blocks="all")
    video.set_style([Image.new("RGB", (64, 64), "red")], [1.0], 1.0, "all")
    conditions = video.prepare(s, "quickstart", (64, 64))
    windows = torch.randn(2, 4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    said: list[str] = []
    video.on_notice = said.append

    def predicted() -> torch.Tensor:
        return video.predict(conditions, windows, [0, 1], [range(1), range(1, 2)])

    def broken(graph: object, inputs: object) -> None:
        raise FileNotFoundError("compiling:\nerror: no such program: 'ptxas'")

    whole = predicted()
    compile_networks(video.pipe, cpu, backend=broken)  # type: ignore[arg-type]
    video.savings.compiled = True
    assert torch.equal(predicted(), whole)
    reason = "FileNotFoundError: error: no such program: 'ptxas'"
    assert said == [f"--compile failed, continuing without it, slower: {reason}"]
    assert torch.equal(predicted(), whole) and len(said) == 1
    assert not video.savings.state()["compiled"]

    resumed = VideoPipeline(files, None, cpu, torch.float32)
    compile_networks(resumed.pipe, cpu, backend=broken)  # type: ignore[arg-type]
    resumed.savings.compiled = True
    resumed.savings.restore(video.savings.state())
    assert all(m._compiled_call_impl is None for m in resumed.pipe.unet.modules())

    def wrong(*arguments: object, **options: object) -> None:
        raise ValueError("not of the compiler")

    monkeypatch.setattr(video.pipe.unet, "forward", wrong)
    video.savings.compiled = True
    with pytest.raises(ValueError, match="not of the compiler"):
        predicted()
