"""Manufacturer and kernel of a DICOM scan, reduced to known words; and its patient, only to be hashed."""

import contextlib
import hashlib
import hmac
import os
import re
import secrets
import tempfile
from pathlib import Path

from voxelfm_hf.volumes import StoreError

_MANUFACTURERS = {
    "siemens": "Siemens",
    "ge medical": "GE",
    "gems": "GE",
    "general electric": "GE",
    "ge healthcare": "GE",
    "philips": "Philips",
    "marconi": "Philips",
    "toshiba": "Canon",
    "canon": "Canon",
    "hitachi": "Hitachi",
    "fujifilm": "Fujifilm",
    "neusoft": "Neusoft",
    "united imaging": "United Imaging",
    "uih": "United Imaging",
    "samsung": "Samsung",
    "neurologica": "Samsung",
}
# Vendors' kernel names: a short word, or letters and two digits (B40f, Br36d, FC08, I50f\3, YA); anything else could be
# free text typed by a person.
_KERNEL_CODE = re.compile(r"[A-Za-z]{1,3}\d{1,2}[a-z]?")
_KERNEL_WORDS = frozenset(
    ["STANDARD", "SOFT", "BONE", "BONEPLUS", "LUNG", "CHEST", "DETAIL", "EDGE", "ULTRA", "SMOOTH", "SHARP"]
    + ["A", "B", "C", "D", "E", "F", "L", "YA", "YB", "YC", "UA", "UB"]
)


def scanner_facts(path: str | os.PathLike) -> dict[str, str | None]:
    """Read {"manufacturer", "kernel"} of a DICOM file or folder; None each where absent, "other" where unknown.

    Header text is never passed on: manufacturers and kernels are matched against known ones.
    """
    header = _header(path, ["Manufacturer", "ConvolutionKernel"])
    if header is None:
        return {"manufacturer": None, "kernel": None}
    maker = str(header.get("Manufacturer") or "").lower()
    kernel = header.get("ConvolutionKernel")
    first = str(kernel[0] if isinstance(kernel, (list, tuple)) or hasattr(kernel, "append") else kernel or "").strip()
    return {
        "manufacturer": next((name for key, name in _MANUFACTURERS.items() if key in maker), "other")
        if maker
        else None,
        "kernel": (first if _KERNEL_CODE.fullmatch(first) or first.upper() in _KERNEL_WORDS else "other")
        if first
        else None,
    }


def dicom_patient(path: str | os.PathLike) -> str | None:
    """The patient ID in a DICOM file or folder, for hashing only; None for other formats or an empty ID."""
    header = _header(path, ["PatientID"])
    return (str(header.get("PatientID") or "").strip() or None) if header is not None else None


def _header(path: str | os.PathLike, tags: list[str]):
    """The wanted elements of the first readable DICOM file, or None where there is none."""
    import pydicom

    path = Path(path)
    candidates = [path]
    if path.is_dir():
        candidates = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))[:5]
    for file in candidates:
        try:
            return pydicom.dcmread(file, stop_before_pixels=True, specific_tags=tags)
        except Exception:  # whatever a damaged or foreign file does to the parser: then there is no header
            continue
    return None


class Pseudonyms:
    """Turns names into short codes with a secret that stays outside the data set.

    Args:
        path: the file of the secret; made on first use, readable by its owner only.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self._secret: bytes | None = None

    def code(self, name: str) -> str:
        """The code of a name: the first 16 hexadecimal digits of its HMAC-SHA256."""
        return hmac.new(self._key(), name.encode(), hashlib.sha256).hexdigest()[:16]

    def _key(self) -> bytes:
        if self._secret is None:
            if not self.path.exists():
                self.path.parent.mkdir(parents=True, exist_ok=True)
                handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
                with os.fdopen(handle, "w") as file:
                    file.write(secrets.token_hex(32))
                # A link appears whole and only once, whichever process comes first.
                with contextlib.suppress(FileExistsError):
                    os.link(name, self.path)
                os.unlink(name)
            try:
                self._secret = bytes.fromhex(self.path.read_text(encoding="ascii").strip())
            except (OSError, ValueError):
                raise StoreError(f"{self.path}: it holds no secret for patient codes; name another file.") from None
        return self._secret
