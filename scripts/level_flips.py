"""Whether a difference between two log-likelihoods is a level flip: shown for one request at a time.

An activation becomes one of 255 levels before every ternary matrix. Where its value lies within float rounding of
a half, two programs that add up in another order take two different levels, and what follows differs by far more
than rounding. For one request `LevelFlips.of` finds, with transformers:

    exact     its log-likelihood in f64;
    replayed  the one in f32 with the levels of f64: what rounding does without a flip;
    reach     the largest difference between f32 and f64 before a quantiser, in levels;
    ties      how many activations lie within reach of a half;
    mean, spread    of log-likelihoods in f32 where each of these takes a side by chance.

A value of another program is explained if `replayed` is near `exact` and the value is one that chance gives. Over
many requests the squares of (value - mean) / spread average about 1; a mistake of the program makes that larger.
"""

import copy

import torch
import transformers.integrations.bitnet as integration
import transformers.models.bitnet.modeling_bitnet as modeling

from transformers_floats import in_floats

SMALLEST = 1e-5


class Quantiser:
    """Stands in for the activation quantiser of transformers; `choose` makes levels of scaled values."""

    def __init__(self):
        self.choose = torch.round

    def apply(self, x):
        scale = 127 / x.abs().max(dim=-1, keepdim=True).values.clamp(min=SMALLEST)
        return self.choose(x * scale).clamp(-128, 127) / scale


class Recorded:
    """The values before each quantiser of one pass."""

    def __init__(self):
        self.values = []

    def __call__(self, scaled):
        self.values.append(scaled)
        return scaled.round()


class Replayed:
    """Gives another pass the levels of a recorded one, and measures how far its values lie from those."""

    def __init__(self, recorded):
        self.recorded, self.at, self.reach = recorded, 0, 0.0

    def __call__(self, scaled):
        value = self.recorded.values[self.at]
        self.at += 1
        self.reach = max(self.reach, (scaled.double() - value).abs().max().item())
        return value.round().to(scaled.dtype)


class Tossed:
    """A side by chance for each value within `reach` of a half."""

    def __init__(self, reach):
        self.reach, self.draw = reach, torch.Generator().manual_seed(1)

    def __call__(self, scaled):
        below = scaled.floor()
        side = torch.rand(scaled.shape, generator=self.draw).round()
        return torch.where((scaled - below - 0.5).abs() <= self.reach, below + side, scaled.round())


def norm_in_own_precision(self, x):
    """The norm of transformers without its step down to f32."""
    return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


class LevelFlips:
    def __init__(self, path, tosses):
        self.quantiser, self.tosses = Quantiser(), tosses
        integration.ActQuant = self.quantiser
        modeling.BitNetRMSNorm.forward = norm_in_own_precision
        self.floats = in_floats(path).eval()
        self.doubles = copy.deepcopy(self.floats).double()
        self.most = self.floats.config.max_position_embeddings

    @torch.no_grad()
    def logs(self, model, ids, choose, copies=1):
        """Logarithms of probabilities after each token, `copies` times."""
        self.quantiser.choose = choose
        return model(torch.tensor([ids[-self.most:]] * copies)).logits.double().log_softmax(-1)

    def scores(self, model, requests, choose, copies=1):
        """The log-likelihood of (context, continuation) pairs of token ids, added up; `copies` times."""
        total = torch.zeros(copies, dtype=torch.float64)
        for context, continuation in requests:
            logs = self.logs(model, (context + continuation)[:-1], choose, copies)[:, -len(continuation):]
            wanted = torch.tensor(continuation).expand(copies, -1)
            total += logs.gather(2, wanted[..., None]).sum((1, 2))
        return total

    def of(self, requests):
        """What the levels of a request leave open."""
        recorded = Recorded()
        exact = self.scores(self.doubles, requests, recorded).item()
        replay = Replayed(recorded)
        replayed = self.scores(self.floats, requests, replay).item()
        ties = sum(((value - value.floor() - 0.5).abs() <= replay.reach).sum().item() for value in recorded.values)
        tossed = self.scores(self.floats, requests, Tossed(replay.reach), self.tosses)
        return {"exact": exact, "replayed": replayed, "reach": replay.reach, "ties": ties,
                "mean": tossed.mean().item(), "spread": tossed.std().item()}

    @torch.no_grad()
    def least_lead(self, prompt, text, decode, most=256):
        """How far the two most likely tokens lie apart where they are nearest, as long as `text` is the greedy one."""
        self.quantiser.choose = torch.round
        made = self.floats.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=most,
                                    output_logits=True, return_dict_in_generate=True)
        ids, least = made.sequences[0, len(prompt):].tolist(), float("inf")
        for at, logits in enumerate(made.logits):
            first, second = logits[0].topk(2).values.tolist()
            least = min(least, first - second)
            if not text.startswith(decode(ids[: at + 1])):
                break
        return least
