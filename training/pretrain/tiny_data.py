"""The data of the embedded small model: `python -m voxelfm_hf.training.pretrain.tiny_data CT --out DATA`.

CT is a folder with `lidc/` (nodule crops of LIDC-IDRI) and `openkbp/` (head-and-neck planning CT), each with a
labels.csv that names files and splits. Only their train splits are used; chests and lesions of synthetic patients are
added. DATA then holds four prepared data sets, lidc, openkbp, phantom_chests and phantom_lesions, and recipe.yaml: the
packaged recipe `tiny` on these data.
"""

import csv
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import yaml
from tqdm import tqdm

from voxelfm_hf.command import ModuleParser, one_sentence_errors
from voxelfm_hf.data.phantom import make_phantom
from voxelfm_hf.data.prepare import prepare
from voxelfm_hf.data.write_scan import write_nifti
from voxelfm_hf.files import written_file
from voxelfm_hf.read_ahead import WorkerCrash, cores, read_ahead
from voxelfm_hf.recipes import find_recipe
from voxelfm_hf.volumes.errors import LabelError, VoxelFMError


@dataclass(frozen=True)
class TinySource:
    """One of the data sets.

    Attributes:
        what: What it holds, for the card.
        licence: In words.
        hub_licence: Identifier of the Hub.
        citation: Who has to be named.
        weight: Share of the volumes a run sees.
        first_seed: Of its synthetic patients; evaluation uses others (see voxelfm_hf.eval.learned).
    """

    what: str
    licence: str
    hub_licence: str
    citation: str
    weight: float
    first_seed: int | None = None


SOURCES = {
    "lidc": TinySource(
        what="Lung nodule crops of LIDC-IDRI (train split; HU values untouched), resampled to cubic voxels.",
        licence="CC BY 3.0",
        hub_licence="cc-by-3.0",
        citation="Armato SG III et al., Data From LIDC-IDRI, The Cancer Imaging Archive, 2015, "
        "doi:10.7937/K9/TCIA.2015.LO9QL9SX; Armato SG III et al., Med Phys 38:915-931, 2011; Clark K et al., J Digit "
        "Imaging 26:1045-1057, 2013.",
        weight=0.2,
    ),
    "openkbp": TinySource(
        what="Head-and-neck planning CT of OpenKBP (train split), about 4 x 4 x 2.5 mm.",
        licence="MIT, (c) 2021 Aaron Babier",
        hub_licence="mit",
        citation="Babier A et al., Med Phys 48:5549-5561, 2021, doi:10.1002/mp.14845; derived from collections of "
        "The Cancer Imaging Archive.",
        weight=0.3,
    ),
    "phantom_chests": TinySource(
        what="Synthetic chests made by voxelfm_hf.data.phantom.",
        licence="Apache-2.0",
        hub_licence="apache-2.0",
        citation="No patients.",
        weight=0.15,
        first_seed=0,
    ),
    "phantom_lesions": TinySource(
        what="64 mm cubes round the lesions of other synthetic chests.",
        licence="Apache-2.0",
        hub_licence="apache-2.0",
        citation="No patients.",
        weight=0.35,
        first_seed=50_000,
    ),
}


def train_list(ct: Path, name: str, out: Path) -> Path:
    """Writes the CSV (path, id, patient) of a data set's train split."""
    labels = ct / name / "labels.csv"
    try:
        with open(labels, newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["split"] == "train"]
    except (OSError, KeyError):
        raise LabelError(
            f"{labels} cannot be read or has no column split: name the folder with lidc/ and openkbp/"
        ) from None
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(out, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "id", "patient"))
        writer.writerows(((ct / row["file"]).resolve(), Path(row["file"]).name, row["patient_id"]) for row in rows)
    return out


def write_phantoms(name: str, count: int, folder: Path) -> Path:
    """Writes `count` synthetic scans as NIfTI: whole chests, or fields of view of 64 mm round a lesion."""
    first = SOURCES[name].first_seed or 0
    paths = [folder / f"phantom-{first + number:06d}.nii.gz" for number in range(count)]
    missing = [path for path in paths if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    work = read_ahead(partial(_write_phantom, name), missing, workers=cores())
    for path, result in tqdm(work, total=len(missing), desc=name, unit="scan", disable=None):
        if isinstance(result, WorkerCrash):
            raise VoxelFMError(f"the process that made {path.name} died: free some memory and run the command again")
    return folder


def _write_phantom(name: str, path: Path) -> None:
    seed = int(path.name.removeprefix("phantom-").removesuffix(".nii.gz"))
    if name == "phantom_chests":
        phantom = make_phantom(seed, shape=(96, 128, 128))
    else:
        phantom = make_phantom(seed, shape=(64,) * 3, spacing=(1.0,) * 3, center_on="lesion")
    write_nifti(phantom.volume, path)


def write_recipe(folder: Path) -> Path:
    """Writes the packaged recipe `tiny` with the data sets of the folder, mixed by weight."""
    _, recipe = find_recipe("tiny")
    data = [{"data": str((folder / name).resolve()), "weight": source.weight} for name, source in SOURCES.items()]
    with written_file(folder / "recipe.yaml") as path:
        path.write_text(recipe + yaml.safe_dump({"data": data}), encoding="utf-8")
    return folder / "recipe.yaml"


@one_sentence_errors
def main() -> None:
    parser = ModuleParser("voxelfm_hf.training.pretrain.tiny_data", __doc__)
    parser.add_argument("ct", type=Path, help="folder with lidc/ and openkbp/")
    parser.add_argument("--out", type=Path, required=True, help="where the scans and prepared data sets go")
    parser.add_argument("--phantoms", type=int, default=300, help="synthetic chests, and as many lesions")
    options = parser.parse_args()
    for name, source in SOURCES.items():
        if source.first_seed is None:
            scans = train_list(options.ct, name, options.out / "scans" / f"{name}.csv")
        else:
            scans = write_phantoms(name, options.phantoms, options.out / "scans" / name)
        summary = prepare(scans, options.out / name, name=name, license=source.hub_licence)
        print(f"{options.out / name}: {summary}")
    print(write_recipe(options.out))


if __name__ == "__main__":
    sys.exit(main())
