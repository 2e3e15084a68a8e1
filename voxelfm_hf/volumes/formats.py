"""The formats of scans: how their files are recognised and who reads them. A new one is a reader and a row here."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        title: What sentences call it.
        reader: Module of `voxelfm_hf.volumes` and its function, imported when the first such file is read.
        endings: Of the names of files that folders are searched for, in small letters.
        starts: First bytes of its files.
        headers: Endings of headers whose voxels lie in another file.
        voxels: Endings of that file; empty where the header names it.
        named: Whether an ending is enough where the first bytes say nothing.
        has_spacing: Whether its files state their spacing.
    """

    title: str
    reader: str
    endings: tuple[str, ...]
    starts: tuple[bytes, ...] = ()
    headers: tuple[str, ...] = ()
    voxels: tuple[str, ...] = ()
    named: bool = False
    has_spacing: bool = True

    def claims(self, name: str, head: bytes) -> bool:
        """Whether a file of this name (small letters) and these first bytes is one."""
        endings = (*self.endings, *self.headers, *self.voxels)
        return head.startswith(self.starts) or (self.named and name.endswith(endings))

    def load_reader(self) -> Callable[..., Any]:
        """The function that reads it."""
        module, function = self.reader.split(".")
        return getattr(importlib.import_module(f"voxelfm_hf.volumes.{module}"), function)


# DICOM, of folders too, is recognised by `begins_as_dicom`.
DICOM = Format("DICOM", "dicom.read_dicom", (".dcm", ".dicom", ".ima"))
FORMATS = (
    Format(".npy", "numpy_file.read_numpy", (".npy",), (b"\x93NUMPY",), has_spacing=False),
    Format("NRRD", "itk.read_itk", (".nrrd", ".nhdr"), (b"NRRD000",), headers=(".nhdr",)),
    Format("MHA/MHD", "itk.read_itk", (".mha", ".mhd"), headers=(".mhd",), named=True),
    Format(
        "NIfTI",
        "nifti.read_nifti",
        (".nii.gz", ".nii"),
        (b"\\\x01\0\0", b"\0\0\x01\\", b"\x1c\x02\0\0", b"\0\0\x02\x1c"),
        headers=(".hdr.gz", ".hdr"),
        voxels=(".img.gz", ".img"),
        named=True,
    ),
)
ENDINGS = tuple(ending for known in FORMATS for ending in known.endings)
HEADERS = tuple(ending for known in FORMATS for ending in known.headers)
VOXELS = tuple(ending for known in FORMATS for ending in known.voxels)
# Of files that are whole scans by themselves, their spacing included.
SINGLE_FILES = tuple(
    ending for known in FORMATS if known.has_spacing for ending in known.endings if ending not in HEADERS
)
*_first, _last = (known.title for known in (*reversed(FORMATS), DICOM))
READABLE = f"{', '.join(_first)} and {_last}"
