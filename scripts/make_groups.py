#!/usr/bin/env python3
"""Writes the sets of tests/fixtures/golden/families/ whose scales belong to groups of weights: transformers'
Llama with linear layers, embedding and head of plain torch in the place of its own. transformers has no such
quantiser, so this is a second implementation of docs/src/formats.md, "Scales of groups".

    python3 scripts/make_groups.py [FOLDER]

Needs torch, transformers 5, safetensors.
"""
import json, os, shutil
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, LlamaConfig

import make_families
from make_families import OUT, QUANTISED, SHAPE, fresh, save

# Few tokens: every activation must be far from the border of two codes.
make_families.TIME = 8

WIDE = {**SHAPE, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "initializer_range": 0.1}
# name: keys over WIDE, group, embedding, activations
SETS = {
    "groups-64": (dict(tie_word_embeddings=False), 64, "ternary", "int8"),
    "groups-row": (dict(tie_word_embeddings=True), "row", "full", "int8"),
    "groups-floats": (dict(tie_word_embeddings=True), 64, "ternary", "none"),
}
margin = [1.0]


def border(values):
    values = values.detach().abs()
    margin[0] = min(margin[0], float((values - values.floor() - 0.5).abs().min()))


def through(values, x):
    return values.detach() + x - x.detach()


def ternary(weight, group):
    """Absmean of each group, in F16 unless a group is a row."""
    width = weight.shape[1] if group == "row" else group
    parts = weight.view(weight.shape[0], -1, width)
    scale = parts.double().abs().mean(-1, keepdim=True).float().clamp(min=1e-5)
    if group != "row":
        scale = scale.half().float()
    # The very operations of the definition, so that ties fall to the same side.
    return through(((parts * (1 / scale)).round().clamp(-1, 1) * scale).view_as(weight), weight)


def eight_bits(x, activations):
    if activations == "none":
        return x
    scale = 127 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
    border(x * scale)
    return through((x * scale).round().clamp(-128, 127) / scale, x)


class GroupLinear(nn.Linear):
    def forward(self, x):
        return F.linear(eight_bits(x, self.activations), ternary(self.weight, self.group))


class GroupEmbedding(nn.Embedding):
    def forward(self, ids):
        return F.embedding(ids, ternary(self.weight, self.group))


def quantise(model, group, embedding, activations):
    """Changes the classes of the modules; their parameters stay."""
    for name, module in model.named_modules():
        is_table = name.endswith("embed_tokens") or name == "lm_head"
        if is_table and embedding == "full" or not isinstance(module, (nn.Linear, nn.Embedding)):
            continue
        module.__class__ = GroupEmbedding if isinstance(module, nn.Embedding) else GroupLinear
        module.group, module.activations = group, activations
    return model


def write(name, keys, group, embedding, activations):
    folder = os.path.join(OUT, name)

    def opened(_folder, _ternary):
        model = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32, attn_implementation="eager")
        return quantise(model, group, embedding, activations)

    make_families.open_model = opened
    plain = folder + "-plain"
    for seed in range(2000):
        for each in (folder, plain):
            shutil.rmtree(each, ignore_errors=True)
        torch.manual_seed(1000 + seed)
        ids = torch.randint(0, WIDE["vocab_size"], (2, make_families.TIME))
        fresh(LlamaConfig(**{**WIDE, **keys}), seed).bfloat16().save_pretrained(plain)
        model = opened(None, None)
        margin[0] = 1.0
        with torch.no_grad():
            model(ids)
        found = margin[0]
        if found > 1.5e-4:
            break
    else:
        raise SystemExit(f"{name}: no seed has a margin above 1.5e-4")
    shutil.copytree(plain, folder)
    path = os.path.join(folder, "config.json")
    text = json.load(open(path))
    text["quantization_config"] = dict(
        quant_method="bitnet", modules_to_not_convert=["lm_head"], **QUANTISED,
        quantiser=dict(weights="absmean", group=group), embedding=embedding, activations=activations)
    json.dump(text, open(path, "w"), indent=1)
    save(folder, name, model, ids, seed, found)
    shutil.rmtree(plain)


if __name__ == "__main__":
    for name, arguments in SETS.items():
        write(name, *arguments)
