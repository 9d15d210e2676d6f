#!/usr/bin/env python3
"""What transformers and gguf-py make of our exports of the sets in tests/fixtures/golden/families.

    python3 scripts/check_families.py TRAIN [FOLDER]

TRAIN is the program bitnet-train. Each set is stored in F32 first, so that config and tensors of an export
are written and not copied. Needs torch, transformers 5, safetensors, gguf, numpy. Ends with 1 if a check failed.
"""
import json, os, shutil, subprocess, sys, tempfile
import gguf
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

TRAIN = sys.argv[1]
SETS = sys.argv[2] if len(sys.argv) > 2 else os.path.join(
    os.path.dirname(os.path.abspath(__file__)), "..", "tests", "fixtures", "golden", "families")
NAMES = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
         "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
         "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
         "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
failed = False


def check(what, value, limit):
    global failed
    failed |= not value <= limit
    print(f"{'ok  ' if value <= limit else 'FAIL'} {what}: {value:.3g} (at most {limit:g})", flush=True)


def gguf_name(name):
    if name.startswith("model.layers."):
        layer, part = name[len("model.layers."):].split(".", 1)
        part, kind = part.rsplit(".", 1)
        return f"blk.{layer}.{NAMES[part]}.{kind}"
    return {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
            "lm_head.weight": "output.weight"}[name]


def permuted(values, heads):
    """llama.cpp's convert_hf_to_gguf, LlamaModel.permute."""
    rows = values.shape[0]
    return values.reshape(heads, 2, rows // heads // 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def export(source, form, out):
    run = subprocess.run([TRAIN, "export", "--model", source, "--format", form, "--out", out, "--json",
                          *(["--embedding", "f32"] if form.startswith("gguf") else [])],
                         capture_output=True, text=True)
    return run.returncode, run.stdout, run.stderr.strip()


def transformers_reads(name, source, out, forward):
    code, _, error = export(source, "hf-bf16", out)
    if code:
        return check(f"{name} hf-bf16: {error}", code, 0)
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, attn_implementation="eager")
    kind = type(model).__name__
    with torch.no_grad():
        logits = model(forward["input_ids"], use_cache=False).logits
    check(f"{name} hf-bf16 in transformers ({kind}): logits", float((logits - forward["logits"]).abs().max()), 1e-5)


def gguf_py_reads(name, source, out, config, tensors):
    code, _, error = export(source, "gguf-bf16", out)
    untold = config["rope_parameters"]["rope_type"] == "dynamic" or not config["rope_parameters"].get("truncate", True)
    if "quantization_config" in config or untold:
        return check(f"{name} gguf-bf16 is refused: {error.splitlines()[0]}", 0 if code == 4 else 1, 0)
    if code:
        return check(f"{name} gguf-bf16: {error}", code, 0)
    reader = gguf.GGUFReader(out)
    architecture = reader.fields["general.architecture"].contents()
    found = {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    worst, heads = 0.0, {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}
    for key, value in tensors.items():
        value = value.float().numpy()
        if architecture == "llama" and key.endswith(("q_proj.weight", "k_proj.weight")):
            value = permuted(value, heads[key.split("self_attn.")[1][0]])
        worst = max(worst, float(np.abs(found.pop(gguf_name(key)) - value).max()))
    found.pop("rope_freqs.weight", None)
    scaling = {key: field.contents() for key, field in reader.fields.items() if ".rope." in key}
    check(f"{name} gguf-bf16 in gguf-py ({architecture}, {scaling}): values", worst, 0)
    check(f"{name} gguf-bf16 in gguf-py: other tensors", len(found), 0)
    layers = range(config["num_hidden_layers"])
    known = {gguf.TENSOR_NAMES[one].format(bid=layer)
             for one in gguf.MODEL_TENSORS[gguf.MODEL_ARCH[architecture.upper()]] for layer in layers}
    unknown = [tensor.name for tensor in reader.tensors if tensor.name.rsplit(".", 1)[0] not in known]
    check(f"{name} gguf-bf16: tensors that the architecture has not {unknown}", len(unknown), 0)


def main():
    for name in sorted(os.listdir(SETS)):
        folder = os.path.join(SETS, name)
        if not os.path.exists(os.path.join(folder, "config.json")):
            continue
        with tempfile.TemporaryDirectory() as work:
            source = os.path.join(work, "source")
            os.mkdir(source)
            shutil.copy(os.path.join(folder, "config.json"), source)
            tensors = {key: value.float() for key, value in load_file(os.path.join(folder, "model.safetensors")).items()}
            save_file(tensors, os.path.join(source, "model.safetensors"), metadata={"format": "pt"})
            forward = load_file(os.path.join(folder, "forward.safetensors"))
            config = json.load(open(os.path.join(folder, "config.json")))
            transformers_reads(name, source, os.path.join(work, "hf"), forward)
            gguf_py_reads(name, source, os.path.join(work, "x.gguf"), config, tensors)
    sys.exit(failed)


if __name__ == "__main__":
    main()
