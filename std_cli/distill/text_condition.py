"""Caption embeddings of a CLIP text tower, which condition the discriminator. STD's reference code
takes OpenCLIP ViT-g/14."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from std_cli.errors import InputError, counted
from std_cli.weights.configs.base import check_config, settings
from std_cli.weights.configs.encoders import TextEncoder
from std_cli.weights.files import (
    FLOATS,
    check_numbers,
    read_object,
    read_tensor_facts,
    stored_tensors,
)


class TextCondition:
    """Captions -> (B, projection_dim) float32 on the CPU: pooled at the end token, projected, not
    normalised (CLIP, Radford et al. 2021, arXiv 2103.00020)."""

    def __init__(self, model: CLIPTextModelWithProjection, tokenizer: CLIPTokenizer) -> None:
        self.model = model.requires_grad_(False).train(False)
        self.tokenizer = tokenizer

    @torch.no_grad()
    def __call__(self, captions: Sequence[str]) -> torch.Tensor:
        tokens = self.tokenizer(
            list(captions), padding="max_length", truncation=True,
            max_length=self.model.config.max_position_embeddings, return_tensors="pt",
        )  # fmt: skip
        embeddings: torch.Tensor = self.model(tokens.input_ids).text_embeds
        return embeddings


def load_text_condition(folder: Path) -> TextCondition:
    """`folder` holds a CLIP or its text tower in transformers' format, weights in
    model.safetensors, and its tokenizer. Raises InputError if it does not.
    """
    wrong = f"{folder} is no CLIP text tower in transformers' format"
    fields = read_object(folder / "config.json")
    weights = folder / "model.safetensors"
    _check_floats(weights)
    if fields.get("model_type") not in ("clip", "clip_text_model"):
        raise InputError(f"{wrong}: model_type in config.json is {fields.get('model_type')!r}")
    # else an empty one is made
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise InputError(
            f"{folder} has no tokenizer (tokenizer.json, or vocab.json and merges.txt): download "
            f"it again"
        )
    try:
        # the whole model; often only its own field tells the width after projection
        if fields["model_type"] == "clip":
            fields = {
                "model_type": "clip_text_model",
                **fields["text_config"],
                "projection_dim": fields["projection_dim"],
            }
        config = CLIPTextConfig(
            **settings(check_config(TextEncoder, fields, str(folder / "config.json")))
        )
        loaded: Any = CLIPTextModelWithProjection.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except InputError:
        raise
    except Exception as error:  # transformers checks configs with exceptions of many kinds
        raise InputError(
            f"{wrong}: its config, weights and tokenizer do not go together: download it again"
        ) from error
    check_numbers(str(weights), stored_tensors(weights))
    model: CLIPTextModelWithProjection = loaded[0]
    if missing := loaded[1]["missing_keys"]:
        raise InputError(f"{wrong}: it lacks {counted(len(missing), 'tensor')}: download it again")
    return TextCondition(model, tokenizer)


def _check_floats(weights: Path) -> None:
    """Raises InputError unless all weights are floating-point numbers: transformers would turn
    integers into such. Older files also hold the positions 0, 1, 2..., which are no weights."""
    for key, (_, dtype) in read_tensor_facts(weights)[0].items():
        if dtype not in FLOATS and not key.endswith("position_ids"):
            raise InputError(
                f"{weights}: the tensor {key} is {dtype}, and weights are floating-point numbers: "
                "download it again"
            )
