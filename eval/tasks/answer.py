"""What a probe looks at in one scan, and what it says about it in words and units."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from voxelfm_hf.modeling.modeling_voxelfm_probe import VoxelFMProbe
from voxelfm_hf.volumes import Volume

# What a survival probe gives; the unit of a survival is that of its times.
LOG_RISK = "log risk"


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
        units: Target -> unit, where known; `LOG_RISK` for a log risk.
        survival: Time -> chance of no event until then.
        time_unit: Unit of these times, where known.
        points_lps: (points, 3) x, y, z in mm.
        label_map: (D, H, W) classes on the grid of the volume; `volume.restore` puts it on the file's own grid.
        label_names: Class of the label map -> name.
        region: ((z, y, x) start, (z, y, x) stop) of the cube that was asked about, in voxels of the volume with
            fractions; None for a whole scan.
        notes: What the processor assumed or could not do.
    """

    values: dict[str, float] = field(default_factory=dict)
    positive: dict[str, bool] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    survival: dict[float, float] = field(default_factory=dict)
    time_unit: str = ""
    points_lps: np.ndarray | None = None
    label_map: np.ndarray | None = None
    label_names: dict[int, str] = field(default_factory=dict)
    region: tuple[tuple[float, float, float], tuple[float, float, float]] | None = None
    notes: tuple[str, ...] = ()

    def facts(self) -> dict[str, Any]:
        """The parts that are numbers, JSON-ready, empty ones left out."""
        facts: dict[str, Any] = {
            "values": {name: round(value, 4) for name, value in self.values.items()},
            "positive": self.positive,
            "intervals": {name: [round(v, 4) for v in pair] for name, pair in self.intervals.items()},
            "units": self.units,
            "survival": {f"{time:g}": round(chance, 4) for time, chance in self.survival.items()},
            "time_unit": self.time_unit,
            "points_lps_mm": [] if self.points_lps is None else self.points_lps.round(1).tolist(),
            "notes": list(self.notes),
        }
        if self.label_map is not None:
            counts = np.bincount(self.label_map.reshape(-1), minlength=len(self.label_names)).tolist()
            facts["voxels"] = {self.label_names[number]: count for number, count in enumerate(counts)}
        return {name: value for name, value in facts.items() if value}

    def text(self) -> str:
        """The answer in a few words, such as "nodule 0.81 (positive)"; a label map speaks for itself."""
        parts = []
        for name, value in self.values.items():
            unit = self.units.get(name, "")
            part = f"{LOG_RISK} of {name} {value:.3g}" if unit == LOG_RISK else f"{name} {value:.3g} {unit}".rstrip()
            if name in self.intervals:
                part += " ({:.3g} to {:.3g})".format(*self.intervals[name])
            if name in self.positive:
                part += " (positive)" if self.positive[name] else " (negative)"
            parts.append(part)
        if self.survival:
            time, chance = list(self.survival.items())[-1]
            parts.append(f"{chance:.0%} without event until {time:g} {self.time_unit}".rstrip())
        for point in [] if self.points_lps is None else self.points_lps:
            parts.append("x {:.1f}, y {:.1f}, z {:.1f} mm".format(*point))
        return "; ".join(parts)


def output_names(probe: VoxelFMProbe) -> dict[int, str]:
    """Names of the probe's labels, targets or classes by number, in order."""
    names: dict[Any, str] = {**(probe.config.id2label or {})}
    return {int(number): str(name) for number, name in sorted(names.items())}


def by_name(probe: VoxelFMProbe, values: torch.Tensor | None) -> dict[str, Any]:
    """Values (1, outputs) of one scan under the names of the probe's outputs; none without values."""
    names = output_names(probe)
    return {} if values is None else {names[number]: value for number, value in enumerate(values[0].tolist())}


def units_by_name(probe: VoxelFMProbe) -> dict[str, str]:
    """Output -> unit, where known."""
    return dict(zip(output_names(probe).values(), probe.config.target_unit or (), strict=False))
