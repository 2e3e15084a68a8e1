"""Lists of scans and regions as people write them: every flaw is one sentence with file and line."""

import pytest

from voxelfm_hf.scan_list import Scan, list_scans, read_regions
from voxelfm_hf.volumes.errors import LabelError

REGIONS = "scan,x,y,z,edge_mm"


@pytest.mark.parametrize(
    "text",
    [
        "path,id\na.nii.gz,one\nb.nii.gz,\n",
        "\ufeffpath,id\r\na.nii.gz,one\r\nb.nii.gz\r\n",  # of a spreadsheet, with a short row
        "path;id\na.nii.gz;one\n\nb.nii.gz;\n",
        "id,path,,\none,a.nii.gz,,\n,b.nii.gz,,,\n",  # columns without names
    ],
)
def test_lists_of_many_makes_are_read_alike(tmp_path, text):
    path = tmp_path / "list.csv"
    path.write_text(text, encoding="utf-8", newline="")
    assert list_scans([path]) == [Scan("one", tmp_path / "a.nii.gz", True), Scan("b.nii.gz", tmp_path / "b.nii.gz")]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("id,path\na,a.nii\nb\n", "list.csv line 3: path is empty"),
        ("id,path\na, \n", "list.csv line 2: path is empty"),
        ("path,path\na,b\n", "list.csv line 1: column path occurs twice"),
        ("path\na.nii,b.nii\n", "list.csv line 2: there are more cells"),
        ("file\na.nii\n", "list.csv has no column path"),
        ("path\n", "list.csv has no rows"),
        ("", "list.csv has no column path"),
        ('path\n"a.nii\n', "list.csv cannot be read as CSV"),
        ("path\n\udce9.nii\n", "list.csv is not UTF-8"),
    ],
)
def test_flaws_of_a_list(tmp_path, text, sentence):
    path = tmp_path / "list.csv"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(LabelError, match=sentence) as caught:
        list_scans([path])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (f"{REGIONS}\na.nii,1,2\n", "line 2: z is empty"),
        (f"{REGIONS}\n,1,2,3,9\n", "line 2: scan is empty"),
        (f"{REGIONS},x\na.nii,1,2,3,9,1\n", "line 1: column x occurs twice"),
        (f"{REGIONS}\na.nii,1,2,3,9,8\n", "line 2: there are more cells"),
    ],
)
def test_flaws_of_regions(tmp_path, text, sentence):
    path = tmp_path / "regions.csv"
    path.write_text(text)
    with pytest.raises(LabelError, match=f"regions.csv {sentence}"):
        read_regions(path, [])


def test_a_list_that_is_not_there(tmp_path):
    with pytest.raises(LabelError, match="list.csv is not a file"):
        list_scans([tmp_path / "list.csv"])
