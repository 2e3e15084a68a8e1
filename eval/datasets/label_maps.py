"""One label map a scan, made once from masks of other shapes: a file a structure, or a DICOM segmentation."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from voxelfm_hf.data.write_scan import write_nifti
from voxelfm_hf.read_ahead import WorkerCrash, read_ahead, worker_a_core
from voxelfm_hf.volumes import Volume, read_volume
from voxelfm_hf.volumes.errors import DatasetError, VoxelFMError


def make_label_maps(
    make: Callable[..., None], jobs: Sequence[tuple[Any, ...]], *, workers: int | None = None
) -> dict[str, str]:
    """Make the label maps that are not there yet, in processes.

    Args:
        make: A module-level function; called with the entries of a job, the last of which is the path to write.
        jobs: One a label map.
        workers: Processes; by default one a core, none for a handful.

    Returns:
        For each label map that cannot be made, by path, why.
    """
    todo = [job for job in jobs if not Path(job[-1]).exists()]
    if workers is None:
        workers = worker_a_core(len(todo))
    failed = {}
    made = read_ahead(partial(_try, make), todo, workers=workers)
    for job, reason in tqdm(made, total=len(todo), desc="label maps", unit="scan", disable=None):
        if isinstance(reason, WorkerCrash):
            reason = "its process died (not enough memory, or a damaged file)"
        if reason:
            failed[str(job[-1])] = reason
    return failed


def with_label_maps(
    rows: Sequence[dict[str, Any]],
    make: Callable[..., None],
    jobs: Sequence[tuple[Any, ...]],
    folder: Path,
    *,
    workers: int | None = None,
) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows whose label map could be made, and notes on the others.

    Args:
        rows: One a scan.
        make: As in `make_label_maps`.
        jobs: The same, one a row.
        folder: Of the data set, for the message.
        workers: As in `make_label_maps`.

    Raises:
        DatasetError: none could be made.
    """
    failed = make_label_maps(make, jobs, workers=workers)
    kept = [row for row, job in zip(rows, jobs, strict=True) if job[-1] not in failed]
    if not kept:
        raise DatasetError(f"{folder}: no label map can be made ({next(iter(failed.values()))})")
    return kept, [f"left out: {reason}" for reason in failed.values()]


def merge_masks(masks: Sequence[str], names: Sequence[str], scan: str, out: str) -> None:
    """One label map of masks with a file a structure; where masks overlap the later structure wins.

    Args:
        masks: Paths; a missing file is a structure that is not there.
        names: The structures, which get the values 1, 2, ...
        scan: The scan they lie on.
        out: NIfTI file to write, on the grid of the scan.

    Raises:
        DatasetError: a mask has another grid than the scan.
    """
    volume = read_volume(scan)
    labels = np.zeros(volume.hu.shape, np.int16)
    for value, (path, name) in enumerate(zip(masks, names, strict=True), start=1):
        if not Path(path).exists():
            continue
        mask = read_volume(path, assume_hu=True)
        if mask.hu.shape != labels.shape or not np.allclose(mask.affine, volume.affine, atol=1e-2):
            raise DatasetError(f"{path}: the mask of {name} has another grid than its scan: get both again")
        labels[mask.hu > 0] = value
    write_nifti(_like(volume, labels), out)


def dicom_segmentation(segmentation: str, scan: str, out: str) -> None:
    """The label map of a DICOM segmentation on the grid of its scan: 1 wherever any segment is.

    Args:
        segmentation: The DICOM SEG file (binary, multi-frame).
        scan: The CT series.
        out: NIfTI file to write.

    Raises:
        DatasetError: it is no binary segmentation, or none of it lies in the scan.
    """
    import pydicom

    volume = read_volume(scan)
    dataset = pydicom.dcmread(segmentation)
    if dataset.get("SegmentationType") != "BINARY":
        raise DatasetError(f"{segmentation} is no binary DICOM segmentation")
    frames = np.asarray(dataset.pixel_array).reshape(-1, dataset.Rows, dataset.Columns)
    shared = dataset.SharedFunctionalGroupsSequence[0]
    labels = np.zeros(volume.hu.shape, np.int16)
    to_index = np.linalg.inv(volume.affine)
    marked = 0
    for frame, groups in zip(frames, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        rows, columns = np.nonzero(frame)
        position = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        holder = groups if "PlaneOrientationSequence" in groups else shared
        directions = np.array(holder.PlaneOrientationSequence[0].ImageOrientationPatient, float)
        holder = groups if "PixelMeasuresSequence" in groups else shared
        down, along = (float(mm) for mm in holder.PixelMeasuresSequence[0].PixelSpacing)
        # The first three numbers of the orientation point along a row, the next three down a column.
        points = position + np.outer(columns * along, directions[:3]) + np.outer(rows * down, directions[3:])
        index = np.rint(points @ to_index[:3, :3].T + to_index[:3, 3]).astype(int)
        index = index[((index >= 0) & (index < labels.shape)).all(axis=1)]
        labels[tuple(index.T)] = 1
        marked += len(rows)
    if marked and not labels.any():
        raise DatasetError(f"{segmentation} lies outside its scan: it belongs to another series")
    write_nifti(_like(volume, labels), out)


def _like(volume: Volume, labels: np.ndarray) -> Volume:
    return Volume.from_array(labels, spacing=volume.spacing, affine=volume.affine, source="label map")


def _try(make: Callable[..., None], job: tuple[Any, ...]) -> str | None:
    try:
        make(*job)
    except VoxelFMError as error:
        return str(error)
    return None
