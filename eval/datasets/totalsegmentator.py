"""TotalSegmentator: CTs of any body part with 117 structures, a binary mask file each.

The masks of a scan are merged into one label map, once, under `labels/` of the folder (or another folder): value i is
the i-th chosen structure. A structure that does not lie in a scan has an empty mask: it is absent, not left out, so
every scan counts for every structure. The published split is used. The prostate mask is empty in women.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from voxelfm_hf.eval.datasets import About, BenchmarkData
from voxelfm_hf.eval.datasets.label_maps import merge_masks, with_label_maps
from voxelfm_hf.eval.datasets.tables import age_years, label_table, on_disk, required_rows, whole_scans
from voxelfm_hf.volumes.errors import DatasetError

ABOUT = About(
    title="TotalSegmentator CT dataset, version 2",
    where="https://zenodo.org/records/10047292",
    licence="CC BY 4.0 (version 2.0.1)",
    citation="Wasserthal J et al., TotalSegmentator: Robust Segmentation of 104 Anatomic Structures in CT Images, "
    "Radiology: Artificial Intelligence 5(5):e230024, 2023, doi:10.1148/ryai.230024",
    layout="meta.csv (semicolons) and s0000/ct.nii.gz with s0000/segmentations/STRUCTURE.nii.gz",
    sources=(
        "https://github.com/wasserth/TotalSegmentator",
        "https://github.com/rmaguado/VoxelFM/tree/main/evaluation/TotalSegmentator",
    ),
)


def _sides(*names: str) -> tuple[str, ...]:
    return tuple(f"{name}_{side}" for name in names for side in ("left", "right"))


# In the order of the classes of TotalSegmentator's own task "total".
STRUCTURES = (
    *("spleen", "kidney_right", "kidney_left", "gallbladder", "liver", "stomach", "pancreas"),
    *("adrenal_gland_right", "adrenal_gland_left", "lung_upper_lobe_left", "lung_lower_lobe_left"),
    *("lung_upper_lobe_right", "lung_middle_lobe_right", "lung_lower_lobe_right", "esophagus", "trachea"),
    *("thyroid_gland", "small_bowel", "duodenum", "colon", "urinary_bladder", "prostate"),
    *("kidney_cyst_left", "kidney_cyst_right", "sacrum", "vertebrae_S1"),
    *(f"vertebrae_L{n}" for n in range(5, 0, -1)),
    *(f"vertebrae_T{n}" for n in range(12, 0, -1)),
    *(f"vertebrae_C{n}" for n in range(7, 0, -1)),
    *("heart", "aorta", "pulmonary_vein", "brachiocephalic_trunk", "subclavian_artery_right"),
    *("subclavian_artery_left", "common_carotid_artery_right", "common_carotid_artery_left"),
    *("brachiocephalic_vein_left", "brachiocephalic_vein_right", "atrial_appendage_left", "superior_vena_cava"),
    *("inferior_vena_cava", "portal_vein_and_splenic_vein"),
    *_sides("iliac_artery", "iliac_vena", "humerus", "scapula", "clavicula", "femur", "hip"),
    "spinal_cord",
    *_sides("gluteus_maximus", "gluteus_medius", "gluteus_minimus", "autochthon", "iliopsoas"),
    *("brain", "skull"),
    *(f"rib_left_{n}" for n in range(1, 13)),
    *(f"rib_right_{n}" for n in range(1, 13)),
    *("sternum", "costal_cartilages"),
)


def read(
    folder: str | Path,
    *,
    structures: Sequence[str] = STRUCTURES,
    labels: str = "labels",
    workers: int | None = None,
) -> BenchmarkData:
    """The scans that are there, with one label map each.

    Args:
        folder: Of the unpacked archive.
        structures: Those to segment, by their names; by default all 117.
        labels: Where the label maps go, below the folder.
        workers: Processes that make label maps; by default one a core.

    Returns:
        One row a scan: `label_file`, `split`, `age`, `sex`, `study_type`, `manufacturer`.
    """
    folder = Path(folder)
    unknown = [name for name in structures if name not in STRUCTURES]
    if unknown:
        raise DatasetError(f"{ABOUT.title} has no structure {unknown[0]}: its names are like spleen and kidney_left")
    chosen = hashlib.sha256(",".join(structures).encode()).hexdigest()[:8]
    rows: list[dict[str, Any]] = []
    for row in required_rows(folder / "meta.csv", ABOUT, ("image_id", "age", "gender", "study_type", "split")):
        name = row["image_id"].strip()
        rows.append(
            {
                "id": name,
                "file": f"{name}/ct.nii.gz",
                "label_file": f"{labels}/{chosen}/{name}.nii.gz",
                "patient_id": name,
                "split": row["split"] or None,
                "age": age_years(row["age"]),
                "sex": row["gender"] or None,
                "study_type": row["study_type"] or None,
                "manufacturer": row.get("manufacturer") or None,
            }
        )
    rows, notes = on_disk(rows, folder, ABOUT)
    jobs = [_job(folder, row, structures) for row in rows]
    rows, left_out = with_label_maps(rows, merge_masks, jobs, folder, workers=workers)
    return BenchmarkData(
        tasks=whole_scans(rows, folder),
        labels=label_table("TotalSegmentator", rows),
        folder=folder,
        subgroups=("sex", "age", "manufacturer"),
        notes=[*notes, *left_out],
        classes=("background", *structures),
    )


def _job(folder: Path, row: dict[str, Any], structures: Sequence[str]) -> tuple[list[str], list[str], str, str]:
    segmentations = folder / row["id"] / "segmentations"
    masks = [str(segmentations / f"{name}.nii.gz") for name in structures]
    return masks, list(structures), str(folder / row["file"]), str(folder / row["label_file"])
