"""Values planted in every text field of a header must not reach anything the reader returns, raises or prints."""

import warnings

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.datadict import DicomDictionary, keyword_for_tag

from voxelfm_hf.volumes import VoxelFMError, list_series, read_volume

SECRET = "ZEBEDEE"
UID = "1.2.826.0.1.3680043.8.498.77777777"
DATE = "19330607"
NEEDLES = (SECRET, SECRET.lower(), "77777777", DATE, "1933-06-07", "0933Y")
NEEDED = {"Modality", "ImageType", "PhotometricInterpretation", "SOPClassUID", "SpecificCharacterSet"}


def plant(item: pydicom.Dataset) -> None:
    """Put the secret into every text, name, date and UID tag of the DICOM dictionary that is not needed to read."""
    values = {
        "PN": f"{SECRET}^ANNA", "LO": SECRET, "SH": SECRET, "ST": SECRET, "LT": SECRET, "UT": SECRET, "UC": SECRET,
        "CS": SECRET, "UI": UID, "DA": DATE, "DT": DATE + "101010", "AS": "0933Y", "AE": SECRET, "UR": SECRET,
    }  # fmt: skip
    for tag, (vr, *_) in DicomDictionary.items():
        keyword = keyword_for_tag(tag)
        if vr not in values or not keyword or tag < 0x00080000 or keyword in NEEDED or "Retired" in keyword:
            continue
        if tag >> 16 in (0x0006, 0x0074, 0x3004) or keyword in ("SOPInstanceUID",):
            continue
        setattr(item, keyword, values[vr])
    item.add_new(0x00091001, "LO", SECRET)


def hunt(text: str) -> None:
    for needle in NEEDLES:
        assert needle not in text, f"{needle} leaked: ...{text[max(0, text.find(needle) - 80) :][:200]}"


def everything(path, capfd, **options) -> str:
    """All text that reading a scan gives: result, notes, errors with their causes, restored file, stdout, stderr."""
    said = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            volume = read_volume(path, **options)
            said += [repr(volume), volume.source, *volume.notes, repr(volume.grid)]
            said.append(volume.restore(np.zeros(volume.hu.shape, np.uint8)).to_bytes().decode("latin-1"))
        except VoxelFMError as error:
            chain: BaseException | None = error
            while chain is not None:
                said.append(str(chain))
                chain = chain.__cause__ or (None if chain.__suppress_context__ else chain.__context__)
        if path.is_dir():
            try:
                said += [str(s) + repr(s) for s in list_series(path)]
            except VoxelFMError as error:
                said.append(str(error))
    said += [str(w.message) for w in caught]
    out, err = capfd.readouterr()
    return "\n".join([*said, out, err])


@pytest.fixture
def planted(tmp_path, writers):
    folder = tmp_path / "scan"
    for path in writers.write_series(folder, writers.ct_array()):
        item = pydicom.dcmread(path)
        plant(item)
        item.save_as(path)
    assert SECRET.encode() in path.read_bytes() and UID.encode() in path.read_bytes()
    return folder


def test_a_good_series(planted, capfd) -> None:
    text = everything(planted, capfd)
    assert "Volume('scan'" in text
    hunt(text)


@pytest.mark.parametrize(
    "tags",
    [
        {"Modality": SECRET},
        {"ImageType": [SECRET, SECRET, "LOCALIZER"]},
        {"PhotometricInterpretation": SECRET},
        {"PixelSpacing": None},
        {"ImagePositionPatient": None},
        {"Rows": 9999},
        {"BitsAllocated": 24},
        {"RescaleSlope": 0},
        {"NumberOfFrames": 3},
        {"SeriesInstanceUID": UID + ".1"},
        {"ImagePositionPatient": [0, 0, 0]},
    ],
)
@pytest.mark.parametrize("how_many", [1, 9])
def test_faulty_series(planted, capfd, writers, tags, how_many) -> None:
    for path in sorted(planted.iterdir())[:how_many]:
        writers.edit(path, **tags)
    hunt(everything(planted, capfd))


@pytest.mark.parametrize("old", [b"0.7", b"\\-14", b"-1024", b"CT", b"9\\"])
def test_raw_damage(planted, capfd, old) -> None:
    """Numbers replaced by text of the same length: pydicom's own messages would quote the value."""
    for path in planted.iterdir():
        path.write_bytes(path.read_bytes().replace(old, SECRET.encode()[: len(old)]))
    hunt(everything(planted, capfd))


def test_cut_and_compressed(planted, capfd) -> None:
    paths = sorted(planted.iterdir())
    data = paths[0].read_bytes()
    for keep in range(200, len(data), 997):
        paths[0].write_bytes(data[:keep])
        hunt(everything(planted, capfd))
    paths[0].write_bytes(data)
    for path in paths:
        item = pydicom.dcmread(path)
        item.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
        item.save_as(path)
    hunt(everything(planted, capfd))
    data = paths[1].read_bytes()
    paths[1].write_bytes(data[:-300] + SECRET.encode() * 42)
    hunt(everything(planted, capfd))


def test_nifti(tmp_path, capfd, writers) -> None:
    image = writers.nifti_of(writers.ct_array(), "RAS")
    image.header["descrip"], image.header["aux_file"] = SECRET, SECRET
    image.header["db_name"], image.header["intent_name"] = SECRET, SECRET
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", SECRET.encode()))
    path = tmp_path / "scan.nii"
    nib.save(image, path)
    data = path.read_bytes()
    assert data.count(SECRET.encode()) == 5
    text = everything(path, capfd)
    assert "Volume('scan.nii'" in text
    hunt(text)
    for at in range(0, 352, 4):
        path.write_bytes(data[:at] + SECRET.encode()[:4] + data[at + 4 :])
        hunt(everything(path, capfd))


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_itk(tmp_path, capfd, writers, suffix) -> None:
    image = writers.lps_image(writers.ct_array())
    path = tmp_path / f"scan{suffix}"
    sitk.WriteImage(image, str(path))
    data = path.read_bytes()
    extra = f"# {SECRET}\ncontent: {SECRET}\nkey:={SECRET}\n" if suffix == ".nrrd" else f"Comment = {SECRET}\n"
    first = b"type:" if suffix == ".nrrd" else b"BinaryData ="
    data = data.replace(first, extra.encode() + first, 1)
    path.write_bytes(data)
    text = everything(path, capfd)
    assert f"Volume('scan{suffix}'" in text
    hunt(text)
    lines = data.split(b"\n")
    for n in range(1, 14):
        key, separator, _ = lines[n].partition(b":" if suffix == ".nrrd" else b"=")
        if separator:
            path.write_bytes(b"\n".join([*lines[:n], key + separator + b" " + SECRET.encode(), *lines[n + 1 :]]))
            hunt(everything(path, capfd))


def test_commands(planted, tmp_path) -> None:
    from typer.testing import CliRunner

    from voxelfm_hf.cli import app

    drawn = tmp_path / "scan.png"
    for arguments in (
        ["info", planted],
        ["info", "--json", planted],
        ["picture", planted, "--no-features", "-o", drawn],
    ):
        result = CliRunner().invoke(app, list(map(str, arguments)))
        assert result.exit_code == 0, result.output
        hunt(result.output)
    hunt(drawn.read_bytes().decode("latin-1"))
    assert drawn.stat().st_size > 10_000
