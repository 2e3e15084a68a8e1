"""Compressed frames of DICOM images: what their own headers claim, and JPEG 2000 decoded from memory by OpenJPEG."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from voxelfm_hf.volumes.dicom_headers import Storage

RLE = "1.2.840.10008.1.2.5"
JPEG2000 = {f"1.2.840.10008.1.2.4.{n}" for n in (90, 91)}
JPEG = {f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70, 80, 81)}  # JPEG-LS among them
LOSSY = {f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 81, 91)}
READABLE = JPEG | JPEG2000 | {RLE}
# A slice of air alone may shrink ten-thousandfold; an image larger than any CT slice must not claim to have.
_LARGE_IMAGE, _MAX_RATIO_OF_LARGE = 1 << 24, 1000
_START_OF_JPEG2000 = b"\xff\x4f\xff\x51"


@dataclass(frozen=True)
class _Claim:
    """The image that a JPEG family code stream says it holds."""

    rows: int
    columns: int
    precision: int  # bits
    components: int


def plausible(frame: bytes, storage: Storage) -> bool:
    """Whether a frame's own header agrees with the image, so that a lie is refused before memory is taken.

    Args:
        frame: one code stream.
        storage: the image that the DICOM header announces.
    """
    if storage.rows * storage.columns > _LARGE_IMAGE and storage.frame_bytes > _MAX_RATIO_OF_LARGE * len(frame):
        return False
    if storage.transfer_syntax == RLE:
        return _plausible_rle(frame, storage)
    claim = _jpeg2000_claim(frame) if storage.transfer_syntax in JPEG2000 else _jpeg_claim(frame)
    return (
        claim is not None
        and (claim.rows, claim.columns, claim.components) == (storage.rows, storage.columns, 1)
        and 1 <= claim.precision <= storage.bits_allocated
    )


def fits_a_byte(frame: bytes, storage: Storage) -> bool:
    """Whether a JPEG or JPEG-LS stream holds 8-bit values for an image that is announced as deeper.

    Some encoders give each slice the bits that its own values need; GDCM reads such a slice only under a header
    that says so.

    Args:
        frame: a plausible code stream.
        storage: the image that the DICOM header announces.
    """
    claim = _jpeg_claim(frame) if storage.transfer_syntax in JPEG else None
    return claim is not None and claim.precision <= 8 < storage.bits_allocated


def decode_jpeg2000(frame: bytes, storage: Storage) -> np.ndarray | None:
    """Decode a plausible JPEG 2000 frame with OpenJPEG; GDCM can crash on damaged ones.

    Args:
        frame: one code stream, perhaps inside JP2 boxes.
        storage: the image that the DICOM header announces.

    Returns:
        (rows * columns,) of the type in which such an image is stored uncompressed, or None for a damaged frame.
    """
    import imagecodecs

    try:
        image = imagecodecs.jpeg2k_decode(frame[frame.find(_START_OF_JPEG2000) :], numthreads=1)
    except Exception:  # whatever OpenJPEG and its wrapper meet in a damaged stream
        return None
    if image.shape != (storage.rows, storage.columns) or image.dtype.itemsize * 8 > storage.bits_allocated:
        return None
    # The sign is the DICOM header's, as GDCM has it; the stream's own only says how its values are widened.
    values = image.ravel().astype(f"<{image.dtype.kind}{storage.bits_allocated // 8}", copy=False)
    return values.view(f"<{'i' if storage.signed else 'u'}{storage.bits_allocated // 8}")


def _plausible_rle(frame: bytes, storage: Storage) -> bool:
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


def _jpeg2000_claim(frame: bytes) -> _Claim | None:
    at = frame.find(_START_OF_JPEG2000)
    if at < 0 or len(frame) < at + 45:
        return None
    width, height, left, top = (_number(frame, at + n, 4) for n in (8, 12, 16, 20))
    components, depth, steps = _number(frame, at + 40, 2), frame[at + 42], frame[at + 43 : at + 45]
    if steps != b"\x01\x01":  # subsampled: fewer values than the size says
        return None
    return _Claim(height - top, width - left, (depth & 0x7F) + 1, components)


def _jpeg_claim(frame: bytes) -> _Claim | None:
    at = 2
    while at + 10 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) or marker == 0xF7:
            return _Claim(_number(frame, at + 5, 2), _number(frame, at + 7, 2), frame[at + 4], frame[at + 9])
        at += 2 + _number(frame, at + 2, 2)
    return None


def _number(data: bytes, start: int, length: int) -> int:
    return int.from_bytes(data[start : start + length], "big")
