"""A folder of synthetic chest CTs with every truth in a table: `python -m voxelfm_hf.data.phantom OUT --count 300`.

    OUT/images/phantom-SEED-K.nii.gz   scan K of a person
    OUT/masks/phantom-SEED-K.nii.gz    organs by value (--masks), see `voxelfm_hf.data.phantom.LABELS`
    OUT/labels.csv                     one row a scan, written last
    OUT/settings.json                  how it was made

People are independent draws, each scanned once or more with scanner settings of its own. Columns of labels.csv beside
those of `PhantomFacts.row` (all numbers drawn, findings as 0/1, scanner settings, position of the lesion in LPS mm):
`patient_id` and `study_id` (scans of one person are one study), `split`, `time` and `event` (months) with the true
`log_risk` (see `outcome`), `report` and `impression` (see `reports`), numbers for what the row has in
words, and 0 where something is absent (`lesion_size_mm`, `effusion_mm`). Side and diameter of an absent lesion are
empty.

Pre-training and the learned-or-not comparison use seeds below `FIRST_SEED`. Run it again to go on or to add people.
"""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from voxelfm_hf.command import ModuleParser, one_sentence_errors
from voxelfm_hf.data.phantom.chest import draw_facts, make_phantom
from voxelfm_hf.data.phantom.facts import CONTRAST_PHASES, LESION_TYPES, PhantomFacts
from voxelfm_hf.data.phantom.outcome import draw_outcome
from voxelfm_hf.data.phantom.reports import write_impression, write_report
from voxelfm_hf.data.phantom.tissues import LABELS
from voxelfm_hf.data.write_scan import write_nifti
from voxelfm_hf.files import written_file
from voxelfm_hf.read_ahead import WorkerCrash, read_ahead, worker_a_core
from voxelfm_hf.volumes import Volume
from voxelfm_hf.volumes.errors import DatasetError, VoxelFMError

# Pre-training uses seeds below 100,000, the learned-or-not comparison those from 1,000,000.
FIRST_SEED = 2_000_000
# About 4 mm a voxel: small lesions stay visible, and a scan takes a fifth of a second to make.
SHAPE = (80, 96, 96)
# A person's first scan is that of make_phantom(seed); further ones have scanner seeds that no person has.
_NEXT_SCAN = 500_000_000
# Of ten people in turn: a person keeps the split when the set grows.
_SPLITS = ("train", "train", "test", "train", "val", "train", "test", "train", "train", "val")


@dataclass(frozen=True)
class PhantomScan:
    """One scan of a synthetic person.

    Attributes:
        seed: Of the person.
        number: Of the scan, from 0.
        shape: Voxels along (z, y, x).
        masks: Whether a label map is written beside it.
    """

    seed: int
    number: int = 0
    shape: tuple[int, int, int] = SHAPE
    masks: bool = False

    @property
    def name(self) -> str:
        return f"phantom-{self.seed}-{self.number}"

    @property
    def file(self) -> str:
        """Path of the scan in the set."""
        return f"images/{self.name}.nii.gz"

    @property
    def label_file(self) -> str:
        """Path of the label map in the set."""
        return f"masks/{self.name}.nii.gz"

    @property
    def acquisition_seed(self) -> int:
        return self.seed + self.number * _NEXT_SCAN

    def write(self, folder: Path) -> None:
        """Make the scan; its file comes last, so that it is there only when all is."""
        phantom = make_phantom(self.seed, shape=self.shape, acquisition_seed=self.acquisition_seed)
        volume = phantom.volume
        if self.masks:
            labels = phantom.labels.astype(np.int16)
            organs = Volume.from_array(labels, spacing=volume.spacing, affine=volume.affine, source=self.name)
            write_nifti(organs, folder / self.label_file)
        write_nifti(volume, folder / self.file)

    def row(self) -> dict[str, Any]:
        """What labels.csv says of the scan, but for its split."""
        facts = draw_facts(self.seed, shape=self.shape, acquisition_seed=self.acquisition_seed)
        outcome = draw_outcome(facts)
        person = f"phantom-{self.seed}"
        return {
            "id": self.name,
            "file": self.file,
            **({"label_file": self.label_file} if self.masks else {}),
            "patient_id": person,
            "study_id": person,
            **facts_row(facts),
            "time": round(outcome.time_months, 4),
            "event": outcome.event,
            "log_risk": outcome.log_risk,
            "report": write_report(facts),
            "impression": write_impression(facts),
        }


def write_phantom_set(
    folder: str | Path,
    *,
    count: int,
    first_seed: int = FIRST_SEED,
    shape: tuple[int, int, int] = SHAPE,
    scans_each: int = 1,
    masks: bool = False,
    workers: int | None = None,
) -> Path:
    """Write synthetic scans and the table of everything that is true of them.

    Args:
        folder: Where to; scans that are there already are kept.
        count: People. A set that has more keeps them.
        first_seed: Seed of the first person; the others follow.
        shape: Voxels along (z, y, x); the chest fits any shape.
        scans_each: Scans of each person, with different scanner settings.
        masks: Write label maps of the organs too.
        workers: Processes; by default one a core, none for a handful of scans.

    Returns:
        The path of labels.csv.

    Raises:
        DatasetError: the folder holds a set with other settings.
        VoxelFMError: a file cannot be written.
    """
    folder = Path(folder)
    if count < 1 or scans_each < 1 or min(shape) < 8:
        raise ValueError(f"count and scans_each start at 1 and shape at 8, got {count}, {scans_each}, {shape}")
    settings = {"first_seed": first_seed, "shape": list(shape), "scans_each": scans_each, "masks": masks}
    count = max(count, _people_there(folder, settings))
    scans = [
        PhantomScan(first_seed + person, number, shape, masks)
        for person in range(count)
        for number in range(scans_each)
    ]
    todo = [scan for scan in scans if not (folder / scan.file).exists()]
    if workers is None:
        workers = worker_a_core(len(todo))
    work = read_ahead(partial(PhantomScan.write, folder=folder), todo, workers=workers)
    for scan, result in tqdm(work, total=len(todo), desc="phantoms", unit="scan", disable=None):
        if isinstance(result, WorkerCrash):
            raise VoxelFMError(f"the process that made {scan.name} died: choose a smaller shape or fewer workers")
    rows = [{**scan.row(), "split": _SPLITS[(scan.seed - first_seed) % len(_SPLITS)]} for scan in scans]
    with written_file(folder / "labels.csv") as path, path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return folder / "labels.csv"


def facts_row(facts: PhantomFacts) -> dict[str, Any]:
    """The row of a phantom's facts with numbers beside words, and nothing said about what is absent."""
    row: dict[str, Any] = facts.row()
    findings, lesion, acquisition = facts.findings, facts.lesion, facts.acquisition
    # The row has these two as 0/1.
    row["coronary_plaques"], row["aortic_plaques"] = findings.coronary_calcification, findings.aortic_calcification
    row["effusion_mm"] = max(findings.pleural_effusion_right_mm, findings.pleural_effusion_left_mm)
    row["lesion"] = int(lesion.type != "none")
    row["lesion_size_mm"] = lesion.diameter_mm if row["lesion"] else 0.0
    row |= {f"lesion_{name}": int(lesion.type == name) for name in LESION_TYPES[1:]}
    if not row["lesion"]:
        row |= dict.fromkeys(("lesion_diameter_mm", "lesion_side", "lesion_density"))
    if not findings.consolidation_mm:
        row["consolidation_side"] = None
    row["male"] = int(facts.body.sex == "male")
    row["kernel_sharp"] = int(acquisition.kernel == "sharp")
    row |= {f"contrast_{name}": int(acquisition.contrast == name) for name in CONTRAST_PHASES[1:]}
    return row


def _people_there(folder: Path, settings: dict[str, Any]) -> int:
    """How many people a set holds, 0 for a new one, whose settings are written down."""
    path = folder / "settings.json"
    if path.exists():
        try:
            there = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise DatasetError(f"{path} cannot be read: delete the folder and make the set again") from None
        differing = [name for name, value in settings.items() if there.get(name) != value]
        if differing:
            asked = ", ".join(f"{name} {there.get(name)} and not {settings[name]}" for name in differing)
            raise DatasetError(f"{folder} holds a phantom set with {asked}: name another folder")
        labels = folder / "labels.csv"
        if not labels.exists():
            return 0
        with labels.open(newline="", encoding="utf-8") as file:
            return len({row["patient_id"] for row in csv.DictReader(file)})
    with written_file(path) as part:
        part.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return 0


@one_sentence_errors
def main(arguments: Sequence[str] | None = None) -> None:
    """Write a phantom set as the command line says."""
    parser = ModuleParser("voxelfm_hf.data.phantom", __doc__)
    parser.add_argument("out", type=Path, help="folder of the set")
    parser.add_argument("--count", type=int, default=300, help="people (300)")
    parser.add_argument("--scans-each", type=int, default=1, help="scans of each person (1)")
    parser.add_argument("--shape", type=int, nargs=3, default=SHAPE, metavar=("Z", "Y", "X"), help="voxels (80 96 96)")
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED, help=f"seed of the first person ({FIRST_SEED})")
    parser.add_argument("--masks", action="store_true", help=f"label maps of {len(LABELS) - 1} structures too")
    parser.add_argument("--workers", type=int, help="processes; by default one a core")
    options = parser.parse_args(arguments)
    if options.count < 1 or options.scans_each < 1 or min(options.shape) < 8:
        parser.error("--count and --scans-each start at 1, --shape at 8")
    labels = write_phantom_set(
        options.out,
        count=options.count,
        first_seed=options.first_seed,
        shape=tuple(options.shape),
        scans_each=options.scans_each,
        masks=options.masks,
        workers=options.workers,
    )
    print(labels)
