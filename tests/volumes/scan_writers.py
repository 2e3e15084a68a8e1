"""Writes small scans of every format, with the oddities real archives have; independent of the package's readers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
SPACING = (2.5, 0.7, 0.8)
ORIGIN = (-14.0, -11.5, 30.25)


def ct_array(shape: tuple[int, int, int] = (9, 21, 17), seed: int = 0) -> np.ndarray:
    """HU without any symmetry: a gradient along each axis, noise, air and a bit of bone."""
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*[np.linspace(0, 1, n) for n in shape], indexing="ij")
    hu = -1000 + 700 * x + 250 * y + 900 * z**2 + rng.normal(0, 20, shape)
    hu[-2:, 3:6, 2:5] = 1400
    return hu.round().astype(np.int16)


def lps_image(hu: np.ndarray, spacing=SPACING, origin=ORIGIN, direction=None) -> sitk.Image:
    """(z, y, x) array -> ITK image."""
    image = sitk.GetImageFromArray(hu)
    image.SetSpacing([float(s) for s in spacing[::-1]])
    image.SetOrigin(origin)
    if direction is not None:
        image.SetDirection(np.asarray(direction, float).reshape(-1).tolist())
    return image


def nifti_of(hu: np.ndarray, orientation: str = "LPS", spacing=SPACING, origin=ORIGIN, dtype=None) -> nib.Nifti1Image:
    """(z, y, x) LPS+ array -> NIfTI with the given axis letters, reoriented by nibabel."""
    affine = LPS_FROM_RAS @ np.array(
        [[spacing[2], 0, 0, origin[0]], [0, spacing[1], 0, origin[1]], [0, 0, spacing[0], origin[2]], [0, 0, 0, 1.0]]
    )
    image = nib.Nifti1Image(hu.T if dtype is None else hu.T.astype(dtype), affine)
    start = nib.io_orientation(affine)
    turned = image.as_reoriented(nib.orientations.ornt_transform(start, nib.orientations.axcodes2ornt(orientation)))
    result = nib.Nifti1Image(np.asarray(turned.dataobj), turned.affine)
    result.header.set_xyzt_units("mm")
    result.set_qform(turned.affine, 1)
    return result


def dicom_slice(stored: np.ndarray, position, **tags: Any) -> Dataset:
    """One CT slice; keyword arguments override any tag, None removes it."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = tags.pop("TransferSyntaxUID", ExplicitVRLittleEndian)
    image = Dataset()
    image.SOPClassUID = tags.pop("SOPClassUID", CTImageStorage)
    image.SOPInstanceUID = tags.pop("SOPInstanceUID", generate_uid())
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
    image.file_meta = meta
    bits = stored.dtype.itemsize * 8
    defaults: dict[str, Any] = {
        "Modality": "CT",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "StudyInstanceUID": "1.2.3.4",
        "SeriesInstanceUID": "1.2.3.4.5",
        "PatientID": "p",
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "ImagePositionPatient": [float(p) for p in position],
        "PixelSpacing": [SPACING[1], SPACING[2]],
        "SliceThickness": 7.77,  # wrong on purpose: never to be used
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": stored.shape[-2],
        "Columns": stored.shape[-1],
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(stored.dtype.kind == "i"),
        "RescaleSlope": 1,
        "RescaleIntercept": 0,
    }
    for keyword, value in {**defaults, **tags}.items():
        if value is not None:
            setattr(image, keyword, value)
    image.PixelData = stored.tobytes() + (b"\0" if stored.nbytes % 2 else b"")
    image["PixelData"].VR = "OW" if bits > 8 else "OB"
    return image


def write_series(
    folder: Path,
    hu: np.ndarray,
    *,
    spacing=SPACING,
    origin=ORIGIN,
    intercept: int = -1024,
    slope: int = 1,
    signed: bool = False,
    tilt: float = 0.0,
    name: Callable[[int], str] = lambda z: f"{(z * 7919) % 10007:05d}",
    **tags: Any,
) -> list[Path]:
    """(z, y, x) HU -> an axial series with shuffled, extensionless names; `tilt` mm of y per slice."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for z, image in enumerate(hu):
        stored = ((image.astype(np.int64) - intercept) // slope).astype("<i2" if signed else "<u2")
        position = (origin[0], origin[1] + tilt * z, origin[2] + spacing[0] * z)
        overrides = {k: (v(z) if callable(v) else v) for k, v in tags.items()}
        item = dicom_slice(
            stored,
            position,
            **{
                "RescaleIntercept": intercept,
                "RescaleSlope": slope,
                "PixelSpacing": [spacing[1], spacing[2]],
                **overrides,
            },
        )
        paths.append(folder / name(z))
        item.save_as(paths[-1], enforce_file_format=True)
    return paths


def edit(path: Path, **tags: Any) -> None:
    """Change tags of a DICOM file in place; None removes."""
    item = pydicom.dcmread(path)
    for keyword, value in tags.items():
        if value is None:
            delattr(item, keyword)
        else:
            setattr(item, keyword, value)
    item.save_as(path)


def enhanced_ct(hu: np.ndarray, *, order: list[int] | None = None, slopes: list[float] | None = None) -> Dataset:
    """(z, y, x) HU -> one enhanced multi-frame CT; frames in `order`, frame n divided by slopes[n] when stored."""
    order = order if order is not None else list(range(len(hu)))
    slopes = slopes or [1.0] * len(hu)
    stored = np.stack([((hu[z].astype(np.int64) + 1024) / s).round() for z, s in zip(order, slopes, strict=True)])
    item = dicom_slice(stored.astype("<u2"), ORIGIN, SOPClassUID=EnhancedCTImageStorage, SOPInstanceUID="1.2.3.7")
    for keyword in (
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "RescaleSlope",
        "RescaleIntercept",
    ):
        delattr(item, keyword)
    item.NumberOfFrames = len(order)
    shared, plane, measures = Dataset(), Dataset(), Dataset()
    plane.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    measures.PixelSpacing, measures.SliceThickness = [SPACING[1], SPACING[2]], 9
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [plane], [measures]
    item.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for z, slope in zip(order, slopes, strict=True):
        frame, where, transform = Dataset(), Dataset(), Dataset()
        where.ImagePositionPatient = [ORIGIN[0], ORIGIN[1], ORIGIN[2] + SPACING[0] * z]
        transform.RescaleSlope, transform.RescaleIntercept, transform.RescaleType = slope, -1024, "HU"
        frame.PlanePositionSequence, frame.PixelValueTransformationSequence = [where], [transform]
        frames.append(frame)
    item.PerFrameFunctionalGroupsSequence = frames
    return item
