"""Write the trained parts as a pack: a diffusers folder in fp16 that stock classes load, with its
IP-Adapter."""

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionXLImg2ImgPipeline
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPTokenizer

from std_cli.tinypack.model import VISION_SIZE, Denoiser, make_unet

# Defaults that suit this pack. In so small a network style is everywhere, so the reference acts in
# all blocks.
STD_JSON = {
    "base_resolution": 384,
    "video_resolution": 448,  # frames are mostly enlarged
    "size_by": "long_side",
    "i2i": {
        "prompt": "",
        "negative_prompt": "",
        "eta": 0.25,
        "steps": 8,
        "cfg": 1.5,
        "style_blocks": "all",
        "palette": 0.75,
    },
    "motion": "none",  # --steady has more effect, at less cost
    "steady": 0.9,
    "loras": [],
    "distill": {  # for `std distill --init`
        "model": {"gradient_checkpointing": False},
        "data": {"size": [128, 128]},
        "style": {"blocks": "all"},
        "lora": {"rank": 16, "alpha": 16},
        "distill": {"w_min": 0.25, "w_max": 0.75, "unconditional_pooled": "empty", "steps": 4},
        "adversarial": {"features": "none"},
        "optimizer": {
            "lr": 2e-4,
            "scale_lr": False,
            "warmup_steps": 20,
            "batch": 4,
            "accumulation": 1,
        },
        "run": {"save_every": 50, "validate_every": 50},
        "v2v": {"data": {"size": [96, 96], "frames": 8, "stride": 1}, "optimizer": {"batch": 1}},
    },
}


def ip_adapter_state(net: Denoiser) -> dict[str, Tensor]:
    """Return the IP-Adapter in its published layout: image_proj.* and ip_adapter.N.*, N odd, in the
    order of the attentions."""
    out = {}
    for i, processor in enumerate(
        p for n, p in net.unet.attn_processors.items() if n.endswith("attn2.processor")
    ):
        out[f"ip_adapter.{2 * i + 1}.to_k_ip.weight"] = processor.to_k_ip[0].weight
        out[f"ip_adapter.{2 * i + 1}.to_v_ip.weight"] = processor.to_v_ip[0].weight
    names = {
        "attn.to_q": "0.to_q",
        "attn.to_out.0": "0.to_out",
        "ln0": "0.norm1",
        "ln1": "0.norm2",
        "ff.0": "1.0",
        "ff.1.net.0.proj": "1.1",
        "ff.1.net.2": "1.3",
    }
    state = net.unet.encoder_hid_proj.image_projection_layers[0].state_dict()
    for key, value in state.items():
        if not key.startswith("layers."):
            out[f"image_proj.{key}"] = value
        elif "attn.to_k" in key:
            both = torch.cat([value, state[key.replace("to_k", "to_v")]])
            out["image_proj." + key.replace("attn.to_k", "0.to_kv")] = both
        elif "attn.to_v" not in key:
            _, layer, rest = key.split(".", 2)
            part, kind = rest.rsplit(".", 1)
            out[f"image_proj.layers.{layer}.{names[part]}.{kind}"] = value
    return {k: v.detach().half().contiguous().clone() for k, v in out.items()}


def load_parts(pack: Path) -> dict[str, dict[str, Tensor]]:
    """Return the weights of a pack's trained parts by their names in `Denoiser`, fp32: the weights
    that `export` wrote, rounded to fp16."""
    pipe = StableDiffusionXLImg2ImgPipeline.from_pretrained(pack, dtype=torch.float32)
    [adapter] = (pack / "ip_adapter").glob("*.safetensors")
    pipe.load_ip_adapter(
        str(pack), subfolder="ip_adapter", weight_name=adapter.name, image_encoder_folder=None
    )
    parts = {
        "unet": pipe.unet,
        "vision": pipe.image_encoder,
        "text": pipe.text_encoder,
        "text_2": pipe.text_encoder_2,
    }
    return {name: part.state_dict() for name, part in parts.items()}


def export(vae_folder: Path, trained: Path, out: Path) -> None:
    """Write the pack folder `out` from the VAE's folder and the trained denoiser's."""
    tokenizer = CLIPTokenizer.from_pretrained(trained / "tokenizer")
    net = Denoiser(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id)
    net.load_state_dict(torch.load(trained / "average.pt", weights_only=True))
    unet = make_unet()
    own = unet.state_dict().keys()
    unet.load_state_dict({k: v for k, v in net.unet.state_dict().items() if k in own})
    size = {"height": VISION_SIZE, "width": VISION_SIZE}
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        prediction_type="v_prediction",
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
    )
    vae = AutoencoderKL.from_pretrained(vae_folder)
    vae.register_to_config(_name_or_path="")  # the folder on this machine
    pipe = StableDiffusionXLImg2ImgPipeline(
        vae=vae,
        text_encoder=net.text,
        text_encoder_2=net.text_2,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=scheduler,
        image_encoder=net.vision,
        add_watermarker=False,
        feature_extractor=CLIPImageProcessor(size={"shortest_edge": VISION_SIZE}, crop_size=size),
    )
    pipe.to(torch.float16).save_pretrained(out)
    (out / "ip_adapter").mkdir(exist_ok=True)
    save_file(
        ip_adapter_state(net),
        out / "ip_adapter" / "ip-adapter-plus_tiny.safetensors",
        metadata={"format": "pt"},
    )
    (out / "std.json").write_text(json.dumps(STD_JSON, indent=2) + "\n", encoding="utf-8")


def add_motion(adapter: Path, out: Path) -> None:
    """Copy temporal layers, a folder of train_motion.save, into the pack folder `out`."""
    shutil.copytree(adapter, out / "motion_adapter", dirs_exist_ok=True)
