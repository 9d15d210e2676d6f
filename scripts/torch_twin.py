"""The training step of `bitnet-train bench` in PyTorch, written as one writes it there.

The same network (BitLinear with straight-through estimators, RMSNorm with sub-norms, rotary
positions, grouped-query attention through `scaled_dot_product_attention`, gated feed-forward, tied
head), one step = forward, cross-entropy, backward, clipping to norm 1, AdamW. bf16 is autocast with
f32 weights and moments, as `train.precision = "bf16"` is. Prints one line of JSON.

    python torch_twin.py --config configs/s.toml --seq-len 256 --batch 8 --steps 8 \
        [--precision f32|bf16] [--compile] [--vocab-size N] [--threads N]
"""

import argparse
import json
import resource
import statistics
import time
import tomllib

import torch
import torch.nn.functional as F
from torch import nn


def ternary(w):
    """Latents to `T · m`; the gradient goes straight through."""
    scale = 1.0 / w.detach().float().abs().mean().clamp(min=1e-5)
    quantised = ((w.detach().float() * scale).round().clamp(-1, 1) / scale).to(w.dtype)
    return w + (quantised - w).detach()


def levels(x):
    """Each token to 8 bits and back; the gradient goes straight through."""
    scale = 127 / x.detach().float().abs().amax(dim=-1, keepdim=True).clamp(min=1e-5)
    quantised = ((x.detach().float() * scale).round().clamp(-128, 127) / scale).to(x.dtype)
    return x + (quantised - x).detach()


class BitLinear(nn.Linear):
    def __init__(self, width, out):
        super().__init__(width, out, bias=False)

    def forward(self, x):
        return F.linear(levels(x), ternary(self.weight))


class Norm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        width, ffn, eps = c["hidden_size"], c["intermediate_size"], c["rms_norm_eps"]
        self.heads, self.key_heads = c["num_attention_heads"], c["num_key_value_heads"]
        self.head = c.get("head_dim", width // self.heads)
        self.before, self.between = Norm(width, eps), Norm(width, eps)
        self.q = BitLinear(width, self.heads * self.head)
        self.k = BitLinear(width, self.key_heads * self.head)
        self.v = BitLinear(width, self.key_heads * self.head)
        self.attn_norm = Norm(self.heads * self.head, eps)
        self.o = BitLinear(self.heads * self.head, width)
        self.gate, self.up = BitLinear(width, ffn), BitLinear(width, ffn)
        self.ffn_norm, self.down = Norm(ffn, eps), BitLinear(ffn, width)

    def forward(self, x, cos, sin):
        batch, time, _ = x.shape
        y = self.before(x)

        def split(z, heads):
            return z.view(batch, time, heads, self.head).transpose(1, 2)

        def turn(z):
            low, high = z.chunk(2, -1)
            return z * cos + torch.cat((-high, low), -1) * sin

        q, k = turn(split(self.q(y), self.heads)), turn(split(self.k(y), self.key_heads))
        v = split(self.v(y), self.key_heads)
        mixed = F.scaled_dot_product_attention(
            q.to(v.dtype), k.to(v.dtype), v, is_causal=True, enable_gqa=True
        )
        mixed = mixed.transpose(1, 2).reshape(batch, time, -1)
        x = x + self.o(self.attn_norm(mixed))
        y = self.between(x)
        return x + self.down(self.ffn_norm(F.relu(self.gate(y)).square() * self.up(y)))


class Model(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embed = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.blocks = nn.ModuleList(Block(c) for _ in range(c["num_hidden_layers"]))
        self.norm = Norm(c["hidden_size"], c["rms_norm_eps"])
        self.half, self.theta = self.blocks[0].head // 2, c["rope_theta"]
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, ids, targets):
        speeds = self.theta ** (-torch.arange(self.half).float() / self.half)
        angles = torch.outer(torch.arange(ids.shape[1]).float(), speeds)
        angles = torch.cat((angles, angles), -1)
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x, angles.cos(), angles.sin())
        logits = F.linear(self.norm(x), self.embed.weight)
        return F.cross_entropy(logits.float().view(-1, logits.shape[-1]), targets.view(-1))


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--config", required=True)
    for name, default in [("seq-len", 256), ("batch", 8), ("steps", 8), ("threads", 2)]:
        arguments.add_argument(f"--{name}", type=int, default=default)
    arguments.add_argument("--vocab-size", type=int)
    arguments.add_argument("--precision", default="f32", choices=["f32", "bf16"])
    arguments.add_argument("--compile", action="store_true")
    a = arguments.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    with open(a.config, "rb") as file:
        config = {"rms_norm_eps": 1e-5, "rope_theta": 500000.0} | tomllib.load(file)
    config["vocab_size"] = a.vocab_size or config["vocab_size"]
    model = Model(config)
    step = torch.compile(model) if a.compile else model
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    ids, targets = torch.randint(0, config["vocab_size"], (2, a.batch, a.seq_len))
    seconds, losses = [], []
    for _ in range(2 + a.steps):
        began = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=a.precision == "bf16"):
            loss = step(ids, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        seconds.append(time.perf_counter() - began)
    tokens, timed = a.batch * a.seq_len, seconds[2:]
    print(json.dumps({
        "tokens_per_second": tokens / statistics.median(timed),
        "tokens_per_second_min": tokens / max(timed),
        "tokens_per_second_max": tokens / min(timed),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "loss_first": losses[0],
        "loss_last": losses[-1],
        "parameters": sum(p.numel() for p in parameters),
        "torch": torch.__version__,
    }))


if __name__ == "__main__":
    main()
