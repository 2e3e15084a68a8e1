"""A finished benchmark read back from its folder: results.json and the kept predictions of the first seed."""

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from voxelfm_hf.eval.benchmark.folder import task_folder
from voxelfm_hf.volumes.errors import RecipeError


@dataclass(frozen=True)
class FinishedBenchmark:
    """The folder of a benchmark, opened for reading.

    Args:
        folder: With results.json.
    """

    folder: Path

    @cached_property
    def facts(self) -> dict[str, Any]:
        """results.json."""
        try:
            return json.loads((self.folder / "results.json").read_text())
        except (OSError, ValueError):
            raise RecipeError(
                f"{self.folder} holds no results.json of a benchmark: make one with `voxelfm benchmark`"
            ) from None

    def families(self) -> dict[str, str]:
        """Task -> family, in the order of the recipe."""
        return {row["task"]: row["family"] for row in self.facts["rows"]}

    def options(self, task: str) -> dict[str, Any]:
        """The read options of a task in the recipe."""
        tasks: list[dict[str, Any]] = self.facts["recipe"]["tasks"]
        return next((entry["read"] for entry in tasks if task == (entry["name"] or entry["task"])), {})

    def main_rows(self, task: str, *, whole: bool = True) -> list[dict[str, Any]]:
        """Rows of the main metric of a task; by default at all labels only."""
        rows = [row for row in self.facts["rows"] if row["task"] == task and row["main"]]
        largest = max((row["fraction"] for row in rows), default=1.0)
        return [row for row in rows if not whole or row["fraction"] == largest]

    def encoders(self, task: str, *, references: bool = False) -> list[str]:
        """Encoders that were scored on a task; ceiling and floor only if asked for."""
        rows = self.main_rows(task)
        return list(dict.fromkeys(r["encoder"] for r in rows if references or r["kind"] != "reference"))

    def predictions(self, encoder: str, task: str) -> pa.Table | None:
        """Predictions of the first seed at all labels; None without a fit."""
        for path in sorted(task_folder(self.folder, encoder, task).glob("seed-*.parquet"), key=_seed):
            table = pq.read_table(path)
            if not table.num_rows or "fraction" not in table.column_names:
                continue
            table = table.filter(pc.equal(table["fraction"], pc.max(table["fraction"])))
            return table.filter(pc.equal(table["note"], ""))
        return None

    def by_target(self, encoder: str, task: str) -> dict[str, dict[str, np.ndarray]]:
        """Target -> column -> values of those predictions."""
        table = self.predictions(encoder, task)
        if table is None:
            return {}
        return {
            target: {
                name: np.array(part[name].to_pylist())
                for part in [table.filter(pc.equal(table["target"], target))]
                for name in part.column_names
                if part[name].null_count < part.num_rows and not pa.types.is_list(part[name].type)
            }
            for target in dict.fromkeys(table["target"].to_pylist())
        }


def _seed(path: Path) -> float:
    text = path.stem.removeprefix("seed-")
    return int(text) if text.isdigit() else math.inf
