"""Features of prepared inputs through a backbone, fine-tuned or not, as probes and tasks take them."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from voxelfm_hf.features import process_state
from voxelfm_hf.training.finetune.input_cache import InputCache
from voxelfm_hf.training.finetune.model import encode
from voxelfm_hf.training.probe.data import ProbeFeatures

GRIDS_IN_MEMORY = 64


@torch.no_grad()
def backbone_features(
    backbone: Any,
    inputs: InputCache,
    ids: Sequence[str],
    *,
    patches: bool = False,
    batch_size: int = 8,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> ProbeFeatures:
    """Features of prepared inputs in fp32; a collective call under `accelerate launch`.

    Args:
        backbone: The encoder.
        inputs: Prepared inputs.
        ids: The id of each row.
        patches: Give patch grids, each computed when it is asked for, in place of CLS vectors.
        batch_size: Inputs a forward.
        on_batch: Called with the inputs done and those of this process, first with 0 done; not for patch grids.
    """
    state = process_state()
    backbone = backbone.to(state.device).eval()

    def read(row: int) -> torch.Tensor:
        return inputs.read(ids[row]).to(state.device)

    if patches:

        @lru_cache(maxsize=GRIDS_IN_MEMORY)
        def grid(row: int) -> np.ndarray:
            with torch.no_grad():
                return encode(backbone, [read(row)], patches=True)[0].float().cpu().numpy()

        return ProbeFeatures(patches=grid)
    own = list(range(state.process_index, len(ids), state.num_processes))
    found: list[torch.Tensor] = []
    on_batch(0, len(own))
    for start in range(0, len(own), batch_size):
        found += encode(backbone, [read(row) for row in own[start : start + batch_size]], patches=False)
        on_batch(len(found), len(own))
    width = backbone.config.hidden_size
    cls = torch.zeros((len(ids), width), device=state.device)
    if own:
        cls[own] = torch.stack([vector.float() for vector in found])
    if state.num_processes > 1:
        torch.distributed.all_reduce(cls)
    return ProbeFeatures(cls=cls.cpu())
