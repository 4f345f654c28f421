"""LoRA files: found by name, read in any common spelling, checked against the UNet, fused into it,
written."""

from std_cli.weights.lora.find import LoraFile, resolve_lora
from std_cli.weights.lora.fuse import check_lora, fuse_lora
from std_cli.weights.lora.read import LoraWeights, read_lora

__all__ = ["LoraFile", "LoraWeights", "check_lora", "fuse_lora", "read_lora", "resolve_lora"]
