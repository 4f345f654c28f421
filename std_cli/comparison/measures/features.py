"""What the networks of measures see of a picture, and their features, each computed once."""

from collections.abc import Callable
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from std_cli.media.video.clip import Pixels

if TYPE_CHECKING:
    from torch import Tensor

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the pictures that CLIP was trained on, RGB from 0 to 1."""
KEPT = 512
"""Features that are kept of one network."""


def clip_input(picture: Pixels, side: int) -> "Tensor":
    """The picture as CLIP's authors prepare it, (3, side, side): its shorter side is scaled to
    `side` (bicubic), its middle is cut out, its colours are normalised.

    What lies outside of the middle square is not seen.
    """
    import torch

    image = Image.fromarray(picture)
    width, height = image.size
    shorter = min(width, height)
    size = (int(side * width / shorter), int(side * height / shorter))
    image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = round((size[0] - side) / 2), round((size[1] - side) / 2)
    square = np.asarray(image.crop((left, top, left + side, top + side)))
    pixels = torch.from_numpy(square.copy()).permute(2, 0, 1).float() / 255
    return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


class Features:
    """The features of pictures by a network. Those of the last KEPT pictures are kept, because
    references and results are seen by several measures and in several cells."""

    def __init__(self, network: Callable[[Pixels], "Tensor"]) -> None:
        """network: the features of one picture, (C,)."""
        self._network = network
        self._kept: dict[tuple[tuple[int, ...], bytes], Tensor] = {}

    def __call__(self, picture: Pixels) -> "Tensor":
        """(C,) float32 of length 1, on the CPU."""
        import torch

        digest = blake2b(np.ascontiguousarray(picture).tobytes(), digest_size=16).digest()
        key = picture.shape, digest
        if key not in self._kept:
            if len(self._kept) >= KEPT:
                del self._kept[next(iter(self._kept))]
            with torch.inference_mode():
                found = self._network(picture).float().cpu()
            self._kept[key] = torch.nn.functional.normalize(found, dim=0)
        return self._kept[key]


def cosine(one: "Tensor", other: "Tensor") -> float:
    """Of two vectors; 0 where one of them is 0."""
    import torch

    return float(torch.nn.functional.cosine_similarity(one.double(), other.double(), dim=0))
