"""Perceptual distance of the result to the content: LPIPS 0.1 (Zhang et al. 2018, The Unreasonable
Effectiveness of Deep Features as a Perceptual Metric, arXiv 1801.03924) on VGG16."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from std_cli.comparison.measures.base import Moment, PictureMeasure, Sample
from std_cli.errors import InputError
from std_cli.media.video.clip import Pixels
from std_cli.weights.cache import files_of
from std_cli.weights.files import check_numbers
from std_cli.weights.pickles import read_pickle

if TYPE_CHECKING:
    from torch import Tensor

SMALLEST = 16
"""Pixels of a side, at least: VGG16 halves them four times."""
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Of RGB from -1 to 1: what ImageNet's mean and deviation are there."""
LAYERS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
"""Torchvision's numbers of VGG16's convolutions; each group but the first comes after a pooling,
and its last features are compared."""


class Lpips(PictureMeasure):
    """LPIPS of the result to the content: 0 is the same picture."""

    name = "lpips"
    direction = "lower"
    range = (0.0, 1.0)
    source = "Zhang et al. 2018 (arXiv 1801.03924), version 0.1 on VGG16"
    weights = ("vgg16", "lpips")

    def lacks(self, sample: Sample) -> str | None:
        small = min(sample.result[0].shape[:2]) < SMALLEST
        return super().lacks(sample) or (f"it is smaller than {SMALLEST} pixels" if small else None)

    def of(self, moment: Moment, sample: Sample) -> float:
        [[trunk], [heads]] = (files_of(name).values() for name in self.weights)
        return load_lpips(trunk, heads, self.device).distance(moment.content, moment.result)


@dataclass(frozen=True)
class LpipsNetwork:
    """VGG16's convolutions and the weights of its features."""

    convolutions: "tuple[tuple[tuple[Tensor, Tensor], ...], ...]"
    """Weight and bias, by the groups of LAYERS."""
    heads: "tuple[Tensor, ...]"
    """(1, C, 1, 1) of each group: how much its channels count."""

    def distance(self, picture: Pixels, other: Pixels) -> float:
        """Of two pictures of one size."""
        import torch

        total = 0.0
        with torch.inference_mode():
            for one, two, head in zip(
                self._features(picture), self._features(other), self.heads, strict=True
            ):
                one, two = (x / (x.square().sum(1, keepdim=True) + 1e-8).sqrt() for x in (one, two))
                total += float((head * (one - two).square()).sum(1).mean())
        return total

    def _features(self, picture: Pixels) -> "Iterator[Tensor]":
        """(1, C, h, w) of each group."""
        import torch
        import torch.nn.functional as F

        device = self.heads[0].device
        x = torch.from_numpy(picture.copy()).to(device).permute(2, 0, 1)[None].float() / 127.5 - 1
        shift, scale = (torch.tensor(v, device=device)[:, None, None] for v in (SHIFT, SCALE))
        x = (x - shift) / scale
        for number, group in enumerate(self.convolutions):
            if number:
                x = F.max_pool2d(x, 2)
            for weight, bias in group:
                x = F.relu(F.conv2d(x, weight, bias, padding=1))
            yield x


@cache
def load_lpips(trunk: Path, heads: Path, device: str) -> LpipsNetwork:
    """trunk: torchvision's VGG16. heads: the authors' weights for it. Both are read once.

    Raises InputError if one of them is damaged, or something else.
    """
    features, weights = read_pickle(trunk), read_pickle(heads)
    for path, tensors in ((trunk, features), (heads, weights)):
        check_numbers(str(path), tensors.items())
    try:
        convolutions = tuple(
            tuple(
                (
                    features[f"features.{i}.weight"].float().to(device),
                    features[f"features.{i}.bias"].float().to(device),
                )
                for i in group
            )
            for group in LAYERS
        )
        counts = tuple(
            weights[f"lin{i}.model.1.weight"].float().to(device) for i in range(len(LAYERS))
        )
    except KeyError as error:
        raise InputError(
            f"{trunk} and {heads} are no LPIPS on VGG16 ({error} is missing): run std models "
            f"verify --repair vgg16 lpips"
        ) from error
    if any(
        head.shape != (1, len(group[-1][1]), 1, 1)
        for group, head in zip(convolutions, counts, strict=True)
    ):
        raise InputError(
            f"{heads} is not for the channels of {trunk}: run std models verify --repair vgg16 "
            f"lpips"
        )
    return LpipsNetwork(convolutions, counts)
