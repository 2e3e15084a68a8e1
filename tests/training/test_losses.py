"""Losses, targets and centres against the published code's values, closed forms and slow references."""

import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from voxelfm_hf.training.pretrain import losses, targets


def cross_entropy(rows, prototypes, target, row_weights, **options) -> torch.Tensor:
    """The loss of a single part."""
    total, (value,) = losses.prototype_cross_entropy([losses.Part(rows, target, row_weights)], prototypes, **options)
    assert torch.equal(total, value) and not value.requires_grad
    return total


@pytest.fixture(scope="module")
def published(parity: Path) -> dict[str, torch.Tensor]:
    return load_file(parity / "pretraining" / "losses.safetensors")


def test_dino_centre_and_targets_follow_four_published_steps(published):
    centre = targets.Centre(32, momentum=0.9)
    for step, temperature in enumerate((0.04, 0.05, 0.06, 0.07)):
        if step:
            torch.testing.assert_close(
                centre.value, published[f"dino.step{step}.output.centre_used"], atol=1e-6, rtol=0
            )
        for micro in (0, 1):
            logits = published[f"dino.step{step}.input.teacher{micro}"]
            probabilities = targets.teacher_targets(logits, centre.value, temperature=temperature)
            torch.testing.assert_close(
                probabilities, published[f"dino.step{step}.output.probs{micro}"], atol=1e-5, rtol=0
            )
            centre.accumulate(logits.mean(0))
        centre.update()
    torch.testing.assert_close(centre.value, published["dino.output.centre_final"], atol=1e-6, rtol=0)


def test_ibot_centre_weights_micro_batches_equally(published):
    centre = targets.Centre(32, momentum=0.9)
    for step in range(3):
        for micro in (0, 1):
            centre.accumulate(published[f"ibot.step{step}.input.teacher{micro}"].mean(0))
        centre.update()
        torch.testing.assert_close(centre.value, published[f"ibot.step{step}.output.centre"], atol=1e-6, rtol=0)


def test_centre_stays_when_nothing_was_accumulated_or_the_step_is_dropped():
    centre = targets.Centre(4)
    centre.update()
    assert not centre.is_set
    centre.accumulate(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    centre.update()
    before = centre.value.clone()
    centre.accumulate(torch.full((4,), math.nan))
    centre.discard()
    centre.update()
    assert torch.equal(centre.value, before)
    assert before.tolist() == [[1.0, 2.0, 3.0, 4.0]]  # the first update sets, it does not average with zero


@pytest.mark.parametrize("max_logits", [2**25, 100, 1])
def test_dino_local_term_and_gradient(published, max_logits):
    student = published["dino.input.student_local"].clone().requires_grad_()
    probabilities = targets.teacher_targets(
        published["dino.input.teacher"], published["dino.input.centre"], temperature=0.05
    )
    both = probabilities.unflatten(0, (2, 3)).mean(0)
    image = torch.arange(12) % 3
    loss = cross_entropy(
        student, torch.eye(32), lambda rows: both[image[rows]], torch.full((12,), 2 / 3), max_logits=max_logits
    )
    loss.backward()
    torch.testing.assert_close(loss, published["dino.output.local_raw"][0], atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(student.grad, published["dino.output.local_grad"], atol=1e-6, rtol=1e-5)


def test_dino_global_term_and_gradient(published):
    student = published["dino.input.student_global"].clone().requires_grad_()
    probabilities = targets.teacher_targets(
        published["dino.input.teacher"], published["dino.input.centre"], temperature=0.05
    )
    loss = cross_entropy(student, torch.eye(32), lambda rows: probabilities[rows], torch.full((6,), 1 / 6))
    loss.backward()
    torch.testing.assert_close(loss, published["dino.output.global_raw"][0], atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(student.grad, published["dino.output.global_grad"], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("max_logits", [2**25, 200])
def test_ibot_loss_and_gradient_count_unmasked_images(published, max_logits):
    masks, centre = published["ibot.input.masks"], published["ibot.input.centre"]
    assert (masks.sum(1) == 0).any()
    student = published["ibot.input.student"].clone().requires_grad_()
    teacher = published["ibot.input.teacher"]
    torch.testing.assert_close(
        targets.teacher_targets(teacher, centre, temperature=0.06), published["ibot.output.probs"], atol=1e-6, rtol=0
    )
    loss = cross_entropy(
        student,
        torch.eye(32),
        lambda rows: targets.teacher_targets(teacher[rows], centre, temperature=0.06),
        losses.masked_patch_weights(masks),
        max_logits=max_logits,
    )
    loss.backward()
    torch.testing.assert_close(loss, published["ibot.output.loss"][0], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(student.grad, published["ibot.output.grad"], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("in_cache", [2**21, 150])  # all rows at once, or blocks of 3 rows within chunks of 7
def test_chunks_give_the_same_gradients_for_rows_and_prototypes(monkeypatch, in_cache):
    monkeypatch.setattr(losses, "MAX_LOGITS_IN_CACHE", in_cache)
    generator = torch.Generator().manual_seed(0)
    rows, prototypes = torch.randn(23, 8, generator=generator), torch.randn(50, 8, generator=generator)
    probabilities = torch.softmax(torch.randn(23, 50, generator=generator), dim=-1)
    weights = torch.rand(23, generator=generator)
    results = []
    for max_logits in (2**25, 350):
        leaves = rows.clone().requires_grad_(), prototypes.clone().requires_grad_()
        loss = cross_entropy(*leaves, lambda chunk: probabilities[chunk], weights, max_logits=max_logits)
        loss.backward()
        results.append((loss.detach(), leaves[0].grad, leaves[1].grad))
    for whole, chunked in zip(*results, strict=True):
        torch.testing.assert_close(whole, chunked, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("max_logits", [2**25, 120])
def test_gradients_are_those_of_autograd(max_logits):
    generator = torch.Generator().manual_seed(3)
    probabilities = torch.softmax(torch.randn(9, 40, generator=generator), dim=-1)
    weights = torch.logspace(-6, 0, 9)
    leaves = [torch.randn(n, 5, generator=generator).requires_grad_() for n in (9, 40)]
    plain = -(probabilities * torch.log_softmax(leaves[0] @ leaves[1].T / 0.2, dim=-1)).sum(-1) @ weights
    wanted = torch.autograd.grad(3 * plain, leaves)
    ours = cross_entropy(*leaves, lambda rows: probabilities[rows], weights, temperature=0.2, max_logits=max_logits)
    found = torch.autograd.grad(3 * ours, leaves)
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)
    for expected, gradient in zip(wanted, found, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


def test_chunked_loss_keeps_few_logits_for_the_backward_pass():
    rows, prototypes = torch.randn(64, 4).requires_grad_(), torch.randn(1000, 4).requires_grad_()
    largest = 0

    def note(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        largest = max(largest, tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        cross_entropy(
            rows,
            prototypes,
            lambda chunk: torch.full((rows[chunk].shape[0], 1000), 1e-3),
            torch.ones(64),
            max_logits=8000,
        ).backward()
    assert largest <= 8000


def test_no_masked_patch_is_zero_with_a_gradient_for_every_parameter():
    rows, prototypes = torch.zeros(0, 4, requires_grad=True), torch.ones(3, 4, requires_grad=True)
    loss = cross_entropy(rows, prototypes, lambda chunk: torch.zeros(0, 3), torch.zeros(0))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(prototypes.grad, torch.zeros(3, 4))


def test_parts_add_up_with_their_scales():
    generator = torch.Generator().manual_seed(4)
    prototypes = torch.randn(20, 3, generator=generator).requires_grad_()
    rows = [torch.randn(n, 3, generator=generator).requires_grad_() for n in (5, 0, 2)]
    target = torch.softmax(torch.randn(5, 20, generator=generator), dim=-1)
    parts = [
        losses.Part(own, target[: len(own)].__getitem__, torch.rand(len(own), generator=generator), scale)
        for own, scale in zip(rows, (0.5, 3.0, 2.0), strict=True)
    ]
    total, values = losses.prototype_cross_entropy(parts, prototypes, max_logits=60)
    torch.testing.assert_close(total, 0.5 * values[0] + 3.0 * values[1] + 2.0 * values[2])
    assert values[1].item() == 0
    found = torch.autograd.grad(total, [prototypes, *rows])
    single = [cross_entropy(part.rows, prototypes, part.targets, part.row_weights) * part.scale for part in parts]
    wanted = torch.autograd.grad(sum(single), [prototypes, *rows])
    for gradient, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["small", "two", "batch"])
def test_koleo_loss_and_gradient(published, name):
    rows = published[f"koleo.{name}.input"].clone().requires_grad_()
    loss = losses.koleo_loss(rows)
    loss.backward()
    torch.testing.assert_close(loss, published[f"koleo.{name}.output.loss"][0], atol=1e-6, rtol=1e-6)
    expected = published[f"koleo.{name}.output.grad"]
    torch.testing.assert_close(rows.grad, expected, atol=1e-5 * expected.abs().max().item(), rtol=1e-5)


def test_koleo_of_orthogonal_rows_has_its_closed_form():
    loss = losses.koleo_loss(3.0 * torch.eye(4, dtype=torch.bfloat16))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(-0.5 * math.log(2.0), abs=1e-6)


def test_koleo_of_one_sample_is_zero_and_said_once(caplog, monkeypatch):
    monkeypatch.setattr(losses, "_warned_about_koleo", False)
    row = torch.randn(1, 5, requires_grad=True)
    with caplog.at_level(logging.WARNING):
        loss = losses.koleo_loss(row)
        losses.koleo_loss(row)
    loss.backward()
    assert loss.item() == 0 and torch.isfinite(row.grad).all()
    assert len(caplog.records) == 1


def test_koleo_of_equal_rows_is_finite():
    rows = torch.ones(3, 5, requires_grad=True)
    loss = losses.koleo_loss(rows)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(rows.grad).all()


def sinkhorn_knopp(logits: np.ndarray, temperature: float, iterations: int) -> np.ndarray:
    """The algorithm as written: rescale the whole matrix, prototypes then samples."""
    mass = np.exp(logits / temperature).T
    mass /= mass.sum()
    for _ in range(iterations):
        mass /= mass.sum(axis=1, keepdims=True) * mass.shape[0]
        mass /= mass.sum(axis=0, keepdims=True) * mass.shape[1]
    return (mass * mass.shape[1]).T


def test_row_targets_are_targets_of_the_logits():
    generator = torch.Generator().manual_seed(5)
    rows, prototypes, centre = (torch.randn(*shape, generator=generator) for shape in ((7, 4), (30, 4), (1, 30)))
    torch.testing.assert_close(
        targets.row_targets(rows, prototypes, centre, temperature=0.5),
        targets.teacher_targets(rows @ prototypes.T, centre, temperature=0.5),
    )


@pytest.mark.parametrize("iterations", [1, 3, 50])
def test_sinkhorn_centre_gives_the_textbook_targets(iterations):
    generator = torch.Generator().manual_seed(1)
    rows, prototypes = torch.randn(40, 6, generator=generator), torch.randn(12, 6, generator=generator)
    rows, prototypes = torch.nn.functional.normalize(rows), torch.nn.functional.normalize(prototypes)
    centre = targets.sinkhorn_centre(rows, prototypes, temperature=0.1, iterations=iterations, rows_per_chunk=7)
    logits = rows @ prototypes.T
    ours = targets.teacher_targets(logits, centre, temperature=0.1)
    expected = sinkhorn_knopp(logits.double().numpy(), 0.1, iterations)
    np.testing.assert_allclose(ours.numpy(), expected, atol=2e-5)
    if iterations == 50:
        np.testing.assert_allclose(ours.sum(0).numpy(), 40 / 12, atol=1e-2)  # every prototype is used equally


def test_losses_stay_in_fp32_under_bf16_autocast():
    rows, prototypes = torch.randn(6, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = cross_entropy(
            rows, prototypes, lambda chunk: torch.full((rows[chunk].shape[0], 9), 1 / 9), torch.ones(6), max_logits=20
        )
        assert losses.koleo_loss(rows).dtype == torch.float32
    assert loss.dtype == torch.float32
    loss.backward()
    assert rows.grad.dtype == torch.float32 and torch.isfinite(rows.grad).all()
