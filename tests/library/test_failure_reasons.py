"""Where a list gives ids because paths hold names, no part of a path reaches the reason of a failure."""

import numpy as np
import pydicom
import pytest

from voxelfm_hf import read_volume
from voxelfm_hf.features import failure_reason
from voxelfm_hf.scan_list import Scan
from voxelfm_hf.volumes.errors import ScanError


def reason_of(path) -> str:
    with pytest.raises(ScanError) as caught:
        read_volume(path)
    return failure_reason(Scan("case7", path, named=True), caught.value)


def without_sidecar(folder):
    np.save(folder / "DOE_JANE.npy", np.zeros((4, 4, 4)))
    return folder / "DOE_JANE.npy"


def with_a_wrong_sidecar(folder):
    (folder / "DOE_JANE.json").write_text("{}")
    return without_sidecar(folder)


def without_header_file(folder):
    (folder / "DOE_JANE.img").write_bytes(bytes(1000))
    return folder / "DOE_JANE.img"


def with_a_missing_voxel_file(folder):
    (folder / "DOE_JANE.nhdr").write_text("NRRD0005\nsizes: 2 2 2\ntype: short\ndata file: DOE_JANE.raw\n")
    return folder / "DOE_JANE.nhdr"


def with_a_damaged_slice(folder):
    series = folder / "DOE_JANE"
    series.mkdir()
    item = pydicom.dcmread(pydicom.data.get_testdata_file("MR_small_RLE.dcm", download=False))
    item.Modality, item.SOPClassUID = "CT", "1.2.840.10008.5.1.4.1.1.2"
    item.PixelData = pydicom.encaps.encapsulate([bytes(100)])
    item.save_as(series / "ROE_RICHARD_1.dcm")
    return series


@pytest.mark.parametrize(
    "make",
    [without_sidecar, with_a_wrong_sidecar, without_header_file, with_a_missing_voxel_file, with_a_damaged_slice],
)
def test_no_part_of_a_path_is_told(tmp_path, make):
    folder = tmp_path / "POE_PAUL"
    folder.mkdir()
    reason = reason_of(make(folder))
    assert "case7" in reason and reason.endswith(".")
    for name in ("DOE", "JANE", "ROE", "RICHARD", "POE", "PAUL", str(tmp_path)):
        assert name not in reason


def test_short_names_do_not_garble_the_sentence(tmp_path):
    path = tmp_path / "1.npy"
    np.save(path, np.zeros((4, 4, 4)))
    reason = reason_of(path)
    assert reason.startswith("case7: a .npy file states no voxel spacing; give --spacing z,y,x in mm")
