"""From a scan to a clinical answer: the backbone that a probe names, the probe, and what it says in words and units."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from voxelfm_hf.eval.tasks.localization import to_lps
from voxelfm_hf.eval.tasks.segmentation import segment
from voxelfm_hf.features.tiles import encode
from voxelfm_hf.modeling.image_processing_voxelfm import VoxelFMGeometry
from voxelfm_hf.modeling.probe_heads_voxelfm import pooled_grid
from voxelfm_hf.probe_model import load_with_probe
from voxelfm_hf.scan_list import Region
from voxelfm_hf.volumes import Volume

# Patients and tables differ by less in size than this; a crop of a nodule and a whole chest by more.
UNLIKE_TIMES = 2


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


class ProbeReader:
    """A probe with its backbone and image processor, ready for scans.

    Args:
        probe: Folder or Hub repository of the probe, or of a `VoxelFMForImageClassification`.
        model: Folder or Hub repository of the backbone; by default the one the probe names.
        device: Where to compute.

    Raises:
        ModelError: the backbone cannot be found, or has other weights than the probe was fitted on.
    """

    def __init__(self, probe: str | Path, *, model: str | Path | None = None, device: str = "cpu"):
        self.probe, network, self.processor = load_with_probe(probe, model=model)
        self.network = network.to(device)
        self.probe.to(device)  # type: ignore[arg-type]
        self.device = device
        settings = self.probe.config.processor or {}
        self.region_size: int | None = settings.get("region_size")
        self.tile: int | None = settings.get("tile")

    @property
    def class_names(self) -> dict[int, str]:
        """Names of labels, targets or classes by number."""
        return {int(number): str(name) for number, name in (self.probe.config.id2label or {}).items()}

    @torch.inference_mode()
    def answer(self, volume: Volume, *, region: Region | None = None) -> Answer:
        """What the probe says about a scan, or about a region of it for a probe that was fitted on regions.

        Args:
            volume: The scan.
            region: The cube to look at.

        Raises:
            ValueError: a scan that cannot be prepared; a region for a probe of whole scans, or none for one of regions.
        """
        if region is None and self.region_size:
            raise ValueError("the probe was fitted on regions: say where to look (--regions, or --point X,Y,Z,EDGE)")
        if region is None:
            prepared = self.processor(volume, return_geometry=True)
            voxels, geometry = prepared["pixel_values"][0], prepared["geometry"][0]
        elif self.region_size is None:
            raise ValueError("the probe was fitted on whole scans: leave the region out")
        else:
            voxels, geometry = self.processor.prepare_region(
                volume, region.centre_lps, region.edge_mm, self.region_size
            )
        notes = (*geometry.notes, *self._unlike_training(geometry))
        cls, patches = encode(self.network, voxels[None].to(self.device), tile=None if region else self.tile)
        config = self.probe.config
        if config.task == "segmentation":
            affine = volume.affine @ geometry.patch_to_voxel()
            labels = segment(self.probe, patches[0].cpu().numpy(), affine, volume, device=self.device)
            return Answer(label_map=labels, notes=notes)
        if config.task == "localization":
            patches = pooled_grid(patches[0], config.max_positions)[None]
        found: Any = self.probe.predict(cls=cls, patches=patches)
        if config.task == "localization":
            affine = volume.affine @ geometry.patch_to_voxel()
            points = to_lps(found.predictions[0].cpu().numpy(), affine, np.array(geometry.grid))
            return Answer(points_lps=points, notes=notes)
        return self._numbers(found, notes)

    def _unlike_training(self, geometry: VoxelFMGeometry) -> list[str]:
        """A note where the scan shows much less or much more than the scans that the probe was fitted on."""
        known = (self.probe.config.fit or {}).get("field_of_view_mm")
        if known is None:
            return []
        extent = np.array(geometry.grid) * self.processor.patch_size * np.array(geometry.spacing_mm)
        low, high = np.array(known)
        if (extent >= low / UNLIKE_TIMES).all() and (extent <= high * UNLIKE_TIMES).all():
            return []
        texts = (" x ".join(f"{mm:.0f}" for mm in edges) for edges in (extent, low, high))
        return ["it covers {} mm (z, y, x), the scans that the probe was fitted on {} to {} mm".format(*texts)]

    def _numbers(self, found: Any, notes: tuple[str, ...]) -> Answer:
        config = self.probe.config
        names = [self.class_names[i] for i in range(config.num_outputs)]
        values = dict(zip(names, found.predictions[0].tolist(), strict=True))
        units = dict(zip(names, config.target_unit or [], strict=False))
        if config.task == "survival":
            times = torch.tensor(config.baseline_times or [], device=found.predictions.device)
            curve = self.probe.survival(found.predictions, times)[0] if len(times) else times
            survival = dict(zip(times.tolist(), curve.tolist(), strict=True))
            return Answer(values=values, survival=survival, units=units, notes=notes)
        positive, intervals = {}, {}
        if found.positive is not None:
            positive = dict(zip(names, found.positive[0].tolist(), strict=True))
        if found.low is not None:
            intervals = dict(zip(names, zip(found.low[0].tolist(), found.high[0].tolist(), strict=True), strict=True))
        return Answer(values=values, positive=positive, intervals=intervals, units=units, notes=notes)
