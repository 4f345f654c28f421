"""The discriminator of the asymmetric adversarial loss: heads over frozen features, their losses, a
gradient penalty.

The heads are StyleGAN-T's (Sauer et al. 2023, arXiv 2301.09515, section 3.2), as STD (arXiv
2412.18945) uses them.

Spectral norm makes one power iteration each time that it is used in training mode, and none in
evaluation. So leave the discriminator in evaluation mode and call `iterate` once for each update:
its losses are then functions of the state alone, however many micro-batches an update has, also
where gradient checkpointing runs it twice. The vectors are part of the state dict, and follow from
it without a random number, so a resumed run takes up the very same ones; processes with equal
weights agree without exchanging them. The student's step should also freeze it
(`requires_grad_(False)`): only its own step moves it.
"""

import math
from typing import Literal, TypedDict

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

GROUP = 8  # samples that share their statistics
AdversarialLoss = Literal["wgan", "hinge", "bce"]


# --- heads -------------------------------------------------------------------------------------


class VirtualBatchNorm(nn.Module):
    """Batch norm whose statistics are those of a group of up to 8 samples, always: it keeps no
    running averages.

    A batch that is no multiple of 8 is split into ceil(B / 8) groups that are as even as can be.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, T) -> (B, C, T)."""
        groups = x.tensor_split(math.ceil(len(x) / GROUP))
        return torch.cat(
            [F.batch_norm(g, None, None, self.weight, self.bias, training=True) for g in groups]
        )


class Head(nn.Module):
    """One logit for each token of one feature, conditioned by projection (Miyato & Koyama 2018,
    arXiv 1802.05637)."""

    def __init__(self, channels: int, condition_dim: int, width: int = 64) -> None:
        super().__init__()
        self.first = _block(channels, 1)
        self.second = _block(channels, 9)
        self.out = spectral_norm(nn.Conv1d(channels, width, 1))
        self.condition = nn.Linear(condition_dim, width)

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """(B, T, C), (B, condition_dim) -> (B, T)."""
        x = self.first(x.transpose(1, 2))  # (B, T, C) -> (B, C, T)
        x = (x + self.second(x)) / math.sqrt(2)
        projected = self.out(x) * self.condition(condition).unsqueeze(2)  # (B, width, T)
        logits: torch.Tensor = projected.sum(1) / math.sqrt(projected.shape[1])
        return logits


def _block(channels: int, kernel: int) -> nn.Sequential:
    conv = nn.Conv1d(channels, channels, kernel, padding=kernel // 2, padding_mode="circular")
    return nn.Sequential(spectral_norm(conv), VirtualBatchNorm(channels), nn.LeakyReLU(0.2))


class Discriminator(nn.Module):
    """One head for each feature of a frozen network, which is not part of it; float32 even under
    autocast."""

    def __init__(self, channels: int, condition_dim: int, heads: int = 4) -> None:
        """`channels` of the features; `condition_dim` of the caption's embedding (1280 for SDXL's
        pooled one)."""
        super().__init__()
        self.heads = nn.ModuleList(Head(channels, condition_dim) for _ in range(heads))

    @torch.no_grad()
    def iterate(self) -> None:
        """One power iteration of every spectral norm; evaluation mode before and after."""
        self.train()
        for module in self.modules():
            if parametrize.is_parametrized(module, "weight"):
                _ = module.weight
        self.eval()

    def forward(self, features: list[torch.Tensor], condition: torch.Tensor) -> torch.Tensor:
        """Logits (B, heads * T) for `features`, one (B, T, C) per head with T >= 4, and `condition`
        (B, condition_dim).

        The more real a token looks, the higher its logit.
        """
        with torch.autocast(condition.device.type, enabled=False):
            pairs = zip(self.heads, features, strict=True)
            return torch.cat(
                [head(feature.float(), condition.float()) for head, feature in pairs], 1
            )


# --- losses ------------------------------------------------------------------------------------


def generator_loss(fake: torch.Tensor, loss: AdversarialLoss = "wgan") -> torch.Tensor:
    """What the student minimises, given D's logits for its pictures; a scalar.

    wgan (Arjovsky et al. 2017, arXiv 1701.07875) and hinge (Lim & Ye 2017, arXiv 1705.02894): -mean
    D(fake).
    bce: the non-saturating mean of -log sigmoid D(fake) (Goodfellow et al. 2014, arXiv 1406.2661).
    """
    return F.softplus(-fake).mean() if loss == "bce" else -fake.mean()


def discriminator_loss(
    real: torch.Tensor, fake: torch.Tensor, loss: AdversarialLoss = "wgan"
) -> torch.Tensor:
    """What the discriminator minimises, given its logits for real and fake pictures; a scalar.

    wgan: mean max(-1, -D(real)) + mean max(-1, D(fake)), as STD's reference clamps it, which is
    hinge less 2.
    hinge: mean max(0, 1 - D(real)) + mean max(0, 1 + D(fake)).
    bce: mean -log sigmoid D(real) + mean -log(1 - sigmoid D(fake)).
    """
    if loss == "bce":
        return F.softplus(-real).mean() + F.softplus(fake).mean()
    if loss == "hinge":
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    return (-real).clamp(min=-1).mean() + fake.clamp(min=-1).mean()


def gradient_penalty(
    discriminator: nn.Module,
    real: list[torch.Tensor],
    fake: list[torch.Tensor],
    condition: torch.Tensor,
    u: torch.Tensor,
) -> torch.Tensor:
    """mean (|gradient| - 1)^2 at u real + (1 - u) fake (Gulrajani et al. 2017, arXiv 1704.00028); a
    scalar.

    `real` and `fake`: features, one (B, T, C) per head; `u`: (B,) in [0, 1]. The gradient is that
    of the sum of all logits by all features of a sample together; it does not continue
    into the network that the features come from.
    """
    mix = u.float().view(-1, 1, 1)
    mixed = [
        (mix * r.detach() + (1 - mix) * f.detach()).requires_grad_()
        for r, f in zip(real, fake, strict=True)
    ]
    gradients = torch.autograd.grad(discriminator(mixed, condition).sum(), mixed, create_graph=True)
    norms = torch.cat([gradient.flatten(1) for gradient in gradients], 1).norm(dim=1)  # (B,)
    penalty: torch.Tensor = (norms - 1).square().mean()
    return penalty


class PenaltyState(TypedDict):
    """A `PenaltyWeight` as plain data, for a checkpoint."""

    weight: float
    raised: int


class PenaltyWeight:
    """The weight of the gradient penalty: times 5 when that is >= 100, at most once in 500 steps
    (STD's reference).

    Where several processes train together, give each the same penalty (the mean), so that their
    weights stay equal.
    """

    def __init__(self, weight: float = 1e-5) -> None:
        self.weight = weight
        self.raised = 0  # step of the last change

    def update(self, penalty: float, step: int) -> float:
        """The weight to use at `step` (from 0), whose penalty this is."""
        if penalty >= 100 and step - self.raised > 500:
            self.weight, self.raised = self.weight * 5, step
        return self.weight

    def state_dict(self) -> PenaltyState:
        return {"weight": self.weight, "raised": self.raised}

    def load_state_dict(self, state: PenaltyState) -> None:
        """Take what `state_dict` returned."""
        self.weight = float(state["weight"])
        self.raised = int(state["raised"])
