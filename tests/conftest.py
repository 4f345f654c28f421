import gc
import os
import signal
import sys
import tempfile

import pytest
from PIL import Image

from std_cli.config import VideoSettings
from std_cli.errors import flags_named
from tests.hub import hub  # noqa: F401

# What the command line sets before it imports the libraries, which read it once: here many tests
# share one process.
QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
}
os.environ.update(QUIET)
# the defaults of whoever runs the tests do not count
os.environ["XDG_CONFIG_HOME"] = os.path.join(tempfile.gettempdir(), "std-tests-have-none")
for name in (*VideoSettings.model_fields, "style", "look"):
    os.environ.pop(f"STD_{name.upper()}", None)
# a suite that a shell starts in the background ignores Ctrl-C, and so would the commands of tests
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# where nothing may be compiled for later, as in many containers, each process would do it again
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# pytest's workers have a core each; sums on several threads may come out in another order, too
os.environ["OMP_NUM_THREADS"] = "1"
# a test that takes more must not keep other workers from their cores while its threads wait
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def pytest_collection_modifyitems(items):
    """The files that take longest are begun first, so that no worker is left alone with one at the
    end."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def pytest_collection_finish():
    freeze_imported()


def pytest_runtest_teardown(nextitem):
    """Tests import more: the compiler, for one, is a third of all objects."""
    if len(sys.modules) - FROZEN["modules"] > 100:
        freeze_imported()


FROZEN = {"modules": 0}


def freeze_imported():
    """What the imports made stays: the garbage collections of runs need not go through it."""
    gc.collect()
    gc.freeze()
    FROZEN["modules"] = len(sys.modules)


@pytest.fixture(autouse=True)
def flags_in_messages(request):
    """Messages as the command line words them; a test marked `parameters` reads Python's."""
    if request.node.get_closest_marker("parameters"):
        yield
        return
    with flags_named():
        yield


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
