"""Imported once by the server that test_videos forks its children from: the model is loaded before
the fork.

Torch has one thread (see conftest.py), so the fork loses none.
"""

import torch

from std_cli.diffusion.video_pipeline import VideoPipeline
from std_cli.weights.fingerprints import fingerprint
from std_cli.weights.motion import resolve_motion
from std_cli.weights.resolve import resolve_model

_files = resolve_model("tiny")
fingerprint(_files.base)
PIPELINE = VideoPipeline(
    _files, None, torch.device("cpu"), torch.float32, motion=resolve_motion("auto", _files)
)
