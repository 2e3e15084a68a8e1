"""Stored pixel values of one DICOM image: straight from the file, or decoded by GDCM (JPEG 2000: OpenJPEG)."""

from __future__ import annotations

import io
import os
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from voxelfm_hf.volumes.code_streams import JPEG2000, READABLE, decode_jpeg2000, fits_a_byte, plausible
from voxelfm_hf.volumes.dicom_headers import Slice, Storage
from voxelfm_hf.volumes.errors import ScanError

BIG_ENDIAN = "1.2.840.10008.1.2.2"
_UNCOMPRESSED = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", BIG_ENDIAN}
_MAX_THREADS = 4
_BATCH_SLICES, _BATCH_BYTES = 8, 1 << 25  # decoded by one call: GDCM takes a tenth of its time to begin


class _ScratchFile:
    """A file that GDCM can open by name: in memory where the system has such files, else a temporary one."""

    def __init__(self) -> None:
        if hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd"):
            self._file: Any = open(os.memfd_create("voxelfm"), "wb")  # noqa: SIM115
            self.name = f"/proc/self/fd/{self._file.fileno()}"
        else:
            self._file = tempfile.NamedTemporaryFile(prefix="voxelfm-", suffix=".dcm")  # noqa: SIM115
            self.name = self._file.name

    def replace(self, content: bytes) -> None:
        """Overwrites in place: to truncate a file before writing it can take longer than decoding a slice."""
        self._file.seek(0)
        self._file.write(content)
        self._file.truncate()

    def close(self) -> None:
        self._file.close()


class PixelReader:
    """Reads the stored values of slices; keeps a few small scratch files a thread for those that GDCM decodes.

    Compressed frames are wrapped in a new minimal file (geometry of the image matrix only) before GDCM sees
    them, so that a damaged or hostile header never reaches the C++ code and no patient data is copied.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._of_thread = threading.local()
        self._all_scratch: list[_ScratchFile] = []

    def __enter__(self) -> PixelReader:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._all_scratch:
            file.close()

    def read_all(self, slices: Sequence[Slice]) -> Iterator[np.ndarray]:
        """Stored values of many images in their order; compressed ones are decoded by threads, a few ahead.

        Args:
            slices: of one series.

        Yields:
            As `read`.

        Raises:
            ScanError: as `read`.
        """
        if not slices[0].storage.encapsulated:
            yield from map(self.read, slices)
            return
        batches = _batches(slices)
        threads = min(len(batches), _MAX_THREADS, os.cpu_count() or 1)
        ahead: deque[Future[list[np.ndarray]]] = deque()
        with ThreadPoolExecutor(threads) as pool:
            try:
                for batch in batches:
                    ahead.append(pool.submit(self._read_batch, batch))
                    if len(ahead) > threads:
                        yield from ahead.popleft().result()
                while ahead:
                    yield from ahead.popleft().result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _read_batch(self, items: list[Slice]) -> list[np.ndarray]:
        """Stored values of images that are stored alike; one by one unless all can be decoded together."""
        storage = items[0].storage
        if len(items) > 1 and storage.transfer_syntax in READABLE - JPEG2000:
            frames = [self._frame(item) for item in items]
            if all(plausible(frame, storage) and not fits_a_byte(frame, storage) for frame in frames):
                images = self._decode_by_gdcm(frames, storage)
                if images is not None and images.shape == (len(items), storage.rows * storage.columns):
                    return [_used_bits(stored, storage) for stored in images]
        return [self.read(item) for item in items]

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
        which = "its pixels"
        if item.path != self._path:  # by number: file names may hold a patient's
            names = sorted(entry.name for entry in os.scandir(self._path))
            which = f"the pixels of file {names.index(item.path.name) + 1} of {len(names)} (by name)"
        return ScanError(f"{self._path}: {which} are damaged; copy or export the series again.")

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
        if syntax not in READABLE:
            raise ScanError(
                f"{self._path}: its pixel compression ({syntax[:64] if _is_uid(syntax) else 'unknown syntax'}) "
                "cannot be read; decompress the series first, e.g. with gdcmconv --raw."
            )
        frame = self._frame(item)
        stored = None
        if plausible(frame, storage):
            if syntax in JPEG2000:
                stored = decode_jpeg2000(frame, storage)
            else:
                images = self._decode_by_gdcm([frame], storage)
                stored = None if images is None else images[0]
        if stored is None or stored.size != storage.rows * storage.columns:
            raise self._damaged(item)
        return stored

    def _decode_by_gdcm(self, frames: list[bytes], storage: Storage) -> np.ndarray | None:
        """(frames, rows * columns) stored values, or None where one is damaged."""
        import SimpleITK

        scratch: list[_ScratchFile] = self._of_thread.__dict__.setdefault("scratch", [])
        while len(scratch) < len(frames):
            scratch.append(_ScratchFile())
            self._all_scratch.append(scratch[-1])
        for file, frame in zip(scratch, frames, strict=False):
            file.replace(_minimal_file(frame, storage))
        SimpleITK.ProcessObject.GlobalWarningDisplayOff()
        try:
            reader = SimpleITK.ImageSeriesReader()
            reader.SetImageIO("GDCMImageIO")
            reader.SetFileNames([file.name for file in scratch[: len(frames)]])
            stored = SimpleITK.GetArrayFromImage(reader.Execute())
        except RuntimeError:
            return None
        return stored.reshape(len(frames), -1) if stored.dtype.kind in "iu" else None

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


def _batches(slices: Sequence[Slice]) -> list[list[Slice]]:
    """Neighbours that are stored alike, a few at a time."""
    batches: list[list[Slice]] = []
    most = min(_BATCH_SLICES, _BATCH_BYTES // max(1, slices[0].storage.frame_bytes))
    kinds = [replace(item.storage, data_start=0, data_length=0) for item in slices]
    for n, item in enumerate(slices):
        if n and kinds[n] == kinds[n - 1] and len(batches[-1]) < most:
            batches[-1].append(item)
        else:
            batches.append([item])
    return batches


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


def _minimal_file(frame: bytes, storage: Storage) -> bytes:
    """A DICOM file with nothing but the image matrix and one code stream."""
    if fits_a_byte(frame, storage):
        signed = storage.signed and storage.bits_stored <= 8  # otherwise the sign bit was not needed
        storage = replace(storage, bits_allocated=8, bits_stored=8, high_bit=7, signed=signed)
    header = _minimal_header(
        storage.transfer_syntax,
        storage.photometric,
        (storage.rows, storage.columns),
        (storage.bits_allocated, storage.bits_stored, storage.high_bit, int(storage.signed)),
    )
    frame += b"\0" * (len(frame) % 2)
    item, end = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
    pixels = b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff" + item + bytes(4)  # undefined length, empty offset table
    return b"".join((header, pixels, item, len(frame).to_bytes(4, "little"), frame, end, bytes(4)))


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
