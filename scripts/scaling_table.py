#!/usr/bin/env python3
"""The table of docs/src/scaling.md: how 2B4T's shape would train on 8 to 256 ranks, by the formula that
`bitnet-train plan --ranks N --link GBPS` prints, from rates measured elsewhere.

  scripts/scaling_table.py --tokens 3190 --update 0.65 --reduce 2.8    what `bench` and `plan` told of m
  … --faster 30 --faster-reduce 4                                      ranks that do not exist here
"""
import argparse

PARAMETERS, MEASURED = 2_412_820_480, 27_417_856  # of 2B4T, and of configs/m.toml
TOKENS = 1024 * 4096  # a step
LINKS, RANKS = (10, 25, 100, 400), (8, 16, 32, 64, 128, 256)
BYTES = 4 + 4  # of a parameter: gradients there, values back, in f32

parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parse.add_argument("--tokens", type=float, required=True, help="tokens a second of `m` on a rank")
parse.add_argument("--update", type=float, required=True, help="ns of an update a parameter")
parse.add_argument("--reduce", type=float, required=True, help="GB/s that a rank packs, adds, unpacks")
parse.add_argument("--faster", type=float, default=1, help="times as fast a rank computes, updates")
parse.add_argument("--faster-reduce", type=float, default=1, help="times as fast it reduces")
rates = parse.parse_args()

tokens_a_second = rates.tokens * MEASURED / PARAMETERS * rates.faster
print(f"a rank: {tokens_a_second:,.1f} tokens/s of 2B4T's shape")
print("| link, Gbit/s | " + " | ".join(f"{ranks} ranks" for ranks in RANKS) + " |")
for link in LINKS:
    cells = []
    for ranks in RANKS:
        useful = TOKENS / ranks / tokens_a_second
        useful += rates.update * 1e-9 * PARAMETERS / ranks / rates.faster
        moved = (ranks - 1) / ranks * PARAMETERS * BYTES
        step = useful + moved / (link * 1e9 / 8) + moved / (rates.reduce * 1e9 * rates.faster_reduce)
        cells.append(f"{100 * useful / step:.0f} %, {TOKENS / step:,.0f}")
    print(f"| {link} | " + " | ".join(cells) + " |")
