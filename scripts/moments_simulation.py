#!/usr/bin/env python3
"""How far do 8-bit moments move AdamW's updates, rounded to the nearest code or at random?

    python3 scripts/moments_simulation.py        # needs numpy; a minute

Synthetic gradients: each parameter has a scale of its own (log-normal, factor 2), a mean that is `coherence` of
it, and noise; steps differ in size. `sparse` ones, as those of the rows of rare words are, have their noise in one
step of 50, and a 30th of it in the others. Moments are kept as `train::step::moments` keeps them (blocks of 128, codes of
an eighth of an octave), the update is computed from the fresh values, beta1 = 0.9. Prints, over steps 51 to
300, the relative error of an update against exact moments and that of the sum of all updates.
"""
import numpy as np

PARAMETERS, STEPS, WARM, BLOCK = 128 * 400, 300, 50, 128


def kept(values, most, rounding, random):
    """Values as codes of 1/8 octave below the largest of their block; behind `most` the first moment is zero."""
    blocks = values.reshape(-1, BLOCK)
    largest = np.abs(blocks).max(axis=1, keepdims=True)
    with np.errstate(divide="ignore"):
        if rounding == "nearest":
            codes = np.round(8 * np.log2(largest / np.abs(blocks)))
        else:
            # The upper level with the probability that makes the mean right.
            step = 2 ** (-1 / 8)
            share = step + random.random(blocks.shape) * (1 - step)
            codes = np.ceil(8 * np.log2(share * largest / np.abs(blocks)))
    codes = np.maximum(codes, 0)
    # A second moment has no zero: its smallest code stands for all below.
    levels = 2.0 ** (-np.minimum(codes, 255) / 8)
    if most < 255:
        levels = np.where(codes > most, 0, levels)
    return (np.sign(blocks) * largest * levels).ravel()


def errors(rounding, beta2, coherence, sparse):
    random, draw = np.random.default_rng(1), np.random.default_rng(2)
    scale = 2 ** random.normal(0, 1, PARAMETERS)
    mean = coherence * scale * random.choice([-1, 1], PARAMETERS)
    exact, codes = np.zeros((2, PARAMETERS)), np.zeros((2, PARAMETERS))
    sums, single = np.zeros((2, PARAMETERS)), []
    for step in range(1, STEPS + 1):
        noise = random.normal(0, 1, PARAMETERS) * np.exp(random.normal(0, 0.5))
        if sparse:
            # A row at a time, and each in steps of its own.
            occurs = random.random(PARAMETERS // BLOCK) < 1 / 50
            noise *= np.repeat(np.where(occurs, 1, 1 / 30), BLOCK)
        gradient = mean + scale * noise
        updates = []
        for moments in (exact, codes):
            moments[0] = 0.9 * moments[0] + 0.1 * gradient
            moments[1] = beta2 * moments[1] + (1 - beta2) * gradient**2
            root = np.sqrt(moments[1] / (1 - beta2**step)) + 1e-8
            updates.append(moments[0] / (1 - 0.9**step) / root)
        codes[0] = kept(codes[0], 126, rounding, draw)
        codes[1] = kept(codes[1], 255, rounding, draw)
        if step > WARM:
            sums += updates
            single.append(relative(*updates))
    return np.mean(single), relative(*sums)


def relative(exact, found):
    return np.linalg.norm(found - exact) / np.linalg.norm(exact)


print("gradients beta2  coherence  rounding   an update   their sum")
for sparse in (False, True):
    for beta2 in (0.95, 0.98, 0.999):
        for coherence in (0.03, 0.3) if not sparse else (0.001, 0.01):
            for rounding in ("nearest", "random"):
                update, total = errors(rounding, beta2, coherence, sparse)
                kind = "sparse" if sparse else "dense"
                print(f"{kind:<9} {beta2:<6} {coherence:<9}  {rounding:<9} {100 * update:8.1f} % {100 * total:9.1f} %")
