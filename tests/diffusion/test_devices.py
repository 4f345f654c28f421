"""Which precision a device is given."""

import sys

import pytest
import torch

from std_cli.diffusion.devices import choose_dtype

BF16_INSTRUCTIONS = ("avx512_bf16", "amx_tile")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/cpuinfo")
def test_a_processor_works_in_bf16_where_it_has_instructions_for_it():
    """As the kernel lists them, which is not where torch looks; training stays in fp32."""
    with open("/proc/cpuinfo") as file:
        flags = next((line for line in file if line.startswith("flags")), "").split()
    native = any(name in flags for name in BF16_INSTRUCTIONS)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert choose_dtype("auto", cpu) == (torch.bfloat16 if native else torch.float32)
    assert choose_dtype("auto", cpu, training=True) == torch.float32
    assert choose_dtype("auto", cuda) == choose_dtype("auto", cuda, training=True) == torch.float16
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        assert choose_dtype(name, cpu) == dtype
