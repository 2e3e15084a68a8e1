"""LUNA16: where lung nodules lie, in chest CTs of LIDC-IDRI.

A row is a cube of fixed edge that holds one nodule, not in its middle: the cube is shifted at random (by the number of
the row), as far as the nodule stays inside and, where it can, the cube stays in the scan. Nodules with another
annotated nodule in their cube are left out, since "the nodule" would not be one. (The published evaluation resized
crops of 40 to 240 mm; a fixed edge keeps millimetres meaningful.)

Positions are those of the table, in the world frame of the MetaImage files, which is LPS mm. The ten published subsets
make the splits: 0 to 6 train, 7 val, 8 and 9 test. The files name series, not patients.
"""

from pathlib import Path
from typing import Any

import numpy as np

from voxelfm_hf.eval.datasets import About, BenchmarkData
from voxelfm_hf.eval.datasets.geometry import cube_round, extent_lps
from voxelfm_hf.eval.datasets.tables import label_table, number, required_rows
from voxelfm_hf.features import Task
from voxelfm_hf.scan_list import Region, Scan
from voxelfm_hf.volumes.errors import DatasetError

ABOUT = About(
    title="LUNA16",
    where="https://zenodo.org/records/3723295 and https://zenodo.org/records/4121926",
    licence="CC BY 4.0",
    citation="Setio AAA et al., Med Image Anal 42:1-13, 2017, doi:10.1016/j.media.2017.06.015; Armato SG III et al., "
    "Med Phys 38:915-931, 2011, doi:10.1118/1.3528204",
    layout="annotations.csv and subset0/SERIES.mhd with SERIES.raw, to subset9",
    sources=("https://luna16.grand-challenge.org/Data/",),
)
EDGE_MM = 96.0
NO_PATIENTS = "the files do not say which series are of one patient"
_SPLITS = dict(enumerate(["train"] * 7 + ["val"] + ["test"] * 2))
_AXES = ("coordX", "coordY", "coordZ")


def read(folder: str | Path, *, edge_mm: float = EDGE_MM) -> BenchmarkData:
    """The nodules of the scans that are there.

    Args:
        folder: Holds annotations.csv and the unpacked subsets.
        edge_mm: Edge of the cubes.

    Returns:
        One row a nodule: `nodule_x`, `nodule_y`, `nodule_z` (LPS mm) and `diameter_mm`.
    """
    folder = Path(folder)
    path = folder / "annotations.csv"
    scans = series_files(folder)
    nodules: dict[str, list[tuple[int, np.ndarray, float]]] = {}
    for place, row in enumerate(required_rows(path, ABOUT, ("seriesuid", *_AXES, "diameter_mm"))):
        x, y, z, diameter = (number(row[name], column=name, path=path) for name in (*_AXES, "diameter_mm"))
        if None in (x, y, z, diameter):
            raise DatasetError(f"{path}: a nodule of row {place + 1} has no position or diameter: get the file again")
        nodules.setdefault(row["seriesuid"], []).append((place, np.array([x, y, z], dtype=float), float(diameter or 0)))
    rows, tasks, crowded = [], [], 0
    for series in sorted(nodules.keys() & scans.keys()):
        low, high = extent_lps(scans[series])
        regions = []
        for place, centre, diameter in nodules[series]:
            middle = cube_round(centre, diameter, edge_mm, low, high, np.random.default_rng([16, place]))
            others = [other for which, other, _ in nodules[series] if which != place]
            if any((np.abs(other - middle) < edge_mm / 2).all() for other in others):
                crowded += 1
                continue
            cx, cy, cz = middle.tolist()
            regions.append(Region(f"{series}_{place}", (cx, cy, cz), edge_mm))
            rows.append(_row(series, place, scans[series], centre, diameter))
        if regions:
            tasks.append(Task(Scan(series, scans[series], named=True), tuple(regions)))
    if not rows:
        raise DatasetError(f"{folder} holds no scan with a nodule of {path.name}: get the subsets from {ABOUT.where}")
    missing = len(nodules.keys() - scans.keys())
    notes = [f"{missing} of {len(nodules)} scans with nodules are not in the folder"] if missing else []
    if crowded:
        notes.append(f"{crowded} nodules with another one in their cube were left out")
    notes.append(NO_PATIENTS)
    return BenchmarkData(
        tasks=tasks,
        labels=label_table("LUNA16", rows),
        folder=folder,
        baselines={"diameter": ("diameter_mm",)},
        notes=notes,
    )


def series_files(folder: Path) -> dict[str, Path]:
    """The header file of each series in the subsets of a LUNA16 folder; DatasetError without any."""
    scans = {file.stem: file for file in sorted(folder.glob("subset*/**/*.mhd"))}
    if not scans:
        raise DatasetError(
            f"{folder} holds no subset with .mhd files: get {ABOUT.title} from {ABOUT.where} and lay it out as "
            f"{ABOUT.layout}"
        )
    return scans


def split_of(file: Path) -> str | None:
    """The split of a series by its subset."""
    subset = next(part for part in reversed(file.parts) if part.startswith("subset"))
    digits = subset.removeprefix("subset")
    return _SPLITS.get(int(digits)) if digits.isdigit() else None


def _row(series: str, place: int, file: Path, centre: np.ndarray, diameter: float) -> dict[str, Any]:
    return {
        "id": f"{series}_{place}",
        "study_id": series,
        "split": split_of(file),
        **dict(zip(("nodule_x", "nodule_y", "nodule_z"), centre.tolist(), strict=True)),
        "diameter_mm": diameter,
    }
