"""How long reading takes: NIfTI against `gzip -dc`, a DICOM series against GDCM's own reader; ratios of one run."""

import gzip
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SHAPE = (300, 512, 512)
COMPRESSIONS = {
    "uncompressed": "1.2.840.10008.1.2.1",
    "JPEG-LS": "1.2.840.10008.1.2.4.80",
    "JPEG 2000": "1.2.840.10008.1.2.4.90",
    "RLE": "1.2.840.10008.1.2.5",
}  # all lossless
_COMPRESSED_SLICES = 100  # decoding a slice takes 10 to 50 times as long as reading an uncompressed one


@dataclass(frozen=True)
class ReadingSpeed:
    """Median seconds of a reader and of its yardstick, measured alternately in one process.

    Processor time (all threads, and gzip's process) is what remains comparable on a busy machine.
    """

    name: str
    seconds: float
    yardstick_seconds: float
    processor_ratio: float

    @property
    def ratio(self) -> float:
        return self.seconds / self.yardstick_seconds

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.seconds:.2f} s, yardstick {self.yardstick_seconds:.2f} s, ratio {self.ratio:.2f} "
            f"(of processor time {self.processor_ratio:.2f})"
        )


def noisy_ct(shape: tuple[int, int, int] = SHAPE, *, seed: int = 0) -> np.ndarray:
    """A body in air with scanner noise: compresses as a real CT does.

    Args:
        shape: (D, H, W).
        seed: fixes the noise.

    Returns:
        int16 HU.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : shape[1] * 1j, -1 : 1 : shape[2] * 1j]
    body = (x / 0.85) ** 2 + (y / 0.65) ** 2 < 1
    lungs = ((np.abs(x) - 0.38) / 0.28) ** 2 + (y / 0.42) ** 2 < 1
    field = x**2 + y**2 < 1
    base = np.where(lungs, -850.0, np.where(body, 40.0, -1000.0))
    volume = np.empty(shape, np.int16)
    for z in range(shape[0]):
        noise = rng.normal(0, np.where(body, 15.0, 6.0))
        volume[z] = np.where(field, np.clip(base + noise, -1024, 3071), -1024)
    return volume


def nifti_reading(folder: Path, volume: np.ndarray, *, rounds: int = 3, orientation: str = "RAS") -> ReadingSpeed:
    """Time `read_volume` on a .nii.gz against `gzip -dc` of the same file into memory.

    Args:
        folder: where the file is written.
        volume: (D, H, W) int16 HU.
        rounds: alternating repetitions; the medians count.
        orientation: of the file.

    Returns:
        The two times.
    """
    import nibabel

    from voxelfm_hf.volumes import read_volume

    affine = np.diag([0.7 if c in "RL" else 0.7 if c in "AP" else 1.0 for c in orientation] + [1.0])
    for axis, letter in enumerate(orientation):
        affine[axis, axis] *= -1 if letter in "LPI" else 1
    path = folder / f"scan_{orientation}.nii.gz"
    header = nibabel.Nifti1Image(np.asfortranarray(volume.T), affine)
    with gzip.open(path, "wb", compresslevel=6) as file:
        file.write(header.to_bytes())

    def gunzip() -> None:
        assert len(subprocess.run(["gzip", "-dc", str(path)], capture_output=True, check=True).stdout) > volume.nbytes

    return _compare(f"NIfTI ({orientation}) vs gzip -dc", lambda: read_volume(path), gunzip, rounds)


def dicom_reading(
    folder: Path, volume: np.ndarray, *, compression: str = "uncompressed", rounds: int = 3
) -> ReadingSpeed:
    """Time `read_volume` on a DICOM series against GDCM through SimpleITK (finding, then reading it).

    Args:
        folder: where the series is written.
        volume: (D, H, W) int16 HU.
        compression: a key of `COMPRESSIONS`.
        rounds: alternating repetitions; the medians count.

    Returns:
        The two times.
    """
    from voxelfm_hf.volumes import read_volume

    series = folder / compression.replace(" ", "")
    write_series(series, volume, compression=compression)
    name = f"DICOM series ({compression}, {len(volume)} slices) vs GDCM's series reader"
    return _compare(name, lambda: read_volume(series), lambda: read_by_gdcm(series), rounds)


def read_by_gdcm(series: Path) -> np.ndarray:
    """The yardstick: (D, H, W) of a DICOM folder as SimpleITK's users read it."""
    import SimpleITK

    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(series)))
    return SimpleITK.GetArrayFromImage(reader.Execute())


def measure_reading(shape: tuple[int, int, int] = SHAPE, *, rounds: int = 3) -> Iterator[ReadingSpeed]:
    """Measure all readers on one synthetic volume.

    Args:
        shape: (D, H, W) of the volume; compressed DICOM series get at most its first 100 slices.
        rounds: alternating repetitions.

    Yields:
        One entry a comparison; `missing_encoders` are left out.
    """
    missing = missing_encoders()
    volume = noisy_ct(shape)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        yield nifti_reading(folder, volume, rounds=rounds, orientation="LPS")
        yield nifti_reading(folder, volume, rounds=rounds, orientation="RAS")
        yield dicom_reading(folder, volume, rounds=rounds)
        for compression in COMPRESSIONS:
            if compression != "uncompressed" and compression not in missing:
                part = volume[:_COMPRESSED_SLICES]
                yield dicom_reading(folder, part, compression=compression, rounds=rounds)


def missing_encoders() -> list[str]:
    """Compressions that cannot be written here, as pydicom finds no encoder for them."""
    from pydicom.pixels import get_encoder

    return [
        name for name, syntax in COMPRESSIONS.items() if name != "uncompressed" and not get_encoder(syntax).is_available
    ]


def _compare(name: str, reader: Callable[[], object], yardstick: Callable[[], object], rounds: int) -> ReadingSpeed:
    wall: tuple[list[float], list[float]] = ([], [])
    processor: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for which, action in enumerate((reader, yardstick)):
            start, used = time.perf_counter(), sum(os.times()[:4])
            action()
            wall[which].append(time.perf_counter() - start)
            processor[which].append(sum(os.times()[:4]) - used)
    ours, theirs = (max(statistics.median(times), 0.01) for times in processor)  # the clock's tick
    return ReadingSpeed(name, statistics.median(wall[0]), statistics.median(wall[1]), ours / theirs)


def write_series(folder: Path, volume: np.ndarray, *, compression: str = "uncompressed") -> None:
    """Write a CT series of unsigned 12-bit slices, 1 mm apart.

    Args:
        folder: is made.
        volume: (D, H, W) int16 HU, -1024 to 3071.
        compression: a key of `COMPRESSIONS`; pydicom needs its encoder plugins for JPEG-LS and JPEG 2000.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    folder.mkdir()
    study, series = generate_uid(), generate_uid()
    for z, image in enumerate(volume):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
        meta.MediaStorageSOPInstanceUID = generate_uid()
        slice_ = Dataset()
        slice_.file_meta = meta
        slice_.SOPClassUID, slice_.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        slice_.Modality, slice_.StudyInstanceUID, slice_.SeriesInstanceUID = "CT", study, series
        slice_.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        slice_.ImageOrientationPatient, slice_.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-180, -180, float(z)]
        slice_.PixelSpacing, slice_.SliceThickness, slice_.InstanceNumber = [0.7, 0.7], 1, z + 1
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
        slice_.Rows, slice_.Columns = image.shape
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 16, 12, 11, 0
        slice_.RescaleSlope, slice_.RescaleIntercept = 1, -1024
        slice_.PixelData = (image + 1024).astype("<u2").tobytes()
        if compression != "uncompressed":
            slice_.compress(COMPRESSIONS[compression], generate_instance_uid=False)
        slice_.save_as(folder / f"{z:04d}.dcm", enforce_file_format=True)
