"""Measures by CLIP ViT-L/14 (Radford et al. 2021, arXiv 2103.00020) through transformers: agreement
with the prompt, the aesthetic score, and how alike the frames of a clip are."""

from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from std_cli.comparison.measures.base import Measure, Moment, PictureMeasure, Sample
from std_cli.comparison.measures.features import Features, clip_input, cosine
from std_cli.errors import InputError
from std_cli.media.video.clip import Pixels
from std_cli.weights.cache import files_of
from std_cli.weights.files import check_numbers, stored_tensors
from std_cli.weights.loading import loading
from std_cli.weights.pickles import read_pickle

if TYPE_CHECKING:
    from torch import Tensor

SOURCE_WORDS = "a photo"
"""What a content is called where the direction from it to the prompt is taken."""


class Clip:
    """A CLIP with its tokenizer: features of pictures and of words, each of length 1."""

    def __init__(self, folder: Path, device: str) -> None:
        """folder: with a config, a tokenizer's files and model.safetensors, as on the Hub."""
        import torch
        from transformers import CLIPModel, CLIPTokenizer

        weights = folder / "model.safetensors"
        check_numbers(str(weights), stored_tensors(weights))
        with loading("CLIP", folder):
            self._model: Any = CLIPModel.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, local_files_only=True
            )
            self._model.requires_grad_(False).train(False).to(device)
            self._tokenizer: Any = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        self._device = device
        self.picture = Features(self._picture)
        self.words = cache(self._words)

    def _picture(self, picture: Pixels) -> "Tensor":
        side = self._model.config.vision_config.image_size
        seen = self._model.vision_model(clip_input(picture, side)[None].to(self._device))
        return self._model.visual_projection(seen.pooler_output)[0]  # type: ignore[no-any-return]

    def _words(self, text: str) -> "Tensor":
        """(C,) float32 on the CPU; of a long text the first 77 tokens."""
        import torch

        most = self._model.config.text_config.max_position_embeddings
        tokens = self._tokenizer(text, truncation=True, max_length=most, return_tensors="pt")
        with torch.inference_mode():
            read = self._model.text_model(**tokens.to(self._device))
            found: Tensor = self._model.text_projection(read.pooler_output)[0].float().cpu()
        return torch.nn.functional.normalize(found, dim=0)


@cache
def load_clip(folder: Path, device: str) -> Clip:
    """The CLIP of a folder, loaded once for all measures."""
    return Clip(folder, device)


class _ByClip(PictureMeasure):
    """A measure of pictures by CLIP."""

    weights: tuple[str, ...] = ("clip-l",)

    @property
    def clip(self) -> Clip:
        return load_clip(files_of("clip-l")["config.json"].parent, self.device)


class _ByWords(_ByClip):
    """A measure of what the prompt says."""

    def lacks(self, sample: Sample) -> str | None:
        return super().lacks(sample) or (None if sample.prompt else "no prompt was given")


class ClipScore(_ByWords):
    """Agreement of the result with the prompt: 100 times the cosine of their features, at least
    0."""

    name = "clip"
    direction = "higher"
    range = (0.0, 100.0)
    source = "Hessel et al., CLIPScore, 2021 (arXiv 2104.08718), with torchmetrics' factor of 100"

    def of(self, moment: Moment, sample: Sample) -> float:
        clip = self.clip
        return max(0.0, 100 * cosine(clip.picture(moment.result), clip.words(sample.prompt)))


class ClipDirection(_ByWords):
    """Whether the picture changed as the words did: the cosine of the change of its features with
    the change from "a photo" to the prompt."""

    name = "clip-direction"
    direction = "higher"
    range = (-1.0, 1.0)
    source = "Gal et al., StyleGAN-NADA, 2021 (arXiv 2108.00946), eq. 3, as a cosine"

    def of(self, moment: Moment, sample: Sample) -> float:
        clip = self.clip
        return cosine(
            clip.picture(moment.result) - clip.picture(moment.content),
            clip.words(sample.prompt) - clip.words(SOURCE_WORDS),
        )


class Aesthetic(_ByClip):
    """How much people are expected to like the result, about 1 to 10."""

    name = "aesthetic"
    direction = "higher"
    range = (1.0, 10.0)
    source = "LAION aesthetic predictor V2, sac+logos+ava1-l14-linearMSE"
    weights = ("clip-l", "aesthetic")

    def of(self, moment: Moment, sample: Sample) -> float:
        [path] = files_of("aesthetic").values()
        return aesthetic_score(load_head(path), self.clip.picture(moment.result))


Head: TypeAlias = "tuple[tuple[Tensor, Tensor], ...]"
"""Weight (out, in) and bias (out,) of each linear layer, float32."""


@cache
def load_head(path: Path) -> Head:
    """The linear layers of the aesthetic predictor's file, in order; in between there is nothing.

    Raises InputError if it is damaged, or something else.
    """
    tensors = read_pickle(path)
    check_numbers(str(path), tensors.items())
    numbers = sorted({int(key.split(".")[1]) for key in tensors if key.startswith("layers.")})
    try:
        head = tuple(
            (tensors[f"layers.{i}.weight"].float(), tensors[f"layers.{i}.bias"].float())
            for i in numbers
        )
        for (weight, _), (following, _) in pairwise(head):
            if len(weight) != following.shape[1]:
                raise ValueError("its layers do not go together")
        if not head or len(head[-1][0]) != 1:
            raise ValueError("it does not end in one number")
    except (KeyError, ValueError, IndexError) as error:
        raise InputError(
            f"{path} is no aesthetic predictor ({error}): run std models verify --repair aesthetic"
        ) from error
    return head


def aesthetic_score(head: Head, features: "Tensor") -> float:
    """The score of a picture by its CLIP features (C,) of length 1."""
    for weight, bias in head:
        features = weight @ features + bias
    return float(features)


class TemporalClip(Measure):
    """How alike the frames of a clip are to the one before: the mean cosine of their features."""

    name = "temporal-clip"
    direction = "higher"
    range = (-1.0, 1.0)
    source = "frame consistency of Esser et al., Gen-1, 2023 (arXiv 2302.03011)"
    weights = ("clip-l",)
    domain = "clip"

    def __init__(self, device: str = "cpu") -> None:
        super().__init__(device)
        self._before: tuple[int, Tensor] | None = None
        self._cosines: list[float] = []

    def begin(self, sample: Sample) -> None:
        self._before = None
        self._cosines = []

    def accumulate(self, moment: Moment) -> None:
        clip = load_clip(files_of("clip-l")["config.json"].parent, self.device)
        now = moment.shot, clip.picture(moment.result)
        before, self._before = self._before, now
        if before is not None and before[0] == now[0]:
            self._cosines.append(cosine(before[1], now[1]))

    def finalize(self) -> float | None:
        return sum(self._cosines) / len(self._cosines) if self._cosines else None
