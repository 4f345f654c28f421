"""Optical flow by RAFT (Teed and Deng 2020, arXiv 2003.12039) through torchvision, which is an
extra."""

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from std_cli.media.measures import resized
from std_cli.media.video.clip import Pixels
from std_cli.media.video.flow import SIDES, Floats, Flow
from std_cli.weights.cache import files_here
from std_cli.weights.files import check_numbers
from std_cli.weights.loading import loading
from std_cli.weights.pickles import read_pickle

if TYPE_CHECKING:
    from torch import Tensor

SMALLEST = 128
"""Pixels of a side: RAFT's features are an eighth of it, and are halved three times."""
MULTIPLE = 8


def raft_available() -> bool:
    """Whether torchvision is installed and RAFT's weights are here."""
    return find_spec("torchvision") is not None and bool(files_here("raft"))


@cache
def load_raft(path: Path, device: str) -> "Raft":
    """The network of torchvision's file, loaded once. Raises InputError if it is damaged."""
    from torchvision.models.optical_flow import raft_large

    tensors = read_pickle(path)
    check_numbers(str(path), ((name, x) for name, x in tensors.items() if x.is_floating_point()))
    with loading("RAFT", path):
        network = raft_large(weights=None, progress=False)
        network.load_state_dict(tensors)
    return Raft(network.requires_grad_(False).train(False).to(device), device)


class Raft:
    """The same as `Flow`, of RGB frames by RAFT."""

    def __init__(self, network: Any, device: str) -> None:
        """network: torchvision's RAFT, ready."""
        self._network = network
        self._device = device

    def flow_back(self, before: Pixels, now: Pixels) -> tuple[Floats, Floats]:
        """(coords, error) as of `Flow.flow_back`, of two frames (H, W, 3)."""
        height, width = now.shape[:2]
        small_before, small_now = (self._input(x) for x in (before, now))
        back = self._displacement(small_now, small_before)
        forward = self._displacement(small_before, small_now)
        return Flow().followed(back, forward, width, height)

    def _input(self, frame: Pixels) -> "Tensor":
        """(1, 3, h, w) from -1 to 1; the longer side has at most that of `Flow`, and both are
        multiples of 8."""
        import torch

        scale = min(1.0, SIDES[1] / max(frame.shape[:2]))
        height, width = (
            max(SMALLEST, round(side * scale / MULTIPLE) * MULTIPLE) for side in frame.shape[:2]
        )
        pixels = torch.from_numpy(resized(frame, width, height).copy()).to(self._device)
        return pixels.permute(2, 0, 1)[None].float() / 127.5 - 1

    def _displacement(self, one: "Tensor", other: "Tensor") -> Floats:
        """From `one` to `other`, (h, w, 2), by the last of its iterations."""
        import torch

        with torch.inference_mode():
            found = self._network(one, other)[-1]
        return np.asarray(found[0].permute(1, 2, 0).cpu().numpy(), np.float32)
