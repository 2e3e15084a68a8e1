"""Writing a volume as a NIfTI file or a DICOM series, with geometry and HU only: no patient, no dates."""

import gzip
import os
from pathlib import Path

import numpy as np

from voxelfm_hf.files import written_file, written_folder
from voxelfm_hf.volumes import Volume
from voxelfm_hf.volumes.errors import ScanError

_UID_ROOT = "2.25."  # UUID-derived root: needs no registration


def write_nifti(volume: Volume, path: str | os.PathLike) -> Path:
    """Write a volume as NIfTI in its own voxel order, with the affine turned from LPS to NIfTI's RAS.

    Args:
        volume: The scan; int16 stays int16, float32 stays float32.
        path: A name that ends in .nii or .nii.gz.

    Returns:
        The path written.
    """
    import nibabel

    path = Path(path)
    suffix = next((s for s in (".nii.gz", ".nii") if path.name.lower().endswith(s)), None)
    if suffix is None:
        raise ScanError(f"{path}: a NIfTI file name must end in .nii or .nii.gz.")
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine[:, [2, 1, 0, 3]]
    image = nibabel.Nifti1Image(np.ascontiguousarray(volume.hu.transpose(2, 1, 0)), affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    data = image.to_bytes()
    with written_file(path) as part:
        part.write_bytes(gzip.compress(data, 4, mtime=0) if suffix == ".nii.gz" else data)
    return path


def write_dicom_series(volume: Volume, folder: str | os.PathLike, *, seed: int = 0) -> Path:
    """Write a volume as one CT Image Storage series, one file per slice, named from feet to head.

    The patient is called PHANTOM. HU are rounded to whole numbers and stored as unsigned 16 bit values with a rescale
    intercept.

    Args:
        volume: The scan; its slices must be perpendicular to the slice direction.
        folder: New or empty.
        seed: Fixes the study, series and image UIDs.

    Returns:
        The folder written.
    """
    folder = Path(folder)
    offset = max(1024, -int(np.floor(volume.hu.min())))
    if float(volume.hu.max()) + offset > 65535:
        raise ScanError(f"{volume.source}: a range of more than 65535 HU does not fit a DICOM CT image.")
    with written_folder(folder) as part:
        for index in range(len(volume.hu)):
            dataset = _slice_dataset(volume, index, offset, seed)
            dataset.save_as(part / f"slice_{index:04d}.dcm", enforce_file_format=True)
    return folder


def _slice_dataset(volume: Volume, index: int, offset: int, seed: int):
    """One CT image as a pydicom data set."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, generate_uid
    from pydicom.valuerep import DSfloat

    def uid(*what: object) -> UID:
        return generate_uid(prefix=_UID_ROOT, entropy_srcs=["voxelfm_hf", str(seed), *map(str, what)])

    def decimal(value: float) -> DSfloat:
        return DSfloat(float(value) + 0.0, auto_format=True)  # + 0.0 turns -0.0 into 0.0

    directions = volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
    position = volume.affine[:3, 3] + index * volume.affine[:3, 0]
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = uid("image", index)
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.ImplementationClassUID = uid("implementation")

    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, uid("image", index)
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = uid("study"), uid("series")
    dataset.FrameOfReferenceUID, dataset.PositionReferenceIndicator = uid("frame"), ""
    dataset.PatientName = dataset.PatientID = "PHANTOM"
    dataset.PatientBirthDate = dataset.PatientSex = ""
    dataset.PatientIdentityRemoved, dataset.DeidentificationMethod = "YES", "Synthetic"
    dataset.StudyDate = dataset.StudyTime = dataset.AccessionNumber = dataset.ReferringPhysicianName = ""
    dataset.StudyID, dataset.SeriesNumber, dataset.InstanceNumber = "", 1, index + 1
    dataset.AcquisitionNumber, dataset.KVP = None, None
    dataset.Modality, dataset.Manufacturer = "CT", "voxelfm_hf"
    dataset.SeriesDescription = "Synthetic CT"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.PatientPosition = "HFS"

    dataset.Rows, dataset.Columns = volume.hu.shape[1:]
    dataset.PixelSpacing = [decimal(volume.spacing[1]), decimal(volume.spacing[2])]
    dataset.SliceThickness = dataset.SpacingBetweenSlices = decimal(volume.spacing[0])
    dataset.ImageOrientationPatient = [decimal(v) for v in (*directions[:, 2], *directions[:, 1])]
    dataset.ImagePositionPatient = [decimal(v) for v in position]
    dataset.SliceLocation = decimal(position @ directions[:, 0])
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = -offset, 1, "HU"
    dataset.WindowCenter, dataset.WindowWidth = 40, 400
    values = np.rint(volume.hu[index]).astype(np.int32) + offset
    dataset.PixelData = values.astype("<u2").tobytes()
    return dataset
