"""What other programs make of our files. Called by readers.sh; prints one line a check and ends
with 1 if one failed."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from safetensors import safe_open
from tokenizers import Tokenizer

ROOT, BITNET, READERS = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
TRAIN = str(Path(BITNET).with_name("bitnet-train"))
TEXTS = [
    "Anna was in the kitchen. A grey drum was in the yellow chest. Where was Anna?",
    "It's 12345678 o'clock,  isn't  it?\n\n\tTabs, naïve café, 日本語, emoji 👩‍👩‍👧 <|eot_id|>",
    " leading and trailing spaces   ",
    "def f(x):\n    return x**2 + 1  # square\r\n",
]
MODELS = ["relu2", "silu", "llama"]
failed = False


def check(what, value, limit):
    global failed
    good = value <= limit
    failed |= not good
    print(f"{'ok  ' if good else 'FAIL'} {what}: {value:.3g} (at most {limit:g})", flush=True)


def ids_of(model, text):
    """Ids as our tokenizer gives them, specials spelled in the text left alone."""
    tokenizer = Tokenizer.from_file(str(ROOT / model / "final/tokenizer.json"))
    tokenizer.encode_special_tokens = True
    return tokenizer.encode(text, add_special_tokens=False).ids


def our_logprobs(path, rows, adapter=None):
    """Log-probability of each next id and the most likely one, by our engine."""
    ids = ROOT / "ids.jsonl"
    ids.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = subprocess.run(
        [BITNET, "score", "--model", str(path), "--ids", str(ids), "--json"]
        + (["--adapter", str(adapter)] if adapter else []),
        check=True, capture_output=True, text=True,
    )
    return [json.loads(line) for line in out.stdout.splitlines()]


def compare(what, path, rows, logits_of, limit, greedy, adapter=None):
    """Differences of the next id's probability, and the share of most likely ids that differ.

    transformers computes what we compute, up to the order of sums, and an activation between two
    8-bit levels. llama.cpp quantises activations in blocks of 256 instead of whole tokens, rounds
    them to F16 (or Q8_0) before an F16 (Q8_0) head, and keeps keys and values in F16.
    """
    worst, largest, other, total = 0.0, 0.0, 0, 0
    for row, ours in zip(rows, our_logprobs(path, rows, adapter)):
        logits = logits_of(row).astype(np.float64)
        peak = logits.max(-1, keepdims=True)
        logps = logits - peak - np.log(np.exp(logits - peak).sum(-1, keepdims=True))
        for at in range(1, len(row)):
            theirs, mine = logps[at - 1, row[at]], ours["logprobs"][at]
            worst = max(worst, abs(np.exp(theirs) - np.exp(mine)))
            largest = max(largest, abs(theirs - mine) / (1 + abs(mine)))
        most_likely = logits.argmax(-1)
        other += sum(int(a != b) for a, b in zip(most_likely, ours["argmax"]))
        total += len(row)
    check(f"{what}: largest difference of a probability", worst, limit)
    check(f"{what}: largest difference of a log-probability l, by 1 + |l|", largest, 2 * limit)
    check(f"{what}: most likely ids that differ, of {total}", other, greedy * total)


def unpacked(path):
    """Codes and scales of a packed folder, by numpy alone."""
    found = {}
    with safe_open(str(path / "model.safetensors"), "np") as file:
        for name in file.keys():
            if name.endswith(".weight_scale"):
                weight = file.get_tensor(name.removesuffix("_scale"))
                quarters = [(weight >> (2 * i)) & 3 for i in range(4)]
                codes = np.concatenate(quarters).astype(np.float32) - 1
                found[name.removesuffix(".weight_scale")] = codes, file.get_tensor(name)[0]
    return found


NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def permuted(values, heads):
    """The order of rows that llama.cpp's converter gives q and k of Llama models."""
    rows, columns = values.shape
    return values.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def gguf_reader():
    import gguf
    from gguf.quants import dequantize

    for model in MODELS:
        config = json.loads((ROOT / model / "final/config.json").read_text())
        codes = unpacked(ROOT / model / "hf-packed")
        for format in ["gguf-tq1_0", "gguf-tq2_0"]:
            reader = gguf.GGUFReader(str(ROOT / model / format))
            tensors = {tensor.name: tensor for tensor in reader.tensors}
            worst = 0.0
            for name, (values, scale) in codes.items():
                layer, part = name.removeprefix("model.layers.").split(".", 1)
                tensor = tensors[f"blk.{layer}.{NAMES[part]}.weight"]
                read = dequantize(tensor.data, tensor.tensor_type)
                expected = values * np.float32(np.float16(scale))
                if model == "llama" and part.endswith(("q_proj", "k_proj")):
                    key = "num_attention_heads" if "q_proj" in part else "num_key_value_heads"
                    expected = permuted(expected, config[key])
                worst = max(worst, float(np.abs(read - expected).max()))
            check(f"gguf-py reads {model}/{format}: largest difference of a weight", worst, 0)
        for format in ["gguf-tq2_0-q8_0", "gguf-tq2_0-q6_k"]:
            reader = gguf.GGUFReader(str(ROOT / model / format))
            table = next(t for t in reader.tensors if t.name == "token_embd.weight")
            # F16 holds what the model's own values are to far more digits than these types.
            exact = gguf.GGUFReader(str(ROOT / model / "gguf-tq2_0"))
            exact = next(t for t in exact.tensors if t.name == "token_embd.weight")
            expected = dequantize(exact.data, exact.tensor_type).astype(np.float32)
            read = dequantize(table.data, table.tensor_type)
            error = np.sqrt(((read - expected) ** 2).mean() / (expected**2).mean())
            check(f"gguf-py reads {model}/{format}: relative error of the embedding", error, 0.02)


def in_floats(path):
    # Only some of the checks need torch.
    from transformers_floats import in_floats

    return in_floats(path)


def logits_by(model):
    import torch

    def logits_of(row):
        with torch.no_grad():
            return model(torch.tensor([row])).logits[0].float().numpy()

    return logits_of


def transformers_reader():
    import torch

    torch.set_num_threads(2)
    for model, formats in [
        ("relu2", ["hf-packed", "hf-bf16", "hf-packed-bitlinear"]),
        ("silu", ["hf-packed", "hf-bf16"]),
        ("llama", ["hf-packed", "hf-bf16", "hf-packed-bitlinear"]),
    ]:
        rows = [ids_of(model, text)[:64] for text in TEXTS]
        for format in formats:
            path = ROOT / model / format
            what, logits_of = f"transformers runs {model}/{format}", logits_by(in_floats(path))
            compare(what, path, rows, logits_of, 0.05, 0.02)


def peft_reader():
    """Side adapters both ways: one that peft wrote, run by us, and as we write it, run by peft.

    peft computes in F32 what we keep in BF16, so its values are rounded to BF16 first.
    """
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model

    torch.set_num_threads(2)
    for model in MODELS:
        base, theirs = ROOT / model / "hf-bf16", ROOT / model / "peft"
        rows = [ids_of(model, text)[:64] for text in TEXTS]
        torch.manual_seed(1)
        targets = [part.split(".")[1] for part in NAMES]
        config = LoraConfig(r=5, lora_alpha=10, target_modules=targets, task_type="CAUSAL_LM")
        adapted = get_peft_model(in_floats(base), config)
        for name, value in adapted.named_parameters():
            if "lora_" in name:
                value.data = (torch.randn_like(value) * 0.02).bfloat16().float()
        adapted.save_pretrained(theirs)
        adapted.eval()
        plain = [logits_by(in_floats(base))(row) for row in rows]
        moved = max(np.abs(logits_by(adapted)(row) - was).max() for row, was in zip(rows, plain))
        check(f"peft's adapter of {model} does something: 1 / its largest change", 1 / moved, 10)
        compare(f"we run peft's adapter of {model}", base, rows, logits_by(adapted), 0.05, 0.02, theirs)
        out = ROOT / model / "with-side"
        command = [TRAIN, "export", "--model", base, "--adapter", theirs, "--format", "hf-bf16"]
        subprocess.run([*command, "--out", out, "--force"], check=True, capture_output=True)
        ours = ROOT / model / "with-side-adapter"
        again = PeftModel.from_pretrained(in_floats(out), ours).eval()
        compare(f"peft runs our adapter of {model}", out, rows, logits_by(again), 0.05, 0.02, ours)


def llama_reader():
    import llama_cpp

    for model in ["silu", "llama"]:
        rows = [ids_of(model, text)[:64] for text in TEXTS]
        for format in ["gguf-tq2_0", "gguf-tq1_0", "gguf-tq2_0-q8_0"]:
            path = ROOT / model / format
            loaded = llama_cpp.Llama(str(path), n_ctx=256, logits_all=True, verbose=False)
            differ = sum(
                loaded.tokenize(text.encode(), add_bos=False, special=False) != ids_of(model, text)
                for text in TEXTS
            )
            check(f"llama.cpp tokenizes as we do, {model}/{format}: texts that differ", differ, 0)

            def logits_of(row):
                loaded.reset()
                loaded.eval(row)
                return np.array(loaded.scores[: len(row)])

            compare(f"llama.cpp runs {model}/{format}", path, rows, logits_of, 0.05, 0.02)


PROMPTS = [
    "Anna was in the kitchen. A grey drum was in the",
    "One morning",
    "Paul went to the field. Where was Paul?",
    "A purple ring was in the purple box. What colour was the ring?",
    "Emma took the spoon. Then Emma went to the garden.",
    "Once there was a",
]


def continued(program, path, prompt):
    """What a `llama-cli` writes after a prompt when it always takes the most likely token."""
    out = subprocess.run(
        [program, "-m", str(path), "-p", prompt, "-n", "48", "--temp", "0", "-t", "2"],
        check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300,
        cwd=ROOT,  # some write a log where they are called
    ).stdout
    text = out[out.index(prompt) + len(prompt):].rstrip("\n")
    assert text, f"{program} wrote nothing after {prompt!r}"
    return text.removesuffix("[end of text]").removesuffix(" ")


def peer_reader(name, program):
    """A `llama-cli` of bitnet.cpp (a fork whose graph has relu2) or of ik_llama.cpp.

    ik_llama.cpp has no product for I2_S, it reads the type to convert it. As BF16 it computes what we
    do but for the rounding of activations; its IQ2_BN_R4 subtracts the sum of activations before
    rounding from products of rounded ones, so it leaves us earlier.
    """
    path = ROOT / "tied" / "gguf-i2_s"
    if name == "bitnet.cpp":
        compare_text(name, program, path, 0.05, 0.3)
        return
    for form, share, gap in [("bf16", 0.05, 0.3), ("iq2_bn_r4", 0.25, 2)]:
        made = ROOT / "tied" / f"{form}.gguf"
        quantise = Path(program).with_name("llama-quantize")
        command = [quantise, "--allow-requantize", path, made, form]
        subprocess.run(command, check=True, capture_output=True)
        compare_text(f"{name} as {form}", program, made, share, gap)


def compare_text(name, program, path, share, gap):
    """Token by token: is what the other program took our most likely token too, after the same text?

    Where it is not, ours must be hardly likelier: an activation between two levels, or keys and
    values in F16, decided between the two.
    """
    exported = ROOT / "tied" / "gguf-i2_s"
    bos = json.loads((ROOT / "tied/final/config.json").read_text())["bos_token_id"]
    starts = [len(ids_of("tied", prompt)) for prompt in PROMPTS]
    texts = [continued(program, path, prompt) for prompt in PROMPTS]
    rows = [[bos] + ids_of("tied", prompt + text) for prompt, text in zip(PROMPTS, texts)]
    ours = our_logprobs(exported, rows)
    other = [
        (index, at)
        for index, (row, start) in enumerate(zip(rows, starts))
        for at in range(start, len(row) - 1)
        if ours[index]["argmax"][at] != row[at + 1]
    ]
    instead = [rows[i][: at + 1] + [ours[i]["argmax"][at]] for i, at in other]
    likelier = our_logprobs(exported, instead) if instead else []
    gaps = [
        mine["logprobs"][-1] - ours[i]["logprobs"][at + 1]
        for (i, at), mine in zip(other, likelier)
    ]
    total = sum(len(row) - 1 - start for row, start in zip(rows, starts))
    print(f"     {name} continues {len(PROMPTS)} prompts by {total} tokens")
    check(f"{name}: tokens of them that are not our most likely ones", len(gaps), share * max(total, 100))
    check(f"{name}: how much likelier ours were there, nats", max(gaps, default=0), gap)


for reader in READERS:
    if "=" in reader:
        peer_reader(*reader.split("=", 1))
    else:
        known = {"gguf": gguf_reader, "transformers": transformers_reader, "peft": peft_reader}
        (known | {"llama": llama_reader})[reader]()
sys.exit(failed)
