"""Schedules against the published curves."""

import json
from pathlib import Path

import pytest

from voxelfm_hf.training import schedules


@pytest.fixture(scope="module")
def published(parity: Path) -> dict:
    return json.loads((parity / "pretraining" / "schedules.json").read_text())


@pytest.mark.parametrize(
    ("name", "schedule"),
    [
        ("lr", schedules.learning_rate(peak=1e-3, end=1e-6, warmup_steps=10_000, total_steps=100_000)),
        ("wd", schedules.cosine(start=0.04, end=0.2, total_steps=100_000)),
        ("momentum", schedules.cosine(start=0.994, end=0.994, total_steps=100_000)),
        ("teacher_temp", schedules.linear_then_constant(start=0.04, end=0.07, warmup_steps=30_000)),
        (
            "last_layer_lr",
            schedules.learning_rate(peak=1e-3, end=1e-6, warmup_steps=10_000, total_steps=100_000, frozen_steps=1000),
        ),
    ],
)
def test_published_schedules(published, name, schedule):
    for step, value in published["default"][name]["values"].items():
        assert schedule(int(step)) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("name", ["small", "held"])
def test_short_curves_in_full(published, name):
    case = published[name]
    steps = case.get("cosine", case["total"] - case["warmup"])
    schedule = schedules.Schedule(case["start"], case["peak"], case["end"], case["warmup"], steps)
    assert [schedule(step) for step in range(case["total"])] == pytest.approx(case["values"], rel=1e-12)


def test_after_the_end_a_schedule_keeps_its_last_value():
    assert schedules.cosine(start=1.0, end=0.25, total_steps=5)(10**6) == 0.25
    assert schedules.learning_rate(peak=1.0, end=0.5, warmup_steps=10, total_steps=4)(10) == 0.5
    assert schedules.cosine(start=1.0, end=0.25, total_steps=1)(0) == 0.25


@pytest.mark.parametrize(("steps", "values"), [(1, [3]), (2, [5, 3]), (3, [5, 4, 3])])
def test_shortest_curves_include_both_ends(steps, values):
    schedule = schedules.Schedule(start=0, peak=5, end=3, warmup_steps=2, cosine_steps=steps)
    assert [schedule(step) for step in range(2 + steps)] == pytest.approx([0, 2.5, *values])
