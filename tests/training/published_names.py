"""Parameter names of the published code for parameters of the student here."""

import re

import torch

_LAYER_NAMES = {
    "attention.q_proj": "attn.qkv",
    "attention.k_proj": "attn.qkv",
    "attention.v_proj": "attn.qkv",
    "attention.o_proj": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "mlp.up_proj": "mlp.fc1",
    "mlp.down_proj": "mlp.fc2",
}


def published_name(name: str) -> str:
    """The published name of a student parameter; query, key and value share one."""
    name = name.replace("embeddings.patch_embeddings.", "patch_embed.proj.").replace("embeddings.", "")
    name = re.sub(r"layers\.(\d+)\.", r"blocks.\1.", name)
    for ours, theirs in _LAYER_NAMES.items():
        name = name.replace(ours, theirs)
    return name


def published_value(tensors: dict[str, torch.Tensor], prefix: str, name: str) -> torch.Tensor | None:
    """The published tensor for a student parameter, with query, key and value cut apart."""
    value = tensors.get(prefix + published_name(name))
    for part, key in enumerate(("q_proj", "k_proj", "v_proj")):
        if value is not None and f".{key}." in name:
            value = value.chunk(3)[part]
    if value is not None and name.endswith("mask_token"):
        value = value.reshape(1, 1, -1)
    return value
