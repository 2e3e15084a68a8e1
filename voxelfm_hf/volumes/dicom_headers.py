"""One DICOM file's header -> the geometry, storage and rescale of its images. Nothing that names a person is kept."""

from __future__ import annotations

import hashlib
import io
import logging
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from voxelfm_hf.volumes.find import begins_as_dicom

_PREFIX = 1 << 15
_MAX_HEADER = 1 << 28
_PIXEL_TAGS = (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10")
_DEFLATED = "1.2.840.10008.1.2.1.99"
CT_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.2",  # CT
    "1.2.840.10008.5.1.4.1.1.2.1",  # enhanced CT
    "1.2.840.10008.5.1.4.1.1.2.2",  # legacy converted enhanced CT
}
_KEYWORDS = [
    "SOPClassUID", "SOPInstanceUID", "Modality", "ImageType", "StudyInstanceUID", "SeriesInstanceUID",
    "PatientID", "AcquisitionNumber", "InstanceNumber", "TemporalPositionIdentifier", "TriggerTime",
    "NominalPercentageOfCardiacPhase", "AcquisitionTime", "ContentTime", "ConvolutionKernel",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness",
    "SpacingBetweenSlices", "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows",
    "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "RescaleSlope",
    "RescaleIntercept", "RescaleType", "PixelPaddingValue", "PixelPaddingRangeLimit", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]  # fmt: skip
# Modalities that may be named in messages; anything else in that field could be free text.
KNOWN_MODALITIES = frozenset([
    "CT", "MR", "PT", "NM", "US", "CR", "DX", "MG", "XA", "RF", "SR", "SEG", "RTSTRUCT", "RTDOSE", "RTPLAN",
    "PR", "KO", "OT", "SC", "REG", "DOC", "ECG",
])  # fmt: skip


# Rescale types of CT maps: optical density, iodine (mg/ml), effective atomic number, electron densities, percent.
_NOT_HOUNSFIELD = frozenset(["OD", "MGML", "Z_EFF", "ED", "EDW", "PCT"])


class HeaderProblem(Exception):
    """Why a file is not an image slice that can be used; the text is a fixed phrase without header content."""


class NotDicom(Exception):
    """A file beside the slices that is no DICOM."""


@dataclass(frozen=True)
class Storage:
    """How the pixels of a file are stored."""

    transfer_syntax: str
    data_start: int  # where the pixel data element's value begins
    data_length: int  # 0xFFFFFFFF when encapsulated
    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    frames: int
    photometric: str

    @property
    def encapsulated(self) -> bool:
        return self.data_length == 0xFFFFFFFF

    @property
    def frame_bytes(self) -> int:
        return self.rows * self.columns * self.bits_allocated // 8


@dataclass(frozen=True)
class Slice:
    """One image: a file, or one frame of a multi-frame file."""

    path: Path
    frame: int
    storage: Storage
    orientation: tuple[float, ...]  # direction of columns growing (x, y, z), then of rows growing
    position: tuple[float, ...]
    spacing: tuple[float, float]  # between rows, between columns
    thickness: float | None
    slope: float
    intercept: float
    rescaled: bool
    padding: tuple[int, int] | None  # stored values that are no measurement
    localizer: bool
    study: str  # this and the next three are hashes, good for comparing only
    series: str
    instance: str
    phase: tuple[str, ...]  # what may tell two images at one place apart


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Keep pydicom's warnings and log lines, which quote header text, off the terminal."""
    logger = logging.getLogger("pydicom")
    disabled, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = disabled


def read_header(path: Path) -> list[Slice]:
    """Read one file's image headers.

    Args:
        path: a file.

    Returns:
        One entry a frame.

    Raises:
        NotDicom: it does not begin as DICOM does.
        HeaderProblem: no CT image, or without what is needed to place it.
    """
    try:
        return _read_header(path)
    except (HeaderProblem, NotDicom):
        raise
    except PermissionError:
        raise HeaderProblem("without read permission") from None
    except Exception:  # damaged headers make pydicom raise anything, and its text may quote the header
        raise HeaderProblem("damaged") from None


def _read_header(path: Path) -> list[Slice]:
    dataset, syntax, start, length = _parse(path)
    modality = _text(dataset, "Modality").upper()
    sop_class = _text(dataset, "SOPClassUID")
    if modality == "" and sop_class == "":
        media_class = _text(dataset.file_meta, "MediaStorageSOPClassUID")
        raise HeaderProblem("damaged" if media_class in CT_CLASSES | {""} else "of another modality")
    if modality != "CT" and not (modality == "" and sop_class in CT_CLASSES):
        raise HeaderProblem(modality if modality in KNOWN_MODALITIES else "of another modality")
    if start < 0:
        raise HeaderProblem("without pixels (reports)")
    return _slices(path, dataset, syntax, start, length)


def _parse(path: Path) -> tuple[Any, str, int, int]:
    """(dataset without pixels, transfer syntax, start and length of the pixel value; start -1 if there is none)."""
    import pydicom

    size = os.stat(path).st_size
    with open(path, "rb", buffering=0) as file:
        head = file.read(_PREFIX)
        if not begins_as_dicom(path.name, head):
            raise NotDicom
        if _DEFLATED.encode() in head[:1024]:
            raise HeaderProblem("deflated (inflate them first, e.g. with dcmconv)")
        while True:
            stream = io.BytesIO(head)
            complete = len(head) >= size or len(head) >= _MAX_HEADER
            try:
                dataset = pydicom.dcmread(stream, stop_before_pixels=True, force=True, specific_tags=list(_KEYWORDS))
            except Exception:
                if complete:
                    raise
            else:
                at = stream.tell()
                if head[at : at + 4] in _PIXEL_TAGS and len(head) >= at + 12:
                    break
                if complete:
                    return dataset, "", -1, 0
            head += _read_more(file, min(size, _MAX_HEADER, len(head) * 16) - len(head))
    syntax = str(getattr(dataset.file_meta, "TransferSyntaxUID", "") or "")
    implicit, little = dataset.original_encoding
    if syntax in ("", "1.2.840.10008.1.2"):
        syntax = "1.2.840.10008.1.2" if implicit else "1.2.840.10008.1.2.1"
    order = "little" if little else "big"
    if implicit:
        return dataset, syntax, at + 8, int.from_bytes(head[at + 4 : at + 8], order)  # type: ignore[arg-type]
    return dataset, syntax, at + 12, int.from_bytes(head[at + 8 : at + 12], order)  # type: ignore[arg-type]


def _read_more(file: io.RawIOBase, count: int) -> bytes:
    parts = []
    while count > 0 and (data := file.read(count)):
        parts.append(data)
        count -= len(data)
    if not parts:
        raise HeaderProblem("damaged")
    return b"".join(parts)


def _text(dataset: Any, keyword: str) -> str:
    value = getattr(dataset, keyword, None)
    return "" if value is None else str(value).strip()


def _token(*texts: str) -> str:
    """A stand-in for an identifier that can be compared but not read; "" for nothing."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16] if any(texts) else ""


def _floats(dataset: Any, keyword: str, count: int) -> tuple[float, ...] | None:
    value = getattr(dataset, keyword, None)
    if value is None or isinstance(value, str):
        return None
    numbers = tuple(float(v) for v in (value if count > 1 else [value]))
    return numbers if len(numbers) == count and all(math.isfinite(n) for n in numbers) else None


def _group(frame: Any, shared: Any, keyword: str) -> Any:
    """A functional group's item, from the frame or shared by all."""
    for source in (frame, shared):
        sequence = getattr(source, keyword, None) if source is not None else None
        if sequence:
            return sequence[0]
    return None


def _slices(path: Path, dataset: Any, syntax: str, start: int, length: int) -> list[Slice]:
    if int(getattr(dataset, "SamplesPerPixel", 1) or 1) != 1 or _text(dataset, "PhotometricInterpretation") not in (
        "MONOCHROME1",
        "MONOCHROME2",
        "",
    ):
        raise HeaderProblem("colour pictures (screen captures)")
    per_frame = getattr(dataset, "PerFrameFunctionalGroupsSequence", None)
    frames = int(getattr(dataset, "NumberOfFrames", 1) or 1)
    if frames > 1 and (per_frame is None or len(per_frame) != frames):
        raise HeaderProblem("multi-frame without a position for each frame")
    storage = _storage(path, dataset, syntax, start, length, frames)
    common = {
        "study": _token(_text(dataset, "StudyInstanceUID"), _text(dataset, "PatientID")),
        "series": _token(_text(dataset, "SeriesInstanceUID")),
        "instance": _token(_text(dataset, "SOPInstanceUID")),
    }
    padding = _padding(dataset)
    shared_sequence = getattr(dataset, "SharedFunctionalGroupsSequence", None)
    shared = shared_sequence[0] if shared_sequence else None
    if per_frame is None or len(per_frame) == 0:
        return [_slice(path, 0, storage, common, padding, [dataset] * 5)]
    slices = []
    for number, frame in enumerate(per_frame):
        names = [
            "PlanePositionSequence",
            "PlaneOrientationSequence",
            "PixelMeasuresSequence",
            "PixelValueTransformationSequence",
            "CTImageFrameTypeSequence",
            "FrameContentSequence",
        ]
        items = [_group(frame, shared, name) for name in names]
        slices.append(_slice(path, number, storage, common, padding, [i if i is not None else dataset for i in items]))
    return slices


def _slice(
    path: Path, frame: int, storage: Storage, common: dict[str, str], padding: tuple[int, int] | None, items: list[Any]
) -> Slice:
    where, turned, measures, transform, kind, *content = items
    position = _floats(where, "ImagePositionPatient", 3)
    orientation = _floats(turned, "ImageOrientationPatient", 6)
    spacing = _floats(measures, "PixelSpacing", 2)
    image_type = getattr(kind, "ImageType", None) or getattr(kind, "FrameType", None) or ()
    image_type = [image_type] if isinstance(image_type, str) else [str(v).upper() for v in image_type]
    localizer = "LOCALIZER" in image_type
    if position is None or orientation is None or spacing is None:
        raise HeaderProblem("localizers" if localizer else "without position, orientation or pixel spacing")
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if min(lengths) < 0.99 or max(lengths) > 1.01 or abs(row @ column) > 0.01 or min(spacing) <= 0:
        raise HeaderProblem("with an impossible orientation or pixel spacing")
    orientation = tuple(float(v) for v in (*(row / lengths[0]), *(column / lengths[1])))
    if _text(transform, "RescaleType").upper() in _NOT_HOUNSFIELD:
        raise HeaderProblem("with other values than HU (such as iodine or electron density)")
    slope, intercept = _floats(transform, "RescaleSlope", 1), _floats(transform, "RescaleIntercept", 1)
    rescaled = slope is not None and intercept is not None
    if rescaled and (slope == (0.0,) or abs(slope[0]) > 1e6 or abs(intercept[0]) > 1e9):  # type: ignore[index]
        raise HeaderProblem("with an impossible rescale")
    thickness = _floats(measures, "SpacingBetweenSlices", 1) or _floats(measures, "SliceThickness", 1)
    time = content[0] if content else kind
    phase = [
        _text(kind, "AcquisitionNumber") or _text(time, "FrameAcquisitionNumber"),
        _text(kind, "TemporalPositionIdentifier") or _text(time, "TemporalPositionIndex"),
        _text(kind, "NominalPercentageOfCardiacPhase") or _text(time, "NominalPercentageOfCardiacPhase"),
        _text(kind, "TriggerTime"),
        _text(kind, "ConvolutionKernel"),
        "/".join(image_type),
        _text(kind, "AcquisitionTime") or _text(time, "FrameAcquisitionDateTime"),
        _text(time, "StackID"),
    ]
    return Slice(
        path=path,
        frame=frame,
        storage=storage,
        orientation=orientation,
        position=position,
        spacing=(spacing[0], spacing[1]),
        thickness=abs(thickness[0]) if thickness and thickness[0] else None,
        slope=slope[0] if rescaled else 1.0,  # type: ignore[index]
        intercept=intercept[0] if rescaled else 0.0,  # type: ignore[index]
        rescaled=rescaled,
        padding=padding,
        localizer=localizer,
        phase=tuple(_token(label) for label in phase),
        **common,
    )


def _storage(path: Path, dataset: Any, syntax: str, start: int, length: int, frames: int) -> Storage:
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    allocated = int(dataset.BitsAllocated)
    stored = int(getattr(dataset, "BitsStored", allocated) or allocated)
    high = int(getattr(dataset, "HighBit", stored - 1))
    if rows < 1 or columns < 1 or allocated not in (8, 16, 32) or not 1 <= stored <= allocated:
        raise HeaderProblem("with an impossible image size or bit depth")
    if not stored - 1 <= high < allocated:
        high = stored - 1
    storage = Storage(
        transfer_syntax=syntax,
        data_start=start,
        data_length=length,
        rows=rows,
        columns=columns,
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=high,
        signed=int(getattr(dataset, "PixelRepresentation", 0) or 0) == 1,
        frames=frames,
        photometric=_text(dataset, "PhotometricInterpretation") or "MONOCHROME2",
    )
    available = os.stat(path).st_size - start
    if not storage.encapsulated and (available < frames * storage.frame_bytes or length < frames * storage.frame_bytes):
        raise HeaderProblem("cut short")
    if storage.encapsulated and available < 16:
        raise HeaderProblem("cut short")
    return storage


def _padding(dataset: Any) -> tuple[int, int] | None:
    value = getattr(dataset, "PixelPaddingValue", None)
    if not isinstance(value, int):
        return None
    limit = getattr(dataset, "PixelPaddingRangeLimit", None)
    limit = limit if isinstance(limit, int) else value
    return min(value, limit), max(value, limit)
