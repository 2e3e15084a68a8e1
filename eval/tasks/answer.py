"""What a probe looks at in one scan, and what it says about it in words and units."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from voxelfm_hf.modeling.modeling_voxelfm_probe import VoxelFMProbe
from voxelfm_hf.volumes import Volume


@dataclass(frozen=True, eq=False)
class EncodedScan:
    """The features of one scan, or of a region of it.

    Args:
        volume: The scan.
        cls: (1, C), on the device of the probe.
        patches: (1, d, h, w, C), on the device of the probe.
        patch_affine: (4, 4) patch index (d, h, w, 1) -> LPS mm.
    """

    volume: Volume
    cls: torch.Tensor
    patches: torch.Tensor
    patch_affine: np.ndarray


@dataclass(frozen=True, eq=False)
class Answer:
    """What a probe says about one scan.

    Args:
        values: Name -> probability, value in its unit, or log risk.
        positive: Finding -> whether its probability reaches the threshold.
        intervals: Target -> prediction interval.
        units: Target -> unit, where known.
        survival: Time -> chance of no event until then.
        points_lps: (points, 3) x, y, z in mm.
        label_map: (D, H, W) classes on the grid of the volume; `volume.restore` puts it on the file's own grid.
        notes: What the processor assumed or could not do.
    """

    values: dict[str, float] = field(default_factory=dict)
    positive: dict[str, bool] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    survival: dict[float, float] = field(default_factory=dict)
    points_lps: np.ndarray | None = None
    label_map: np.ndarray | None = None
    notes: tuple[str, ...] = ()

    def facts(self) -> dict[str, Any]:
        """The parts that are numbers, JSON-ready, empty ones left out."""
        facts: dict[str, Any] = {
            "values": {name: round(value, 4) for name, value in self.values.items()},
            "positive": self.positive,
            "intervals": {name: [round(v, 4) for v in pair] for name, pair in self.intervals.items()},
            "units": self.units,
            "survival": {f"{time:g}": round(chance, 4) for time, chance in self.survival.items()},
            "points_lps_mm": [] if self.points_lps is None else self.points_lps.round(1).tolist(),
            "notes": list(self.notes),
        }
        if self.label_map is not None:
            facts["voxels_a_class"] = np.bincount(self.label_map.reshape(-1)).tolist()
        return {name: value for name, value in facts.items() if value}


def by_name(probe: VoxelFMProbe, values: torch.Tensor | None) -> dict[str, Any]:
    """Values (1, outputs) of one scan under the names of the probe's outputs; none without values."""
    names: Any = probe.config.id2label
    return {} if values is None else {str(names[number]): value for number, value in enumerate(values[0].tolist())}


def units_by_name(probe: VoxelFMProbe) -> dict[str, str]:
    """Output -> unit, where known."""
    names: Any = probe.config.id2label
    return {
        str(names[number]): unit for number, unit in zip(sorted(names), probe.config.target_unit or (), strict=False)
    }
