"""A quick start for stage 1: image tokens learn to lie at the embeddings of the words that the report uses.

Without the language model's layers, which cost nearly all of the time, resampler and projector learn which words of
its vocabulary a report holds: the similarity of the image tokens and a word's input embedding, the best image token
counting most, must tell reports with the word from those without. The language model then finds words it knows in the
prompt. Image tokens end with the mean norm of those embeddings.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from voxelfm_hf.hub import computes_in_bfloat16
from voxelfm_hf.modeling.modeling_voxelfm_report import VoxelFMForReportGeneration
from voxelfm_hf.modeling.resampler_voxelfm_report import pad_tokens
from voxelfm_hf.training.report.data import ReportPair
from voxelfm_hf.training.report.recipe import StageSettings
from voxelfm_hf.training.schedules import learning_rate

logger = logging.getLogger(__name__)

# A word that nearly all or hardly any reports use teaches nothing.
USED_BY = (0.02, 0.9)
WARMUP_SHARE = 0.05
FIRST_SCALE = 10.0
WEIGHT_DECAY = 1e-2


def learn_words(
    network: VoxelFMForReportGeneration,
    pairs: Sequence[ReportPair],
    labels: Sequence[list[int]],
    read: Callable[[str], torch.Tensor],
    stage: StageSettings,
    *,
    seed: int,
) -> float:
    """Trains resampler and projector on the words of the reports, in place.

    Args:
        network: The report model, its language model frozen.
        pairs: Scans and reports.
        labels: Token ids of each answer, negative where nothing is learned.
        read: From a scan to its tokens (T, C).
        stage: Epochs, learning rate, noise.
        seed: Of the order.

    Returns:
        The mean loss of the last epoch.
    """
    words, targets = word_targets(labels)
    if not len(words):
        logger.warning("no word tells the reports apart: resampler and projector start untrained")
        return math.nan
    embedded: Any = network.get_input_embeddings().weight
    embeddings = embedded.detach()[words].float()
    parts = nn.ModuleList([network.resampler, network.projector]).train()
    head = WordHead(embeddings, targets.mean(0))
    parameters = [*parts.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=stage.word_learning_rate, weight_decay=WEIGHT_DECAY)
    batch_size = min(stage.word_batch_size, len(pairs))
    steps = max(1, math.ceil(stage.word_epochs * len(pairs) / batch_size))
    rate = learning_rate(
        peak=stage.word_learning_rate, end=0.0, warmup_steps=math.ceil(WARMUP_SHARE * steps), total_steps=steps
    )
    epoch_steps = math.ceil(len(pairs) / batch_size)
    losses: list[float] = []
    scale = network.resampler.feature_scale
    native = computes_in_bfloat16(torch.device("cpu"))
    for step in tqdm(range(steps), desc="words", unit="step", disable=None):
        order = np.random.default_rng([seed, 3, step // epoch_steps]).permutation(len(pairs))
        rows = order[(step % epoch_steps) * batch_size :][:batch_size]
        tokens, mask = pad_tokens([read(pairs[row].scan) for row in rows])
        tokens = with_noise(tokens, scale, stage)
        optimizer.param_groups[0]["lr"] = rate(step)
        with torch.autocast("cpu", torch.bfloat16, enabled=native):
            vectors = network.projector(network.resampler(tokens, mask)[0])
        loss = nn.functional.binary_cross_entropy_with_logits(head(vectors.float()), targets[torch.as_tensor(rows)])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, stage.clip_norm)
        optimizer.step()
        losses.append(float(loss.detach()))
        if (step + 1) % epoch_steps == 0:
            logger.info("words: epoch %d, loss %.4f", (step + 1) // epoch_steps, np.mean(losses[-epoch_steps:]))
    parts.zero_grad()  # or the first step of the language model would take the last gradients here along
    with torch.no_grad():
        last: Any = network.projector[-1]
        factor = embeddings.norm(dim=-1).mean() / vectors.float().norm(dim=-1).mean()
        last.weight.mul_(factor)
        last.bias.mul_(factor)
    return float(np.mean(losses[-epoch_steps:]))


def word_targets(labels: Sequence[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids that tell reports apart (V,), and which report holds which (n, V)."""
    held = [{token for token in row if token >= 0} for row in labels]
    counts = Counter(token for row in held for token in row)
    low, high = (share * len(labels) for share in USED_BY)
    words = sorted(token for token, count in counts.items() if low <= count <= high)
    targets = torch.tensor([[float(token in row) for token in words] for row in held]).reshape(len(held), len(words))
    return torch.tensor(words, dtype=torch.long), targets


def with_noise(tokens: torch.Tensor, scale: torch.Tensor, stage: StageSettings) -> torch.Tensor:
    """Tokens (I, T, C) with Gaussian noise on their features, in units of `scale` (C,); coordinates stay."""
    if not stage.feature_noise:
        return tokens
    noisy = (torch.rand(len(tokens), 1, 1, device=tokens.device) < stage.feature_noise_probability).to(tokens.dtype)
    features = tokens[..., : len(scale)]
    features = features + noisy * stage.feature_noise * scale * torch.randn_like(features)
    return torch.cat([features, tokens[..., len(scale) :]], dim=-1)


class WordHead(nn.Module):
    """Image vectors (I, Q, d) -> logits of words (I, V): log-mean-exp over Q of scaled cosines, and a bias a word."""

    words: torch.Tensor

    def __init__(self, embeddings: torch.Tensor, frequencies: torch.Tensor):
        super().__init__()
        self.register_buffer("words", nn.functional.normalize(embeddings - embeddings.mean(0), dim=-1))
        self.scale = nn.Parameter(torch.tensor(FIRST_SCALE))
        self.bias = nn.Parameter(torch.logit(frequencies))

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        cosines = nn.functional.normalize(vectors, dim=-1) @ self.words.T
        return (self.scale * cosines).logsumexp(1) - math.log(vectors.shape[1]) + self.bias
