"""Files that must not be trusted are refused with one sentence, and odd headers are read by the rules or refused."""

import gzip
import os
import socket
import struct
import sys
import zlib

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from voxelfm_hf.volumes import ScanError, VoxelFMError, read_volume


def refuse(path, words: str, **options) -> None:
    with pytest.raises(ScanError, match=words) as caught:
        read_volume(path, **options)
    message = str(caught.value)
    assert path.name in message and "\n" not in message
    assert message.endswith(".")


@pytest.fixture
def saved(tmp_path, writers):
    """Write an array as RAS NIfTI, with header fields changed after saving."""

    def save(array=None, name="scan.nii", dtype=None, **fields):
        array = writers.ct_array() if array is None else array
        image = writers.nifti_of(array, "RAS", dtype=dtype)
        path = tmp_path / name
        data = bytearray(image.to_bytes())
        header = image.header.copy()
        header["magic"], header["vox_offset"] = b"n+1", 352
        for field, value in fields.items():
            header[field] = value
        data[:348] = header.binaryblock
        path.write_bytes(gzip.compress(bytes(data)) if name.endswith(".gz") else bytes(data))
        return path

    return save


def test_the_fixture_writes_a_good_file(saved, writers) -> None:
    assert np.array_equal(read_volume(saved()).hu, writers.ct_array())


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.mha", "a.mhd", "a.npy", "a.dcm", "a.xyz", "a.hdr"])
def test_empty_and_foreign_files(tmp_path, name) -> None:
    path = tmp_path / name
    path.write_bytes(b"")
    refuse(path, "empty")
    for content in (b"%PDF-1.7 a long report about something else " * 40, b"x", bytes(1000), os.urandom(700)):
        path.write_bytes(content)
        with pytest.raises(ScanError, match="a\\."):
            read_volume(path)


def test_archives_pipes_sockets_missing_and_forbidden(tmp_path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04" + bytes(50))
    refuse(tmp_path / "a.zip", "archive")
    refuse(tmp_path / "nothing.nii", "no such file")
    os.mkfifo(tmp_path / "pipe.nii")
    refuse(tmp_path / "pipe.nii", "pipe")
    old = os.getcwd()
    os.chdir(tmp_path)  # socket paths are limited in length
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("s.nii")
            refuse(tmp_path / "s.nii", "socket")
    finally:
        os.chdir(old)
    with pytest.raises(ScanError, match="cannot be opened"):
        read_volume("a\0b.nii")
    with pytest.raises(ScanError, match="cannot be opened"):
        read_volume("a" * 5000)
    with pytest.raises(ScanError, match="device"):
        read_volume("/dev/null")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(saved) -> None:
    path = saved()
    path.chmod(0)
    refuse(path, "permission")


def test_options_of_other_formats_are_refused(saved) -> None:
    refuse(saved(), "only DICOM folders hold several series", series=2)
    refuse(saved(), "only for .npy", spacing=(1, 1, 1))


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
@pytest.mark.parametrize("keep", [3, 200, 360, 0.5, 0.99])
def test_truncated_nifti(saved, name, keep) -> None:
    path = saved(name=name)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep if keep > 1 else keep * len(data))])
    refuse(path, "ends inside|shorter|cut short|before its voxels|damaged|wrong first bytes")


def test_a_damaged_gzip_stream_is_noticed_even_at_its_end(saved) -> None:
    path = saved(name="scan.nii.gz")
    data = bytearray(path.read_bytes())
    data[-6] ^= 255  # the checksum
    path.write_bytes(bytes(data))
    refuse(path, "gzip stream is damaged")


def test_gzip_in_several_members_is_read(saved, tmp_path, writers) -> None:
    data = saved().read_bytes()
    path = tmp_path / "parts.nii.gz"
    path.write_bytes(b"".join(gzip.compress(data[i : i + 700]) for i in range(0, len(data), 700)) + bytes(64))
    assert np.array_equal(read_volume(path).hu, writers.ct_array())


def nifti_header(shape, dtype="<i2", **fields) -> bytes:
    header = nib.Nifti1Header()
    header.set_data_dtype(np.dtype(dtype))
    header["dim"][: len(shape) + 1] = [len(shape), *shape]
    header["pixdim"][1:4] = 1
    header.set_sform(np.eye(4), 1)
    header["magic"], header["vox_offset"] = b"n+1", 352
    for field, value in fields.items():
        header[field] = value
    return header.binaryblock + bytes(4)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_claims_of_impossible_size_take_no_memory(tmp_path, suffix) -> None:
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for shape in ((10000, 10000, 10000), (1000, 1000, 1000), (32767, 32767, 32767)):
        path = tmp_path / f"big{suffix}"
        data = nifti_header(shape) + bytes(10000)
        path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
        refuse(path, "claims|shorter")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_a_gzip_bomb_is_not_inflated_beyond_its_header(tmp_path) -> None:
    squeeze = zlib.compressobj(9, wbits=31)
    parts = [squeeze.compress(nifti_header((4, 4, 4)))]
    parts += [squeeze.compress(bytes(1 << 20)) for _ in range(300)]
    path = tmp_path / "bomb.nii.gz"
    path.write_bytes(b"".join(parts) + squeeze.flush())
    refuse(path, "all values are 0")
    squeeze = zlib.compressobj(9, wbits=31)
    parts = [squeeze.compress(nifti_header((4, 4, 4), vox_offset=1e9))]
    parts += [squeeze.compress(bytes(1 << 20)), squeeze.flush()]
    path.write_bytes(b"".join(parts))
    refuse(path, "impossible position")


NRRD = """NRRD0005
type: short
dimension: 3
space: left-posterior-superior
sizes: 10000 10000 10000
space directions: (1,0,0) (0,1,0) (0,0,1)
endian: little
encoding: ENC
space origin: (0,0,0)

"""
META = """ObjectType = Image
NDims = 3
BinaryData = True
CompressedData = PACKED
TransformMatrix = 1 0 0 0 1 0 0 0 1
Offset = 0 0 0
ElementSpacing = 1 1 1
DimSize = 10000 10000 10000
ElementType = MET_SHORT
ElementDataFile = LOCAL
"""


@pytest.mark.parametrize(("text", "suffix"), [(NRRD, ".nrrd"), (META, ".mha")])
@pytest.mark.parametrize(
    "size", ["10000 10000 10000", "900 900 900", "-4 4 4", "0 4 4", "4 4", "4 4 4 4", "x y z", "nan 4 4"]
)
@pytest.mark.parametrize("packed", [False, True])
def test_itk_headers_that_lie(tmp_path, text, suffix, size, packed) -> None:
    text = text.replace("10000 10000 10000", size)
    text = text.replace("ENC", "gzip" if packed else "raw").replace("PACKED", str(packed))
    path = tmp_path / f"scan{suffix}"
    path.write_bytes(text.encode() + (zlib.compress(bytes(3000)) if packed else bytes(3000)))
    refuse(path, "claims|3-d|understood|space directions|disagree")


def test_itk_headers_without_geometry(tmp_path, writers) -> None:
    sitk.WriteImage(writers.lps_image(writers.ct_array()), str(tmp_path / "a.nrrd"))
    sitk.WriteImage(writers.lps_image(writers.ct_array()), str(tmp_path / "a.mha"))
    nrrd, mha = (tmp_path / "a.nrrd").read_bytes(), (tmp_path / "a.mha").read_bytes()
    cases = [
        (nrrd.replace(b"space: left-posterior-superior\n", b""), "b.nrrd", "patient space"),
        (nrrd.replace(b"space directions", b"#pace directions"), "c.nrrd", "space directions"),
        (nrrd.replace(b"encoding: raw", b"data file: gone.raw\nencoding: raw"), "d.nrrd", "missing"),
        (nrrd.replace(b"encoding: raw", b"data file: /dev/zero\nencoding: raw"), "e.nrrd", "missing"),
        (nrrd.replace(b"type: short", b"type: block"), "f.nrrd", "voxel type"),
        (nrrd[:-50], "g.nrrd", "shorter"),
        (mha.replace(b"ElementSpacing", b"ElementSpacinx"), "b.mha", "ElementSpacing"),
        (mha.replace(b"ElementDataFile = LOCAL", b"ElementDataFile = no.raw"), "c.mha", "missing"),
        (mha.replace(b"ElementDataFile = LOCAL", b"ElementDataFile = LIST"), "d.mha", "several files"),
        (mha.replace(b"MET_SHORT", b"MET_SHIRT"), "e.mha", "voxel type"),
        (mha[:-50], "f.mha", "shorter"),
        (mha.replace(b"Matrix = 1 0 0 0 1 0 0", b"Matrix = 1 0 0 0 1 0 1e308"), "g.mha", "absurd"),
        (mha.replace(b"Matrix = 1 0", b"Matrix = nan 0"), "h.mha", "absurd"),
        (nrrd.replace(b"space directions: (0.8", b"space directions: (1e308"), "h.nrrd", "absurd"),
    ]
    for content, name, words in cases:
        (tmp_path / name).write_bytes(content)
        refuse(tmp_path / name, words)
    (tmp_path / "ok.mha").write_bytes(mha.replace(b"TransformMatrix = 1 0 0 0 1 0 0 0 1\n", b""))
    assert "default" in read_volume(tmp_path / "ok.mha").notes[0]


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_2d_4d_and_colours(tmp_path, writers, suffix) -> None:
    hu = writers.ct_array()
    path = tmp_path / f"scan{suffix}"
    sitk.WriteImage(sitk.GetImageFromArray(hu[0]), str(path))
    refuse(path, "2-d|patient space")
    sitk.WriteImage(sitk.GetImageFromArray(np.stack([hu, hu]), isVector=False), str(path))
    refuse(path, "4-d|3-d|patient space|space directions")
    sitk.WriteImage(sitk.GetImageFromArray(np.stack([hu, hu, hu], -1), isVector=True), str(path))
    refuse(path, "4-d|5-d|3-d|several values|colours")


def test_one_volume_in_4d_is_accepted(tmp_path, writers) -> None:
    hu = writers.ct_array()
    image = writers.nifti_of(hu, "RAS")
    four = nib.Nifti1Image(np.asarray(image.dataobj)[..., None], image.affine)
    nib.save(four, tmp_path / "scan.nii")
    volume = read_volume(tmp_path / "scan.nii")
    assert np.array_equal(volume.hu, hu) and "4-d with one volume" in volume.notes[0]
    assert volume.restore(volume.hu).shape == image.shape


@pytest.mark.parametrize(("bad", "count"), [(np.nan, 3), (np.inf, 2), (-np.inf, 1)])
@pytest.mark.parametrize("suffix", [".nii", ".mha", ".npy"])
def test_nan_and_infinity_are_counted(tmp_path, writers, bad, count, suffix) -> None:
    hu = writers.ct_array().astype(np.float32)
    hu.reshape(-1)[[5, 80, 700][:count]] = bad
    path = tmp_path / f"scan{suffix}"
    if suffix == ".npy":
        np.save(path, hu)
    else:
        sitk.WriteImage(writers.lps_image(hu), str(path))
    options = {"spacing": (1, 1, 1)} if suffix == ".npy" else {}
    refuse(path, f"{count} of {hu.size} voxels are NaN", **options)
    refuse(path, f"{count} of {hu.size} voxels are NaN", assume_hu=True, **options)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda hu: np.clip(hu, 0, 255), "8-bit"),
        (lambda hu: np.clip(hu, 0, 255).astype(np.uint8), "8-bit"),
        (lambda hu: (hu > 0).astype(np.int16), "mask"),
        (lambda hu: np.linspace(0, 1, hu.size).reshape(hu.shape), "mask or a rescaled"),
        (lambda hu: np.full_like(hu, -1000), "all values are -1000"),
        (lambda hu: (hu + 1024).astype(np.uint16), "raw scanner numbers"),
        (lambda hu: hu + 1024, "offset of 1024"),
        (lambda hu: (hu - hu.mean()) / hu.std(), "normalised"),
        (lambda hu: hu * 1000.0, "beyond the HU scale"),
    ],
)
def test_values_that_cannot_be_hu(tmp_path, writers, make, words) -> None:
    array = make(writers.ct_array())
    nib.save(writers.nifti_of(array, "RAS"), tmp_path / "scan.nii")
    refuse(tmp_path / "scan.nii", words)
    with pytest.raises(ScanError, match="--assume-hu"):
        read_volume(tmp_path / "scan.nii")
    volume = read_volume(tmp_path / "scan.nii", assume_hu=True)
    assert np.allclose(volume.hu, array, rtol=1e-6) and "taken as HU" in volume.notes[0]


def test_scaling_is_applied_once(saved, writers) -> None:
    hu = writers.ct_array()
    stored = (hu.astype(int) + 1024).astype(np.uint16)
    assert np.array_equal(read_volume(saved(stored, scl_slope=1, scl_inter=-1024)).hu, hu)
    halves = read_volume(saved(stored, scl_slope=0.5, scl_inter=-1024))
    assert halves.hu.dtype == np.float32 and np.array_equal(halves.hu, stored * np.float32(0.5) - 1024)
    assert np.array_equal(read_volume(saved(hu, scl_slope=0, scl_inter=77)).hu, hu)  # slope 0 means none
    assert np.array_equal(read_volume(saved(hu, scl_slope=np.nan, scl_inter=5)).hu, hu)
    refuse(saved(hu, scl_slope=1, scl_inter=np.nan), "rescale")
    path = saved(stored, scl_slope=2, scl_inter=-1024)
    assert np.array_equal(read_volume(path).hu, nib.load(path).get_fdata().T[:, ::-1, ::-1])


def test_units(saved, writers) -> None:
    for code, factor, words in ((0, 1, "no length unit"), (2, 1, None), (1, 1e-3, "metres"), (3, 1e3, "micrometres")):
        image = writers.nifti_of(writers.ct_array(), "RAS")
        scaled = image.affine * factor
        scaled[3, 3] = 1
        rows = {"srow_x": scaled[0], "srow_y": scaled[1], "srow_z": scaled[2]}
        volume = read_volume(saved(xyzt_units=code, qform_code=0, **rows))
        assert np.allclose(volume.spacing, writers.SPACING, rtol=1e-5)
        assert (words is None and not volume.notes) or words in volume.notes[0]


def test_sform_and_qform(saved, writers, tmp_path) -> None:
    hu = writers.ct_array()
    path = saved()
    flipped = nib.load(path).affine.copy()
    flipped[0] *= -1

    def variant(sform, sform_code, qform, qform_code):
        image = nib.Nifti1Image(np.asarray(nib.load(path).dataobj), nib.load(path).affine)
        image.header.set_xyzt_units("mm")
        data = image.to_bytes()  # before the header is changed: it would be brought into line with the affine
        image.header.set_qform(qform, qform_code)
        image.header.set_sform(sform, sform_code)
        image.header["sform_code"], image.header["qform_code"] = sform_code, qform_code
        (tmp_path / "v.nii").write_bytes(image.header.binaryblock + data[348:])
        return tmp_path / "v.nii"

    good = nib.load(path).affine
    refuse(variant(good, 1, flipped, 1), "sform says RAS and its qform says LAS")
    assert np.array_equal(read_volume(variant(good, 1, flipped, 0)).hu, hu)
    assert np.array_equal(read_volume(variant(flipped, 0, good, 1)).hu, hu)
    assert np.array_equal(read_volume(variant(flipped, 1, good, 0)).hu, hu[:, :, ::-1])
    refuse(variant(good, 0, good, 0), "left and right are unknown")
    moved = good.copy()
    moved[0, 3] += 5
    volume = read_volume(variant(good, 2, moved, 1))
    assert "the sform was used" in volume.notes[0]
    assert np.allclose(volume.grid.affine, nib.load(path).affine)
    larger = good @ np.diag([2, 2, 2, 1])
    refuse(variant(good, 1, larger, 1), "mm voxels")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (np.zeros((3, 4)), "spacing"),
        (np.diag([1, 1, 0, 1])[:3], "spacing"),
        (np.diag([500, 1, 1, 1])[:3], "no CT has"),
        (np.diag([1e-4, 1, 1, 1])[:3], "no CT has"),
        (np.full((3, 4), np.nan), "NaN"),
        (np.array([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]]), "singular|spacing"),
        (np.array([[1, 1, 0, 0], [0, 0.01, 0, 0], [0, 0, 1, 0]]), "singular"),
        (np.array([[1, 0, 0, 1e30], [0, 1, 0, 0], [0, 0, 1, 0]]), "absurdly"),
        (np.array([[1, 1.5, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]), "45 degrees"),
        (np.array([[1, 0.3, 0.3, 0], [0, 1, 0.3, 0], [0, 0, 1, 0]]), "all three"),
    ],
)
def test_impossible_geometry(saved, rows, words) -> None:
    rows = np.asarray(rows, float)
    refuse(saved(srow_x=rows[0], srow_y=rows[1], srow_z=rows[2], qform_code=0), words)


def test_a_sheared_nifti_is_straightened(tmp_path, writers) -> None:
    affine = np.diag([-0.8, -0.7, 2.5, 1.0])
    affine[1, 2] = -0.7  # y moves one voxel each slice
    hu = writers.ct_array((6, 15, 10))
    nib.save(nib.Nifti1Image(hu.T, affine), tmp_path / "scan.nii")
    volume = read_volume(tmp_path / "scan.nii")
    assert volume.hu.shape == (6, 20, 10) and volume.spacing == (2.5, 0.7, 0.8)
    for z in range(6):
        assert np.array_equal(volume.hu[z, z : z + 15], hu[z])
        assert (volume.hu[z, :z] == -1024).all() and (volume.hu[z, z + 15 :] == -1024).all()
    assert "sheared" in " ".join(volume.notes)
    for array in (volume.hu, volume.hu.astype(np.float32)):
        back = volume.restore(array)
        assert np.array_equal(np.asarray(back.dataobj), hu.T) and np.allclose(back.affine, affine)


@pytest.mark.parametrize(
    "fields",
    [
        {"dim": [3, 0, 4, 4, 1, 1, 1, 1]},
        {"dim": [3, -5, 4, 4, 1, 1, 1, 1]},
        {"dim": [77, 4, 4, 4, 1, 1, 1, 1]},
        {"datatype": 128},
        {"datatype": 32},
        {"datatype": 9999},
        {"vox_offset": np.nan},
        {"magic": b"xyz"},
    ],
)
def test_impossible_nifti_headers(saved, fields) -> None:
    refuse(saved(**fields), "impossible|holds|no magic")


def test_npy_refusals(tmp_path, writers) -> None:
    path = tmp_path / "scan.npy"
    np.save(path, np.array([[[{"a": 1}]]], dtype=object), allow_pickle=True)
    refuse(path, "never unpickled", spacing=(1, 1, 1))
    for array in (np.zeros((3, 3)), np.zeros((2, 2, 2, 2)), np.zeros((0, 3, 3))):
        np.save(path, array)
        refuse(path, "3-d", spacing=(1, 1, 1))
    for array in (np.zeros((2, 2, 2), complex), np.zeros((2, 2, 2), bool), np.zeros((2, 2, 2), "U3")):
        np.save(path, array)
        refuse(path, "plain numbers", spacing=(1, 1, 1))
    np.save(path, writers.ct_array())
    for spacing in ((0, 1, 1), (-1, 1, 1), (1, 1), (np.nan, 1, 1), (1e5, 1, 1)):
        refuse(path, "spacing", spacing=spacing)
    path.write_bytes(path.read_bytes()[:-10])
    refuse(path, "shorter", spacing=(1, 1, 1))
    for shape in ("(10000, 10000, 10000)", "(-3, -3, 3)", "(900, 900, 900)"):
        head = b"{'descr': '<i2', 'fortran_order': False, 'shape': %s, }" % shape.encode()
        path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head)
        refuse(path, "claims|3-d", spacing=(1, 1, 1))
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", 40) + b"{'descr': __import__('os').system('x')}  ")
    refuse(path, "damaged", spacing=(1, 1, 1))


def test_importing_the_package_loads_no_heavy_library() -> None:
    import subprocess

    code = (
        "import sys, voxelfm_hf.volumes as v; "
        "sys.exit(any(m in sys.modules for m in ('torch', 'SimpleITK', 'nibabel', 'pydicom', 'scipy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=os.getcwd()).returncode == 0
    assert issubclass(ScanError, VoxelFMError)


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (-1000, 300, None),
        (-1, 28, "looks like a normalised image"),
        (-1, 29, "no air and no fat"),
        (0, 1, "is a mask"),
        (0, 255, "8-bit picture"),
        (0, 256, "nothing below 0"),
        (-40000, 300, None),
        (-40001, 300, "far beyond the HU scale"),
        (-1000, 70000, None),
        (-1000, 70001, "far beyond the HU scale"),
        (-150, 300, None),
        (-149, 300, "no air and no fat"),
        (-1000, -500, None),
        (-1000, -501, "nothing but air and lung"),
    ],
)
def test_where_values_stop_being_hounsfield_units(tmp_path, low, high, said) -> None:
    array = np.full((4, 5, 6), low, np.int32)
    array[1:] = high
    np.save(tmp_path / "a.npy", array)
    try:
        notes = read_volume(tmp_path / "a.npy", spacing=(1, 1, 1)).notes
    except ScanError as error:
        assert said and said in str(error)
    else:
        assert [note for note in notes if "values run" in note] == [] if said is None else said in " ".join(notes)
