#!/usr/bin/env python3
"""Writes tests/fixtures/golden/families/: small random models of every family and every kind of scaled
positions, with the logits and gradients that transformers computes.

    python3 scripts/make_families.py [FOLDER]

Needs torch, transformers 5, safetensors. tests/fixtures/golden/families/README.md describes the files.
"""
import json, os, shutil, sys
import torch
from safetensors.torch import load_file, save_file
from transformers import (AutoConfig, AutoModelForCausalLM, BitNetQuantConfig, LlamaConfig, MistralConfig,
                          Qwen2Config, Qwen3Config)

torch.set_num_threads(1)
OUT = sys.argv[1] if len(sys.argv) > 1 else os.path.join(
    os.path.dirname(os.path.abspath(__file__)), "..", "tests", "fixtures", "golden", "families")
SHAPE = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
             num_key_value_heads=1, vocab_size=32, max_position_embeddings=64, rms_norm_eps=1e-5,
             initializer_range=0.3, bos_token_id=1, eos_token_id=2)
TIME = 24


def rope(kind, theta=1e4, **keys):
    return dict(rope_parameters=dict(rope_type=kind, rope_theta=theta, **keys))


# name: class, keys over SHAPE, ternary
SETS = {
    "llama-untied": (LlamaConfig, dict(tie_word_embeddings=False), False),
    "llama-tied": (LlamaConfig, dict(tie_word_embeddings=True, head_dim=12), False),
    "mistral": (MistralConfig, dict(sliding_window=None, tie_word_embeddings=False), False),
    "qwen2": (Qwen2Config, dict(tie_word_embeddings=True), False),
    "qwen3": (Qwen3Config, dict(tie_word_embeddings=True, head_dim=12), False),
    "rope-linear": (LlamaConfig, rope("linear", factor=2.5), False),
    # Two lengths: the longer one is beyond max_position_embeddings.
    "rope-dynamic": (LlamaConfig, dict(max_position_embeddings=16, **rope("dynamic", factor=3.0)), False),
    "rope-llama3": (LlamaConfig, dict(head_dim=16, **rope(
        "llama3", 5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=16)), False),
    "rope-yarn": (Qwen2Config, dict(num_attention_heads=1, **rope(
        "yarn", factor=4.0, original_max_position_embeddings=16)), False),
    "rope-yarn-mscale": (Qwen3Config, dict(head_dim=16, **rope(
        "yarn", factor=4.0, original_max_position_embeddings=16, beta_fast=4.0, beta_slow=0.5,
        mscale=1.2, mscale_all_dim=0.8, truncate=False)), False),
    "llama-ternary": (LlamaConfig, dict(tie_word_embeddings=False), True),
    "qwen2-ternary": (Qwen2Config, dict(tie_word_embeddings=True), True),
    "qwen3-ternary": (Qwen3Config, dict(tie_word_embeddings=True, head_dim=12), True),
}
QUANTISED = dict(linear_class="autobitlinear", quantization_mode="online")


def fresh(config, seed):
    """A model whose values are exactly representable in BF16; no norm and no bias is trivial."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("norm.weight"):
                value.copy_(1 + 0.2 * torch.randn_like(value))
            elif name.endswith(".bias"):
                value.copy_(0.3 * torch.randn_like(value))
            value.copy_(value.bfloat16().float())
    return model


def margin(model, ids):
    """How far the nearest activation and weight are from the border of two codes, in levels."""
    least = [1.0]

    def border(values):
        least[0] = min(least[0], float((values - values.floor() - 0.5).abs().min()))

    def hook(module, inputs):
        x = inputs[0].float()
        border(x * (127 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)))

    handles = []
    for name, module in model.named_modules():
        if "proj" in name and hasattr(module, "weight"):
            handles.append(module.register_forward_pre_hook(hook))
            border(module.weight / module.weight.abs().mean().clamp(min=1e-5))
    with torch.no_grad():
        model(ids)
    for handle in handles:
        handle.remove()
    return least[0]


def open_model(folder, ternary):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    assert not ternary or type(model.model.layers[0].mlp.up_proj).__name__ == "AutoBitLinear"
    return model


def write(name, kind, keys, ternary):
    folder = os.path.join(OUT, name)
    best = None
    for seed in range(300 if ternary else 1):
        shutil.rmtree(folder, ignore_errors=True)
        config = kind(**{**SHAPE, **keys})
        torch.manual_seed(1000 + seed)
        ids = torch.randint(0, config.vocab_size, (2, TIME))
        fresh(config, seed).bfloat16().save_pretrained(folder)
        if ternary:
            path = os.path.join(folder, "config.json")
            text = json.load(open(path))
            text["quantization_config"] = dict(quant_method="bitnet", modules_to_not_convert=["lm_head"], **QUANTISED)
            json.dump(text, open(path, "w"), indent=1)
        model = open_model(folder, ternary)
        found = margin(model, ids) if ternary else 1.0
        if best is None or found > best[0]:
            best = (found, seed)
        if found > 1.5e-4:
            break
    if best[1] != seed:
        raise SystemExit(f"{name}: no seed has a margin above 1.5e-4; best {best}")
    save(folder, name, model, ids, seed, found)


def save(folder, name, model, ids, seed, found):
    forward = {"input_ids": ids}
    with torch.no_grad():
        out = model(ids, output_hidden_states=True, use_cache=False)
        short = ids[:, :TIME // 2].contiguous()
        forward["short.input_ids"] = short
        rotary = model.model.rotary_emb
        forward["inv_freq"] = rotary.inv_freq.detach().clone()
        forward["attention_scaling"] = torch.tensor([float(rotary.attention_scaling)])
        forward["logits"] = out.logits.contiguous()
        for at, state in enumerate(out.hidden_states):
            forward[f"hidden.{at}"] = state.contiguous()
    model.zero_grad()
    logits = model(ids, use_cache=False).logits[:, :-1].flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten())
    loss.backward()
    gradients = {f"mean_all.{key}": value.grad.contiguous() for key, value in model.named_parameters()}
    # Last, and of a model of its own: dynamic frequencies depend on what a model has seen.
    with torch.no_grad():
        again = open_model(folder, hasattr(model, "hf_quantizer"))
        forward["short.logits"] = again(short, use_cache=False).logits.contiguous()
    save_file(forward, os.path.join(folder, "forward.safetensors"))
    save_file(gradients, os.path.join(folder, "grads.safetensors"))
    meta = dict(family=name, seed=seed, loss_mean_all=loss.item(), margin=found,
                torch=torch.__version__.split("+")[0], transformers=__import__("transformers").__version__)
    json.dump(meta, open(os.path.join(folder, "meta.json"), "w"), indent=1)
    generation = os.path.join(folder, "generation_config.json")
    if os.path.exists(generation):
        os.remove(generation)
    print(f"{name}: loss {loss.item():.6f}, seed {seed}, margin {found:.1e}")


if __name__ == "__main__":
    os.makedirs(OUT, exist_ok=True)
    for name, (kind, keys, ternary) in SETS.items():
        write(name, kind, keys, ternary)
