"""Models as transformers loads them, for the scripts that compare with it."""

import torch
from transformers import AutoModelForCausalLM


def in_floats(path):
    """A model with all its floats in F32."""
    loaded = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    for module in loaded.modules():
        for name, value in list(module.named_parameters(recurse=False)):
            if value.is_floating_point():
                setattr(module, name, torch.nn.Parameter(value.float(), requires_grad=False))
        for name, value in list(module.named_buffers(recurse=False)):
            if value.is_floating_point():
                setattr(module, name, value.float())
    return loaded
