"""What several tests of training share: data, and one whole run."""

import json

import av
import numpy as np
import pytest
from PIL import Image

from std_cli.distill import dataset
from std_cli.distill.train import distill
from tests.distill.runs import a_config


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    rows = []
    for i in range(6):
        small = np.random.default_rng(i).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(small).resize((96, 72), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
        rows.append(json.dumps({"file_name": f"{i}.png", "text": f"number {i}"}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    return folder


@pytest.fixture(scope="session")
def clips(tmp_path_factory):

    folder = tmp_path_factory.mktemp("clips")
    for i in range(2):
        wide = np.random.default_rng(i).integers(0, 256, (6, 12, 3), dtype=np.uint8)
        wide = np.asarray(Image.fromarray(wide).resize((144, 72), Image.Resampling.BICUBIC))
        with av.open(str(folder / f"{i}.mp4"), "w") as file:
            stream = file.add_stream("libx264", rate=12)
            stream.width, stream.height, stream.pix_fmt, stream.thread_count = 96, 72, "yuv420p", 1
            for k in range(8):
                rgb = np.ascontiguousarray(wide[:, 4 * k : 4 * k + 96])
                file.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, "rgb24")))
            file.mux(stream.encode())
        (folder / f"{i}.txt").write_text(f"clip {i}")
    return folder


@pytest.fixture(scope="session")
def whole(pictures, tmp_path_factory):
    """An uninterrupted run of 4 updates, its folder and events."""
    folder, events = tmp_path_factory.mktemp("runs") / "whole", []
    reads = []
    with pytest.MonkeyPatch.context() as patch:
        read = dataset.read_picture
        patch.setattr(dataset, "read_picture", lambda *what: reads.append(what) or read(*what))
        distill(a_config(pictures, folder), on_event=events.append)
    return folder, [*events[:-1], events[-1] | {"reads": len(reads)}]
