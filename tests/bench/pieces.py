"""Videos in pieces against one process, for several windows, overlaps and steps, bit for bit.

    python -m tests.bench.pieces

Prints for each layout whether the files are equal. On a CPU all are.
"""

import tempfile
from functools import partial
from pathlib import Path

from PIL import Image

from std_cli import Stylizer
from std_cli.spread.finish import finish
from std_cli.spread.run_unit import run_unit, units_folder
from std_cli.spread.saved_request import SavedRequest
from std_cli.spread.units import find_units
from std_cli.stylize import video_run
from tests.spread.test_units import in_one_process, nothing, request_for
from tests.stylize.test_videos import make_clip

LAYOUTS = [
    ((3, 1), {"steps": 2, "steady": 0}),
    ((3, 2), {"steps": 2, "steady": 0.5}),
    ((4, 2), {"steps": 3, "palette": 0.8}),
    ((5, 2), {"steps": 4, "steady": 0}),
    ((4, 0), {"steps": 2, "steady": 0}),
    ((1, 0), {"steps": 1, "motion": "none", "steady": 0}),
]


def main() -> None:
    video_run.SEGMENT = 6
    with tempfile.TemporaryDirectory() as name, Stylizer() as stylizer:
        folder = Path(name)
        style = folder / "style.png"
        Image.linear_gradient("L").convert("RGB").save(style)
        source = make_clip(folder / "in.mp4", 21)
        saved = SavedRequest.of("video", str(source), str(style), "out.mp4", True, {})
        for i, (layout, options) in enumerate(LAYOUTS):
            of = partial(request_for, source, style, layout=layout, **options)
            whole, pieces = folder / f"whole{i}.mp4", folder / f"pieces{i}.mp4"
            in_one_process(of(whole), stylizer)
            request = of(pieces)
            [plan] = find_units(request, 3, saved, nothing)
            for unit in plan.units:
                place = units_folder(pieces) / unit.id
                run_unit(unit, request, place, partial(stylizer.use, request), nothing)
            finish(plan, request, False, False, nothing)
            units = [(unit.first, unit.end, unit.before, unit.after) for unit in plan.units]
            print(layout, options, units, pieces.read_bytes() == whole.read_bytes(), flush=True)


if __name__ == "__main__":
    main()
