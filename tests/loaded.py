"""Imported once by the server that test_clips forks its children from: the model is loaded before the fork."""

import torch

torch.set_num_threads(1)  # no threads yet: a fork would lose them

from std_cli import pipeline  # noqa: E402
from std_cli.fingerprints import fingerprint  # noqa: E402
from std_cli.weights import resolve_model, resolve_motion  # noqa: E402

_files = resolve_model("tiny")
fingerprint(_files.base)
PIPELINE = pipeline.VideoPipeline(
    _files, None, torch.device("cpu"), torch.float32, motion=resolve_motion("auto", _files)
)
