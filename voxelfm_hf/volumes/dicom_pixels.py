"""Stored pixel values of one DICOM image: straight from the file, or decoded by GDCM (JPEG 2000: Pillow)."""

from __future__ import annotations

import io
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np

from voxelfm_hf.volumes.dicom_headers import Slice, Storage
from voxelfm_hf.volumes.errors import ScanError

BIG_ENDIAN = "1.2.840.10008.1.2.2"
_UNCOMPRESSED = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", BIG_ENDIAN}
_RLE = "1.2.840.10008.1.2.5"
_JPEG = {f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70, 80, 81)}
_JPEG2000 = {f"1.2.840.10008.1.2.4.{n}" for n in (90, 91)}
LOSSY = {f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 81, 91)}


class PixelReader:
    """Reads the stored values of slices; keeps one small scratch file for compressed ones.

    Compressed frames are wrapped in a new minimal file (geometry of the image matrix only) before GDCM sees
    them, so that a damaged or hostile header never reaches the C++ code and no patient data is copied.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> PixelReader:
        return self

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            self._folder.cleanup()

    def read(self, item: Slice) -> np.ndarray:
        """Stored values of one image.

        Args:
            item: the slice.

        Returns:
            (rows * columns,) integers, unused bits removed.

        Raises:
            ScanError: damaged, cut short, or a compression that cannot be read.
        """
        storage = item.storage
        if storage.encapsulated:
            stored = self._decode(item)
        elif storage.transfer_syntax in _UNCOMPRESSED or not storage.transfer_syntax:
            stored = self._plain(item)
        else:
            raise self._damaged(item)
        return _used_bits(stored, storage)

    def _damaged(self, item: Slice) -> ScanError:
        return ScanError(f"{self._path}: the pixels of {item.path.name} are damaged; copy or export the series again.")

    def _plain(self, item: Slice) -> np.ndarray:
        storage = item.storage
        order = ">" if storage.transfer_syntax == BIG_ENDIAN else "<"
        dtype = np.dtype(f"{order}{'i' if storage.signed else 'u'}{storage.bits_allocated // 8}")
        count = storage.rows * storage.columns
        offset = storage.data_start + item.frame * storage.frame_bytes
        stored = np.fromfile(item.path, dtype, count, offset=offset)
        if stored.size != count:
            raise self._damaged(item)
        return stored

    def _decode(self, item: Slice) -> np.ndarray:
        syntax, storage = item.storage.transfer_syntax, item.storage
        if syntax not in _JPEG | _JPEG2000 and syntax != _RLE:
            raise ScanError(
                f"{self._path}: its pixel compression ({syntax[:64] if _is_uid(syntax) else 'unknown syntax'}) "
                "cannot be read; decompress the series first, e.g. with gdcmconv --raw."
            )
        frame = self._frame(item)
        if not _plausible(frame, storage):
            raise self._damaged(item)
        if syntax in _JPEG2000:
            stored = _decode_jpeg2000(frame)
            if stored is None or stored.size != storage.rows * storage.columns:
                raise self._damaged(item)
            return stored
        import SimpleITK

        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="voxelfm-")
        scratch = Path(self._folder.name) / "frame.dcm"
        _write_minimal(scratch, frame, storage)
        SimpleITK.ProcessObject.GlobalWarningDisplayOff()
        try:
            reader = SimpleITK.ImageFileReader()
            reader.SetImageIO("GDCMImageIO")
            reader.SetFileName(str(scratch))
            stored = SimpleITK.GetArrayFromImage(reader.Execute())
        except RuntimeError:
            raise self._damaged(item) from None
        if stored.size != storage.rows * storage.columns or stored.dtype.kind not in "iu":
            raise self._damaged(item)
        return stored.reshape(-1)

    def _frame(self, item: Slice) -> bytes:
        """The code stream of one frame."""
        from pydicom.encaps import get_frame

        try:
            with open(item.path, "rb") as file:
                file.seek(item.storage.data_start)
                return get_frame(file, item.frame, number_of_frames=item.storage.frames)
        except OSError:
            raise
        except Exception:  # pydicom raises anything on damaged item lengths
            raise self._damaged(item) from None


def _is_uid(text: str) -> bool:
    return bool(text) and all(c in "0123456789." for c in text)


def _used_bits(stored: np.ndarray, storage: Storage) -> np.ndarray:
    """Drop bits above or below the stored ones (old overlays) and extend the sign; no copy when there are none."""
    low_bit = storage.high_bit + 1 - storage.bits_stored
    if storage.bits_stored == storage.bits_allocated:
        return stored
    wide = stored.dtype.newbyteorder("=")
    if low_bit == 0:
        low, high = int(stored.min()), int(stored.max())
        half = 1 << (storage.bits_stored - 1)
        if (storage.signed and -half <= low and high < half) or (not storage.signed and low >= 0 and high < 2 * half):
            return stored
    values = stored.astype(np.int64) >> low_bit
    values &= (1 << storage.bits_stored) - 1
    if storage.signed:
        values -= (values >> (storage.bits_stored - 1)) << storage.bits_stored
    return values.astype(wide)


def _plausible(frame: bytes, storage: Storage) -> bool:
    """Whether a code stream's own header agrees with the image; GDCM can crash or take any memory where it does not."""
    if storage.transfer_syntax != _RLE:
        return _coded_size(frame, storage.transfer_syntax) == (storage.rows, storage.columns)
    if len(frame) < 66:
        return False
    segments, *offsets = np.frombuffer(frame, "<u4", 16).tolist()
    used = offsets[:segments]
    return (
        segments == storage.bits_allocated // 8
        and used[0] == 64
        and used == sorted(set(used))
        and used[-1] < len(frame)
    )


def _coded_size(frame: bytes, syntax: str) -> tuple[int, int]:
    """(rows, columns) that a JPEG family code stream claims, so that a lie is refused before memory is taken."""
    if syntax in _JPEG2000:
        at = frame.find(b"\xff\x4f\xff\x51")
        if at < 0 or len(frame) < at + 24:
            return (0, 0)
        width, height, left, top = (int.from_bytes(frame[at + n : at + n + 4], "big") for n in (8, 12, 16, 20))
        return height - top, width - left
    at = 2
    while at + 9 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) or marker == 0xF7:
            return int.from_bytes(frame[at + 5 : at + 7], "big"), int.from_bytes(frame[at + 7 : at + 9], "big")
        at += 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    return (0, 0)


def _decode_jpeg2000(frame: bytes) -> np.ndarray | None:
    """Values of a one-component JPEG 2000 code stream, or None if it is damaged.

    Through Pillow, because GDCM can crash on a damaged JPEG 2000 header. Pillow returns 16-bit images moved up to
    fill the 16 bits and signed ones shifted to be positive; both are undone here.
    """
    import warnings

    from PIL import Image

    at = frame.find(b"\xff\x4f\xff\x51")
    if len(frame) < at + 43 or frame[at + 40 : at + 42] != b"\0\x01":  # one component
        return None
    precision, signed = (frame[at + 42] & 0x7F) + 1, bool(frame[at + 42] & 0x80)
    if precision > 16:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its warning about large images; the size has been checked
            with Image.open(io.BytesIO(frame[at:]), formats=["JPEG2000"]) as image:
                values = np.asarray(image)
    except Exception:
        return None
    if values.ndim != 2 or values.dtype not in (np.uint8, np.uint16):
        return None
    stored = values.astype(np.int32) >> max(0, values.dtype.itemsize * 8 - precision)
    return (stored - (1 << (precision - 1) if signed else 0)).reshape(-1)


def _write_minimal(scratch: Path, frame: bytes, storage: Storage) -> None:
    """A DICOM file with nothing but the image matrix and one code stream."""
    header = _minimal_header(
        storage.transfer_syntax,
        storage.photometric,
        (storage.rows, storage.columns),
        (storage.bits_allocated, storage.bits_stored, storage.high_bit, int(storage.signed)),
    )
    frame += b"\0" * (len(frame) % 2)
    item, end = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
    pixels = b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff" + item + bytes(4)  # undefined length, empty offset table
    scratch.write_bytes(header + pixels + item + len(frame).to_bytes(4, "little") + frame + end + bytes(4))


@lru_cache(maxsize=8)
def _minimal_header(syntax: str, photometric: str, size: tuple[int, int], bits: tuple[int, int, int, int]) -> bytes:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.7")
    meta.MediaStorageSOPInstanceUID = UID("2.25.1")
    meta.TransferSyntaxUID = UID(syntax)
    image = Dataset()
    image.file_meta = meta
    image.SOPClassUID, image.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    image.Modality, image.SamplesPerPixel, image.PhotometricInterpretation = "OT", 1, photometric
    image.Rows, image.Columns = size
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = bits
    target = io.BytesIO()
    image.save_as(target, enforce_file_format=True)
    return target.getvalue()
