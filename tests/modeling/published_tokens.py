"""What the published code computes with its backbones, as tests/data/README.md lists it."""

import torch

VARIANTS = ("mlp_p14", "swiglu_p7", "rope_p8")


def published_tokens(tensors: dict[str, torch.Tensor], group: str) -> torch.Tensor:
    """CLS, registers and patches as one sequence."""
    parts = [tensors[f"{group}.cls"][:, None], tensors.get(f"{group}.registers"), tensors[f"{group}.patches"]]
    return torch.cat([part for part in parts if part is not None], dim=1)
