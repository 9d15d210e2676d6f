#!/usr/bin/env python3
"""Writes tests/fixtures/golden/distillation.safetensors: the losses of `[distill]` in PyTorch.

Everything is computed in float64 from inputs that float32 holds exactly, and stored in float32. The formulas
are those of docs/src/distillation.md, written with torch's own functions (`kl_div`, `cross_entropy`,
`normalize`), and autograd derives the gradients.

    python scripts/make_distillation.py tests/fixtures/golden/distillation.safetensors
"""

import sys

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

TOKENS, WIDTH, TEACHER_WIDTH, VOCAB, KNOWN = 14, 8, 12, 40, 6
TEMPERATURE, CROSS_ENTROPY, LOGITS = 2.5, 0.7, 1.3
# Query heads, key heads and the width of a head.
STUDENT, TEACHER = (4, 2, 6), (6, 2, 8)
# Two documents and padding.
LENGTHS = (5, 6, 3)


def draw(*shape):
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float32).double()


def divergence(teacher, student):
    """KL(teacher || student) of each row, from logarithms."""
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)


def whole(student, teacher):
    tempered = [F.log_softmax(logits / TEMPERATURE, -1) for logits in (teacher, student)]
    return divergence(*tempered)


def top(student, teacher):
    """Of the teacher's KNOWN words and all others together."""
    known = teacher.topk(KNOWN, -1).indices
    others = torch.ones_like(teacher, dtype=torch.bool).scatter(-1, known, False)

    def joined(logits):
        rest = logits.masked_fill(~others, float("-inf")).logsumexp(-1, keepdim=True)
        return torch.cat([logits.gather(-1, known), rest], -1)

    return whole(joined(student), joined(F.log_softmax(teacher, -1)))


def relations(own, theirs, form, mask):
    """Summed over queries, keys and values, a mean over heads, of each document by itself."""
    total, start = torch.zeros((), dtype=torch.float64), 0
    for length in LENGTHS:
        rows = slice(start, start + length)
        start += length
        at = [0, 0]
        for part in range(3):
            logs = []
            heads = torch.gcd(torch.tensor(STUDENT[min(part, 1)]), torch.tensor(TEACHER[min(part, 1)]))
            for model, (x, spec) in enumerate(((theirs, TEACHER), (own, STUDENT))):
                width = spec[min(part, 1)] * spec[2]
                x = x[rows, at[model] : at[model] + width]
                at[model] += width
                x = x.view(length, int(heads), -1).transpose(0, 1)
                if form == "cosine":
                    x = F.normalize(x, dim=-1)
                    scores = x @ x.transpose(1, 2)
                else:
                    scores = x @ x.transpose(1, 2) / x.shape[-1] ** 0.5
                logs.append(F.log_softmax(scores, -1))
            total = total + (divergence(*logs).mean(0) * mask[rows]).sum()
    return total


def main(path):
    hidden, head = draw(TOKENS, WIDTH).requires_grad_(), draw(VOCAB, WIDTH).requires_grad_()
    teacher_hidden, teacher_head = draw(TOKENS, TEACHER_WIDTH), draw(VOCAB, TEACHER_WIDTH)
    ids = torch.randint(VOCAB, (TOKENS,), generator=GENERATOR)
    mask = torch.tensor([1.0] * 4 + [0.0] + [1.0] * 5 + [0.0] * 4, dtype=torch.float64)
    out = {
        "hidden": hidden, "head": head, "teacher_hidden": teacher_hidden,
        "teacher_head": teacher_head, "ids": ids.double(), "mask": mask,
    }
    for name, loss in (("whole", whole), ("top", top)):
        hidden.grad = head.grad = None
        student, teacher = hidden @ head.T, teacher_hidden @ teacher_head.T
        plain = (F.cross_entropy(student, ids, reduction="none") * mask).sum()
        kl = (loss(student, teacher) * mask).sum()
        total = CROSS_ENTROPY * plain + LOGITS * kl
        total.backward()
        out |= {
            f"{name}.losses": torch.stack([total, plain, kl]),
            f"{name}.hidden": hidden.grad, f"{name}.head": head.grad,
        }
    widths = [(spec[0] + 2 * spec[1]) * spec[2] for spec in (STUDENT, TEACHER)]
    own, theirs = draw(TOKENS, widths[0]).requires_grad_(), draw(TOKENS, widths[1])
    out |= {"own": own, "theirs": theirs}
    for form in ("cosine", "scaled"):
        own.grad = None
        loss = relations(own, theirs, form, mask)
        loss.backward()
        out |= {f"{form}.loss": loss.reshape(1), f"{form}.own": own.grad}
    save_file({key: value.detach().float().contiguous() for key, value in out.items()}, path)


GENERATOR = torch.Generator().manual_seed(20261129)
if __name__ == "__main__":
    main(sys.argv[1])
