#!/usr/bin/env python3
"""Writes export/format/tests/rope_table.txt: the RoPE table that torch computes on this CPU, in part.

    python3 scripts/rope_table.py > export/format/tests/rope_table.txt

Needs torch. The operations are those of transformers 5 (modeling_rope_utils, LlamaRotaryEmbedding).
"""
import platform, zlib
import torch

POSITIONS = 32768
SHOWN = [0, 1, 2, 3, 7, 100, 1000, 4095, 8191, 16384, 20000, 32767]


def cpu():
    for line in open("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor()


def words(tensor):
    return " ".join(f"{bits & 0xffffffff:08x}" for bits in tensor.view(torch.int32).tolist())


print(f"torch {torch.__version__} ({torch.backends.cpu.get_cpu_capability()}), {cpu()}")
print(f"a shape: frequencies; crc32 of the angles at positions 0 to {POSITIONS - 1}; position, cosines, sines; f32 bits")
for theta, width in [(500000.0, 128), (10000.0, 64), (10000.0, 16)]:
    exponents = torch.arange(0, width, 2, dtype=torch.int64).to(dtype=torch.float) / width
    frequencies = 1.0 / (theta**exponents)
    positions = torch.arange(POSITIONS).float()
    angles = (frequencies[None, :, None] @ positions[None, None, :]).transpose(1, 2)[0].contiguous()
    cos, sin = angles.cos(), angles.sin()
    print(f"\nshape {theta} {width}\n{words(frequencies)}\n{zlib.crc32(angles.numpy().tobytes()):08x}")
    for position in SHOWN:
        print(f"{position}\n{words(cos[position])}\n{words(sin[position])}")
