#!/usr/bin/env python3
"""Writes golden fixture sets of any seed and shape, as tests/fixtures/golden/README.md describes them,
for `BITNET_FIXTURES=FOLDER cargo test golden`: the tests hold on any set, not on two chosen ones.

    TORCHDYNAMO_DISABLE=1 python3 scripts/make_golden.py FOLDER [COUNT [FIRST_SEED]]     default: 20, seed 100

Needs torch, transformers 5, trl, safetensors. Seeds are taken as they come: no margin is searched, so some
sets have near-ties. Every number is that of library code: BitNetForCausalLM with AutoBitLinear, AdamW,
TRL's DPOTrainer, pack_weights.
"""
import json, os, random, shutil, sys, tempfile

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
import torch
from datasets import Dataset
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn.functional import cross_entropy, logsigmoid
from transformers import AutoModelForCausalLM, BitNetConfig, BitNetForCausalLM, PreTrainedTokenizerFast
from transformers.integrations.bitnet import ActQuant, WeightQuant, pack_weights
from trl import DPOConfig, DPOTrainer

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)
# Width, heads, heads of keys, width of the feed-forward part, vocabulary.
SHAPES = [(64, 4, 2, 96, 64), (72, 6, 3, 100, 72), (60, 5, 1, 84, 80), (72, 6, 2, 96, 64), (60, 5, 5, 92, 60),
          (48, 3, 1, 68, 96), (64, 4, 4, 80, 48)]
BETAS, EPS, BETA = (0.9, 0.95), 1e-8, 0.1
QUANTISED = dict(quant_method="bitnet", linear_class="autobitlinear", quantization_mode="online")


def fresh(config):
    """Values that BF16 holds exactly; no norm is trivial."""
    model = BitNetForCausalLM(config).float()
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(1 + 0.2 * torch.randn_like(value) if name.endswith("norm.weight")
                        else 0.15 * torch.randn_like(value))
            value.copy_(value.bfloat16().float())
    return model


def opened(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    assert type(model.model.layers[0].mlp.up_proj).__name__ == "AutoBitLinear"
    return model.train()


def loss_of(model, rows, labels=None, reduction="mean"):
    logits = model(rows, use_cache=False).logits[:, :-1].flatten(0, 1)
    return cross_entropy(logits, (rows if labels is None else labels)[:, 1:].flatten(), reduction=reduction)


def gradients(model):
    return {name: value.grad.detach().clone() for name, value in model.named_parameters()}


def units():
    """The two quantisers alone: zeros, an outlier, below eps, ties."""
    weights, activations = torch.randn(12, 20) * 0.1, torch.randn(6, 32) * 3
    weights[0, 0], activations[1], activations[2, 3], activations[3] = 4.0, 0, 300.0, 1e-7
    ties = torch.tensor([[0.5, -0.5, 1.5, 1.5], [1.0, 1.0, 1.0, 1.0]])
    rows = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -127.0, 3.0]] * 2)
    out = {}
    for key, value, quantise in [
        ("wq.", weights, WeightQuant), ("wq.tie_", ties, WeightQuant), ("wq.zero_", torch.zeros(4, 8), WeightQuant),
        ("aq.", activations, ActQuant), ("aq.tie_", rows, ActQuant),
    ]:
        out[f"unit.{key}in"], out[f"unit.{key}out"] = value, quantise.apply(value)
    return out


def forward(folder, rows, labels):
    model = opened(folder).eval()
    with torch.no_grad():
        out = model(rows, output_hidden_states=True, use_cache=False)
        found = dict(units(), input_ids=rows, labels_mask=labels, logits=out.logits)
        for at, state in enumerate(out.hidden_states):
            found[f"hidden.{at}"] = state
        logps = out.logits[:, :-1].log_softmax(-1)
        found["target_logps"] = logps.gather(-1, rows[:, 1:, None]).squeeze(-1)
        # Two documents in one row; each alone gives what the packed row must give.
        cut, packed = 7, rows.flip(1)[0]
        found["packdoc.input_ids"] = packed
        found["packdoc.doc_ids"] = torch.tensor([0] * cut + [1] * (len(packed) - cut))
        found["packdoc.position_ids"] = torch.cat([torch.arange(cut), torch.arange(len(packed) - cut)])
        parts = [model(part[None], use_cache=False).logits[0] for part in (packed[:cut], packed[cut:])]
        found["packdoc.logits"] = torch.cat(parts)
    return found


def losses(folder, rows, labels, meta):
    found = {}
    for name, targets, reduction in [("mean_all", None, "mean"), ("sum_masked", labels, "sum")]:
        model = opened(folder)
        loss = loss_of(model, rows, targets, reduction)
        loss.backward()
        meta[f"loss_{name}"] = loss.item()
        found |= {f"{name}.{key}": value for key, value in gradients(model).items()}
    count = int((labels[:, 1:] >= 0).sum())
    meta |= dict(n_masked_targets=count, loss_mean_masked=meta["loss_sum_masked"] / count)
    return found


def adamw_unit(meta):
    lr, wd, change = [3e-3, 1e-3], [0.1, 0.0], 11
    meta["adamw_unit"] = dict(lr=lr, change_at_step=change, wd_group0=wd, wd_group1=[0.0, 0.0], betas=BETAS, eps=EPS)
    parts = [torch.nn.Parameter(torch.randn(7, 5)), torch.nn.Parameter(torch.randn(9))]
    given = [torch.randn(20, 7, 5), torch.randn(20, 9)]
    optimizer = torch.optim.AdamW([dict(params=[p]) for p in parts], betas=BETAS, eps=EPS)
    found = {f"g{i}": g for i, g in enumerate(given)} | {f"p{i}.step0": p.detach().clone() for i, p in enumerate(parts)}
    for step in range(1, 21):
        late = int(step >= change)
        for i, group in enumerate(optimizer.param_groups):
            group["lr"], group["weight_decay"] = lr[late], wd[late] if i == 0 else 0.0
            parts[i].grad = given[i][step - 1].clone()
        optimizer.step()
        found |= {f"p{i}.step{step}": p.detach().clone() for i, p in enumerate(parts)}
    for i, p in enumerate(parts):
        found |= {f"p{i}.{key}": optimizer.state[p][key].clone() for key in ("exp_avg", "exp_avg_sq")}
    return found


def trajectory(folder, batches, rates, clip, kept, meta):
    """Steps of torch's AdamW over every parameter; `rates` are (lr, wd) of each step."""
    model, found = opened(folder), {}
    optimizer = torch.optim.AdamW(model.parameters(), betas=BETAS, eps=EPS)
    meta |= dict(betas=BETAS, eps=EPS, clip_grad_norm_max=clip, steps=[])
    for step, (lr, wd) in enumerate(rates, 1):
        for group in optimizer.param_groups:
            group["lr"], group["weight_decay"] = lr, wd
        optimizer.zero_grad()
        loss = loss_of(model, batches[(step - 1) % len(batches)])
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip or float("inf"))
        optimizer.step()
        meta["steps"].append(dict(step=step, loss=loss.item(), grad_norm=norm.item(), lr=lr, wd=wd))
        if step in kept:
            found |= {f"step{step}.{name}": value.detach().clone() for name, value in model.named_parameters()}
    return found


def two_phases():
    warm, decay = [5e-4 * step for step in range(1, 5)], [2e-3 * (1 - i / 12) for i in range(1, 7)]
    return [(lr, 0.1) for lr in warm + decay] + [(5e-5 * (10 - i), 0.0) for i in range(10)]


def preferences(folder, config, meta, source):
    """A batch of pairs through TRL's trainer, against a reference near the policy."""
    # No special token is the beginning of a word: it would be found there.
    words = {"<pad>": 0, "<bos>": 1, "<eos>": 2} | {f"t{i}": i for i in range(3, config.vocab_size)}
    spelled = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    spelled.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=spelled, eos_token="<eos>", pad_token="<pad>",
                                        bos_token="<bos>")
    text = lambda: " ".join(f"t{source.randrange(3, config.vocab_size)}" for _ in range(source.randint(3, 8)))
    pairs = [dict(prompt=text(), chosen=" " + text(), rejected=" " + text()) for _ in range(3)]
    scratch = tempfile.mkdtemp()
    policy, reference = opened(folder), opened(os.path.join(folder, "reference"))
    arguments = DPOConfig(output_dir=scratch, beta=BETA, per_device_train_batch_size=3, report_to=[], bf16=False,
                          fp16=False, use_cpu=True, gradient_checkpointing=False, disable_dropout=True,
                          dataloader_num_workers=0, logging_steps=1)
    trainer = DPOTrainer(policy, reference, arguments, train_dataset=Dataset.from_list(pairs), processing_class=tokenizer)
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, dict(batch))
    loss.backward()
    found = {f"grad.{name}": value for name, value in gradients(trainer.model).items()}
    ids, mask = batch["input_ids"], batch["completion_mask"]

    def scored(model):
        with torch.no_grad():
            logps = model(ids, attention_mask=batch["attention_mask"], use_cache=False).logits[:, :-1].log_softmax(-1)
        return (logps.gather(-1, ids[:, 1:, None]).squeeze(-1) * mask[:, 1:]).sum(1)

    ours, theirs = scored(policy), scored(reference)
    margins = (ours - theirs)[:3] - (ours - theirs)[3:]
    assert ids[batch["attention_mask"] == 1].min() > 0, "padding has no gradient in torch"
    found |= dict(input_ids=ids, attention_mask=batch["attention_mask"], completion_mask=mask, policy_logps=ours,
                  ref_logps=theirs, per_pair_loss=-logsigmoid(BETA * margins))
    logged = {key: value[-1] for key, value in trainer._metrics["train"].items() if value}
    meta["dpo"] = dict(beta=BETA, loss_trl=loss.item(), trl_metrics=logged, rows=pairs)
    shutil.rmtree(scratch)
    return found


def packed(folder, config, rows):
    """The packed model as transformers writes it, its codes, and the logits that its reader computes."""
    master, out, expected = opened(folder), {}, {}
    for name, value in master.named_parameters():
        if "_proj" not in name:
            out[name] = value.detach().bfloat16()
            continue
        scale = value.detach().abs().mean().clamp(min=1e-5)
        code = (value.detach() * (1 / scale)).round().clamp(-1, 1).to(torch.int8)
        expected[f"code.{name.removesuffix('.weight')}"] = code
        out[name], out[f"{name}_scale"] = pack_weights(code.float()), scale.reshape(1)
    target = os.path.join(folder, "packed")
    os.makedirs(target)
    save_file({key: value.contiguous() for key, value in out.items()}, os.path.join(target, "model.safetensors"),
              metadata=dict(format="pt"))
    text = json.load(open(os.path.join(folder, "config.json")))
    for name, kind in [("config.json", "autobitlinear"), ("config.bitlinear.json", "bitlinear")]:
        text["quantization_config"] = dict(quant_method="bitnet", quantization_mode="offline", linear_class=kind)
        json.dump(text, open(os.path.join(target, name), "w"), indent=1)
    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32, attn_implementation="eager")
    # transformers keeps the BF16 tensors of such a folder in BF16 whatever is asked for.
    for module in model.modules():
        for name, value in list(module.named_parameters(recurse=False)):
            if value.is_floating_point():
                setattr(module, name, torch.nn.Parameter(value.float(), requires_grad=False))
    if config.tie_word_embeddings:
        model.tie_weights()
    with torch.no_grad():
        expected["logits_autobitlinear_offline_f32"] = model.eval()(rows, use_cache=False).logits
    # The other reader divides by one over the same scale: the same product.
    expected["logits_bitlinear_f32"] = expected["logits_autobitlinear_offline_f32"].clone()
    return expected


def save(folder, name, tensors):
    save_file({key: value.detach().contiguous() for key, value in tensors.items()}, os.path.join(folder, name))


def write(root, seed):
    random_words = random.Random(seed)
    width, heads, keys, ffn, vocab = SHAPES[seed % len(SHAPES)]
    tied = seed % 2 == 0
    config = BitNetConfig(
        vocab_size=vocab, hidden_size=width, intermediate_size=ffn, num_hidden_layers=2 + seed % 3 // 2,
        num_attention_heads=heads, num_key_value_heads=keys, max_position_embeddings=128, rms_norm_eps=1e-5,
        use_cache=False, pad_token_id=0, bos_token_id=1, eos_token_id=2, tie_word_embeddings=tied)
    folder = os.path.join(root, f"seed-{seed}-w{width}-h{width // heads}-{'tied' if tied else 'untied'}")
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(seed)
    model = fresh(config)
    model.bfloat16().save_pretrained(folder)
    with torch.no_grad():
        for value in model.parameters():
            value.copy_((value.float() + 0.01 * torch.randn(value.shape)).bfloat16())
    model.save_pretrained(os.path.join(folder, "reference"))
    text = json.load(open(os.path.join(folder, "config.json"))) | dict(quantization_config=QUANTISED, dtype="float32")
    for place in ["config.json", "reference/config.json"]:
        json.dump(text, open(os.path.join(folder, place), "w"), indent=1)
    rows, batches = torch.randint(3, vocab, (2, 16)), torch.randint(3, vocab, (4, 2, 16))
    labels = rows.where(torch.rand(2, 16) < 0.5, -100)
    labels[:, 5] = rows[:, 5]
    meta = dict(set=os.path.basename(folder), seed=seed, torch=torch.__version__)
    save(folder, "forward.safetensors", forward(folder, rows, labels))
    save(folder, "grads.safetensors", losses(folder, rows, labels, meta))
    save(folder, "adamw_unit.safetensors", adamw_unit(meta))
    save(folder, "train_batches.safetensors", dict(batches=batches))
    for name, rates, clip, kept in [("A", [(2e-4, 0.1)] * 20, None, (1, 5, 20)), ("B", two_phases(), 0.5, (20,))]:
        meta[f"trajectory_{name}"] = steps = {}
        save(folder, f"traj_{name}.safetensors", trajectory(folder, batches, rates, clip, kept, steps))
    save(folder, "dpo.safetensors", preferences(folder, config, meta, random_words))
    save(folder, "packed/expected.safetensors", packed(folder, config, rows))
    reference = os.path.join(folder, "reference")
    os.rename(os.path.join(reference, "model.safetensors"), os.path.join(folder, "dpo_reference_model.safetensors"))
    shutil.rmtree(reference)
    json.dump(meta, open(os.path.join(folder, "meta.json"), "w"), indent=1)
    print(f"{folder}: loss {meta['loss_mean_all']:.4f}, after 20 steps {meta['trajectory_A']['steps'][-1]['loss']:.4f}",
          flush=True)


if __name__ == "__main__":
    root, count, first = sys.argv[1], *(int(n) for n in (sys.argv[2:] + ["20", "100"][len(sys.argv) - 2:]))
    for seed in range(first, first + count):
        write(root, seed)
