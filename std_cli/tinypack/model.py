"""The parts of the embedded pack, as stock diffusers and transformers classes, at miniature widths.

`Denoiser` joins the parts that are trained together: the UNet with IP-Adapter-plus attention, the
picture encoder and the text encoders.
"""

from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0, IPAdapterAttnProcessor2_0
from diffusers.models.embeddings import IPAdapterPlusImageProjection, MultiIPAdapterImageProjection
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from std_cli.diffusion.devices import choose_dtype
from std_cli.tinypack.styles import COLOURS, KINDS

WIDTHS = (32, 48, 96, 128)
VAE_WIDTHS = (32, 48)
FACTOR = 2  # pixels of the picture for one of the latents, along each side
CROSS = 128  # cross-attention width: the two text encoders' 64 + 64
VISION_SIZE = 112
VISION_WIDTH = 128
TOKENS = 16
TEXT_LENGTH = 32
# SDXL's is about 1: here structure has to survive eta 0.75, and the network is small
LATENT_SCALE = 3.0
BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
ALPHAS_CUMPROD = torch.cumprod(1 - BETAS, 0)


def make_vae() -> AutoencoderKL:
    """Return a new VAE: f = FACTOR, four channels."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=VAE_WIDTHS,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=256,
        scaling_factor=LATENT_SCALE,
        force_upcast=False,
    )


def make_unet() -> UNet2DConditionModel:
    """Return a new UNet in SDXL's topology: attention in the two coarsest levels, but not above."""
    levels = len(WIDTHS)
    return UNet2DConditionModel(
        sample_size=64,
        in_channels=4,
        out_channels=4,
        block_out_channels=WIDTHS,
        layers_per_block=2,
        norm_num_groups=16,
        down_block_types=("DownBlock2D",) * (levels - 2) + ("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",) * (levels - 2),
        transformer_layers_per_block=[1] * levels,
        attention_head_dim=[max(1, w // 32) for w in WIDTHS],
        cross_attention_dim=CROSS,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=64 + 6 * 32,
    )


def add_ip_adapter(unet: UNet2DConditionModel) -> None:
    """Give the UNet IP-Adapter-plus attention and its resampler, in the layout of diffusers'
    loader."""
    processors: dict[str, Any] = {}
    for name in unet.attn_processors:
        if name.endswith("attn1.processor"):
            processors[name] = AttnProcessor2_0()
            continue
        part = name.split(".")[0]
        index = name.split(".")[1]
        width = {
            "mid_block": WIDTHS[-1],
            "up_blocks": WIDTHS[::-1][int(index) if index.isdigit() else 0],
        }.get(part)
        width = width or WIDTHS[int(index)]
        processors[name] = IPAdapterAttnProcessor2_0(
            hidden_size=width, cross_attention_dim=CROSS, num_tokens=[TOKENS]
        )
    unet.set_attn_processor(processors)
    projection = IPAdapterPlusImageProjection(
        embed_dims=VISION_WIDTH, output_dims=CROSS, hidden_dims=128, heads=2, num_queries=TOKENS
    )
    unet.encoder_hid_proj = MultiIPAdapterImageProjection([projection])


def make_vision() -> CLIPVisionModelWithProjection:
    """Return a new picture encoder, for pictures of VISION_SIZE px."""
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=VISION_WIDTH,
            intermediate_size=4 * VISION_WIDTH,
            projection_dim=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=VISION_SIZE,
            patch_size=8,
            hidden_act="gelu",
        )
    )


def make_text(
    vocabulary: int, bos: int, eos: int
) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """Return two new text encoders for a vocabulary of so many tokens."""
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=256,
        projection_dim=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TEXT_LENGTH,
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=eos,
        hidden_act="quick_gelu",
    )
    return CLIPTextModel(config), CLIPTextModelWithProjection(config)


def half_precision(enabled: bool) -> torch.autocast:
    """Training in bf16 where the processor has instructions for it: two thirds of the time."""
    cpu = torch.device("cpu")
    native = choose_dtype("auto", cpu) is torch.bfloat16
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled and native)


def noise_from_v(v: Tensor, x_t: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """The noise in x_t, by a v-prediction (Salimans and Ho 2022, arXiv 2202.00512)."""
    return alphas_cumprod.sqrt() * v + (1 - alphas_cumprod).sqrt() * x_t


class Denoiser(nn.Module):
    """Everything that is trained on latents. The auxiliary head predicts style facts from the
    picture tokens; it is not shipped."""

    def __init__(self, vocabulary: int, bos: int, eos: int) -> None:
        super().__init__()
        self.unet = make_unet()
        # residual branches start small: a deep net learns sooner
        for name, module in self.unet.named_modules():
            if name.endswith(("conv2", "to_out.0", "ff.net.2")):
                with torch.no_grad():
                    module.weight.mul_(0.2)
        add_ip_adapter(self.unet)
        self.vision = make_vision()
        self.text, self.text_2 = make_text(vocabulary, bos, eos)
        self.facts = nn.Linear(CROSS, len(KINDS) + len(COLOURS) + 9 + 16)

    def picture_tokens(self, pixels: Tensor) -> Tensor:
        """(G, 3, 112, 112), normalised as CLIP -> (G, 16, CROSS)."""
        hidden = self.vision(pixels, output_hidden_states=True).hidden_states[-2]
        return self.unet.encoder_hid_proj.image_projection_layers[0](hidden)  # type: ignore[no-any-return]

    def text_states(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """(B, TEXT_LENGTH) -> token states (B, TEXT_LENGTH, CROSS), pooled (B, 64), as SDXL joins
        them."""
        first = self.text(ids, output_hidden_states=True).hidden_states[-2]
        second = self.text_2(ids, output_hidden_states=True)
        return torch.cat([first, second.hidden_states[-2]], -1), second.text_embeds

    def forward(
        self, x_t: Tensor, t: Tensor, states: Tensor, pooled: Tensor, tokens: Tensor, sizes: Tensor
    ) -> Tensor:
        """Predicted noise (B, 4, h, w); tokens are per sample, (B, 16, CROSS).

        The UNet itself predicts v: at t = 679 an error of the predicted noise is one of x0 3.1
        times as large, an error of v one 0.95 times as large.
        """
        # the UNet would make the same of image_embeds, but would project them for each sample
        both = (states, [tokens[:, None]])
        added = {"text_embeds": pooled, "time_ids": sizes}
        v = self.unet(x_t, t, both, added_cond_kwargs=added).sample.float()
        return noise_from_v(v, x_t, ALPHAS_CUMPROD[t].view(-1, 1, 1, 1))
