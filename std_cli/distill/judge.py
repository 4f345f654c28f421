"""The discriminator's side of training: one object from pixels to its own update."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from std_cli.distill.augment import augment, prepare
from std_cli.distill.discriminator import (
    AdversarialLoss,
    Discriminator,
    PenaltyWeight,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
)
from std_cli.distill.text_condition import TextCondition
from std_cli.weights.dino import Dino


@dataclass(frozen=True)
class Seen:
    """The discriminator's inputs for B' pictures; of a clip several frames are pictures."""

    fake: list[Tensor]
    """Features of the student's pictures, one (B', T, C) per head; gradients reach the student."""
    real: list[Tensor]
    """Features of the real pictures, without gradients."""
    text: Tensor
    """(B', condition_dim) float32, the embedding of each picture's caption."""


class Judge:
    """The discriminator with its frozen features, its text condition, its losses and optimizer."""

    def __init__(
        self,
        features: Dino,
        text: TextCondition | None,
        network: Discriminator,
        optimizer: torch.optim.Optimizer,
        *,
        loss: AdversarialLoss,
        penalty: float,
        frames: int,
    ) -> None:
        """text: embeds captions in place of SDXL's pooled embedding, if given.

        penalty: the first weight of the gradient penalty. frames: of a clip, how many are decoded.
        """
        self.features = features
        self.text = text
        self.network = network
        self.optimizer = optimizer
        self.loss: AdversarialLoss = loss
        self.penalty = PenaltyWeight(penalty)
        self.frames = frames

    def look(
        self,
        fake: Tensor,
        real: Tensor,
        text: Tensor,
        decode: Callable[[Tensor], Tensor],
        random: torch.Generator,
    ) -> Seen:
        """Decode and augment pairs of latents, each (B, 4, h, w) or (B, 4, F, h, w), and read their
        features. text: (B, condition_dim), a row for each sample.
        """
        fake, real, repeat = choose_frames(fake, real, self.frames, random)
        seen_fake = self._features_of(decode(fake), random)
        with torch.no_grad():
            seen_real = self._features_of(decode(real), random)
        return Seen(seen_fake, seen_real, text.float().repeat_interleave(repeat, 0))

    def student_loss(self, seen: Seen) -> Tensor:
        """The adversarial loss of the student, a scalar; its gradient leaves the heads alone."""
        self.network.requires_grad_(False)
        return generator_loss(self.network(seen.fake, seen.text), self.loss)

    def learn(self, seen: Seen, lanes: int, random: torch.Generator) -> dict[str, float]:
        """Add the heads' own gradients of one of an update's `lanes`; the losses, for the log."""
        fake = [feature.detach() for feature in seen.fake]
        self.network.requires_grad_(True)
        loss = discriminator_loss(
            self.network(seen.real, seen.text), self.network(fake, seen.text), self.loss
        )
        u = torch.rand(len(seen.text), generator=random).to(seen.text.device)
        penalty = gradient_penalty(self.network, seen.real, fake, seen.text, u)
        ((loss + self.penalty.weight * penalty) / lanes).backward()
        return {"discriminator": loss.item(), "penalty": penalty.item()}

    def update(self, step: int, penalty: float) -> None:
        """Move the heads by their gradients; `penalty` is the mean over all lanes of the update."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.network.iterate()
        self.penalty.update(penalty, step)

    def state_dict(self) -> dict[str, Any]:
        return {
            "discriminator": self.network.state_dict(),
            "d_optimizer": self.optimizer.state_dict(),
            "penalty": self.penalty.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the three entries of `state_dict` out of a checkpoint's state."""
        self.network.load_state_dict(state["discriminator"])
        self.optimizer.load_state_dict(state["d_optimizer"])
        self.penalty.load_state_dict(state["penalty"])

    def _features_of(self, pixels: Tensor, random: torch.Generator) -> list[Tensor]:
        prepared = prepare(augment(pixels, random), self.features.size, random)
        return self.features(prepared)  # type: ignore[no-any-return]


def choose_frames(
    fake: Tensor, real: Tensor, most: int, random: torch.Generator
) -> tuple[Tensor, Tensor, int]:
    """Latents of pictures (B', 4, h, w): of clips (B, 4, F, h, w) at most `most` frames, the same
    ones of both. The last value is how many of each sample there are, B' = B times it.
    """
    if fake.ndim == 4:
        return fake, real, 1
    count = min(most, fake.shape[2])
    chosen = torch.stack([torch.randperm(fake.shape[2], generator=random)[:count] for _ in fake])
    chosen = chosen.to(fake.device)
    fake, real = (
        torch.cat([z[i, :, chosen[i]].transpose(0, 1) for i in range(len(z))]) for z in (fake, real)
    )  # (B, 4, F, h, w) -> (B count, 4, h, w)
    return fake, real, count
