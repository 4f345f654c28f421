import os

import pytest
from PIL import Image

from tests.hub import hub  # noqa: F401

# What the command line sets before it imports the libraries, which read it once: here many tests share one process.
QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
}
os.environ.update(QUIET)


@pytest.fixture(scope="module")
def one_thread():
    """Sums on several threads may come out in another order."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def photo():
    from skimage import data

    return Image.fromarray(data.astronaut())


@pytest.fixture
def picture(tmp_path, photo):
    """A small picture file."""
    path = tmp_path / "in.png"
    photo.resize((96, 64)).save(path)
    return path


@pytest.fixture
def reference(tmp_path):
    """A style reference file: red and white stripes."""
    image = Image.new("RGB", (64, 64), "white")
    for x in range(0, 64, 8):
        image.paste("red", (x, 0, x + 4, 64))
    path = tmp_path / "style.png"
    image.save(path)
    return path
