"""Slices of pictures: the plain diffusers snippet, and std's own path."""

import statistics
import time
from collections.abc import Iterator
from functools import partial

from PIL import Image

from tests.bench.gpu import machine
from tests.bench.gpu.bench import Bench, photo
from tests.bench.gpu.machine import DTYPES
from tests.bench.gpu.rows import Facts, Goal, Row
from tests.bench.gpu.scale import Scale

GUIDED_GOAL = Goal("seconds", 0.35)
FEW_GOAL = Goal("seconds", 0.15)


def kinds(scale: Scale) -> list[tuple[str, int, float, Goal]]:
    """(name, steps, CFG, goal) of the two ways to make a picture."""
    guided, few = scale.guided_steps, scale.few_steps
    return [
        (f"{guided} steps, CFG 6", guided, 6.0, GUIDED_GOAL),
        (f"{few} steps, no CFG", few, 1.0, FEW_GOAL),
    ]


def plain_rows(bench: Bench) -> Iterator[Row]:
    """The snippet as a user would write it."""
    for name, steps, cfg, _ in kinds(bench.scale):
        yield Row(f"{name}, fp16", partial(_plain, bench, steps, cfg))


def own_rows(bench: Bench) -> Iterator[Row]:
    for dtype in ("fp16", "bf16"):
        for name, steps, cfg, goal in kinds(bench.scale):
            yield Row(f"{name}, {dtype}", partial(own, bench, steps, cfg, dtype), goal)
    for batch in bench.scale.batches[1:]:
        # a picture after the other is all that std's functions do: the row says so, with what a
        # picture takes in a request of so many
        name, steps, cfg, _ = kinds(bench.scale)[1]
        yield Row(f"{name}, fp16, {batch} pictures", partial(_several, bench, steps, cfg, batch))


def guidance_rows(bench: Bench) -> Iterator[Row]:
    """Pictures with guidance at less work."""
    name, steps, cfg, _ = kinds(bench.scale)[0]
    for guided, every in ((None, 1), (max(1, steps // 2), 1), (None, 2)):
        title = name if guided is None else f"{name}, --cfg-steps {guided}"
        title += f", --cfg-every {every}" if every > 1 else ""
        yield Row(title, partial(_guided, bench, steps, cfg, guided, every))


def _guided(bench: Bench, steps: int, cfg: float, guided: int | None, every: int) -> Facts:
    side, spent = bench.scale.side, []
    stylizer = bench.stylizer(dtype=bench.runs_in("fp16"), compile=False, offload="none")
    for _ in stylizer.images(
        bench.photos(1 + bench.scale.pictures),
        bench.style,
        steps=steps,
        cfg=cfg,
        cfg_steps=guided,
        cfg_every=every,
        size=(side, side),
        output_size="model",
        on_event=lambda e: spent.append(e["seconds"]) if e["event"] == "result" else None,
    ):
        pass
    evaluations = steps + len(range(0, steps if guided is None else guided, every))
    return {"seconds": statistics.median(spent[1:]), "evaluations": evaluations}


def compiled_rows(bench: Bench) -> Iterator[Row]:
    for name, steps, cfg, goal in kinds(bench.scale):
        yield Row(
            f"{name}, fp16, --compile", partial(own, bench, steps, cfg, "fp16", compile=True), goal
        )


def lora_rows(bench: Bench) -> Iterator[Row]:
    """The same picture twice, loaded each time: `first` says what it takes to fuse a LoRA."""
    name, steps, cfg, _ = kinds(bench.scale)[1]
    yield Row(f"{name}, fp16, without", partial(_loaded, bench, steps, cfg, "none"))
    yield Row(f"{name}, fp16, a LoRA", partial(_loaded, bench, steps, cfg, "random"))


def _loaded(bench: Bench, steps: int, cfg: float, lora: str) -> Facts:
    bench.close()
    return own(bench, steps, cfg, "fp16", lora=lora if lora == "none" else str(bench.lora))


def style_rows(bench: Bench) -> Iterator[Row]:
    name, steps, cfg, _ = kinds(bench.scale)[1]
    yield Row(f"{name}, fp16, a second style", partial(_second_style, bench, steps, cfg))


def _second_style(bench: Bench, steps: int, cfg: float) -> Facts:
    """A Stylizer keeps its weights and gets another reference."""
    side = bench.scale.side
    stylizer = bench.stylizer(dtype=bench.runs_in("fp16"), compile=False, offload="none")
    look = {"steps": steps, "cfg": cfg, "size": (side, side), "output_size": "model"}

    def seconds(style: Image.Image) -> float:
        begin = time.perf_counter()
        for _ in stylizer.images(bench.photos(1), style, **look):
            pass
        return time.perf_counter() - begin

    seconds(bench.style)
    same = statistics.median(seconds(bench.style) for _ in range(bench.scale.pictures))
    others = [photo(bench.style.width, 100 + i) for i in range(bench.scale.pictures)]
    other = statistics.median(map(seconds, others))
    return {
        "seconds": round(other, 4),
        "with the same style": round(same, 4),
        "note": "a request of one picture, from call to result",
    }


def own(
    bench: Bench,
    steps: int,
    cfg: float,
    dtype: str,
    compile: bool = False,
    offload: str = "none",
    lora: str = "none",
) -> Facts:
    """Pictures one after the other through one Stylizer."""
    side, guided = bench.scale.side, cfg > 1
    spent: list[float] = []
    begin = time.perf_counter()
    first = 0.0
    load = {"dtype": bench.runs_in(dtype), "compile": compile, "offload": offload, "lora": lora}
    stylizer = bench.stylizer(**load)
    with machine.Peak(bench.device) as peak:
        pictures = stylizer.images(
            bench.photos(1 + bench.scale.pictures),
            bench.style,
            steps=steps,
            cfg=cfg,
            size=(side, side),
            output_size="model",
            on_event=lambda e: spent.append(e["seconds"]) if e["event"] == "result" else None,
        )
        for _ in pictures:
            first = first or time.perf_counter() - begin
    seconds = statistics.median(spent[1:])
    needs = bench.picture_needs(side, guided, offload)
    return {
        "seconds": seconds,
        "first": round(first, 2),
        **bench.speed(bench.picture_flop(side, steps, guided), seconds, dtype),
        **peak.facts(needs.needed(bench.runs_in(dtype), offload, 1)),
    }


def _several(bench: Bench, steps: int, cfg: float, batch: int) -> Facts:
    """A request of several pictures, which std makes one by one."""
    side = bench.scale.side
    stylizer = bench.stylizer(dtype=bench.runs_in("fp16"), compile=False, offload="none")
    look = {"steps": steps, "cfg": cfg, "size": (side, side), "output_size": "model"}
    for _ in stylizer.images(bench.photos(1), bench.style, **look):
        pass
    begin = time.perf_counter()
    with machine.Peak(bench.device) as peak:
        for _ in stylizer.images(bench.photos(batch), bench.style, **look):
            pass
    seconds = (time.perf_counter() - begin) / batch
    return {
        "seconds": round(seconds, 4),
        **bench.speed(bench.picture_flop(side, steps, cfg > 1), seconds, "fp16"),
        **peak.facts(),
        "note": "std stylizes pictures one by one; seconds of each",
    }


def _plain(bench: Bench, steps: int, cfg: float) -> Facts:
    from diffusers import StableDiffusionXLImg2ImgPipeline, TCDScheduler

    bench.close()
    begin = time.perf_counter()
    dtype = DTYPES[bench.runs_in("fp16")]
    pipe = StableDiffusionXLImg2ImgPipeline.from_pretrained(bench.model, dtype=dtype)
    pipe.to(bench.device)
    pipe.scheduler = TCDScheduler.from_config(
        pipe.scheduler.config, timestep_spacing="leading", steps_offset=1
    )
    pipe.load_ip_adapter(
        str(bench.model),
        subfolder="ip_adapter",
        weight_name=next((bench.model / "ip_adapter").glob("*.safetensors")).name,
        image_encoder_folder=None,
    )
    pipe.set_ip_adapter_scale({"down": 0, "mid": 0, "up": {"block_0": [0, 1, 0], "block_1": 0}})
    pipe.set_progress_bar_config(disable=True)
    side, spent = bench.scale.side, []
    first = 0.0
    with machine.Peak(bench.device) as peak:
        for picture in bench.photos(1 + bench.scale.pictures):
            start = time.perf_counter()
            pipe(
                prompt="a picture",
                negative_prompt="blurry",
                # of which strength leaves the last three quarters
                num_inference_steps=-(-steps * 4 // 3),
                guidance_scale=cfg,
                strength=0.75,
                image=picture,
                ip_adapter_image=bench.style,
            )
            machine.synchronize(bench.device)
            spent.append(time.perf_counter() - start)
            first = first or time.perf_counter() - begin
    del pipe
    seconds = statistics.median(spent[1:])
    return {
        "seconds": round(seconds, 4),
        "first": round(first, 2),
        **bench.speed(bench.picture_flop(side, steps, cfg > 1), seconds, "fp16"),
        **peak.facts(),
    }
