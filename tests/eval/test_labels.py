import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from voxelfm_hf.csv_rows import csv_rows
from voxelfm_hf.eval.labels import (
    binary_target,
    class_target,
    match_to_store,
    number_target,
    point_target,
    read_labels,
    survival_target,
)
from voxelfm_hf.eval.splits import patient_groups, split_rows, training_subset
from voxelfm_hf.volumes.errors import LabelError


@pytest.fixture
def table(tmp_path):
    """Writes a CSV and reads it."""

    def write(text, **settings):
        path = tmp_path / "labels.csv"
        path.write_text(text)
        return read_labels(path, **settings)

    return write


def test_csv_parquet_and_dataset_are_read_alike(tmp_path, table):
    columns = {"id": ["a", "b", "c"], "age": [60.5, None, 40.0], "nodule": [1, 0, None]}
    pq.write_table(pa.table(columns), tmp_path / "labels.parquet")
    tables = [
        table("id,age,nodule\na,60.5,1\nb,,0\nc,40,NA\n"),
        read_labels(tmp_path / "labels.parquet"),
        read_labels(datasets.Dataset.from_dict(columns)),
    ]
    for found in tables:
        assert found.ids == ["a", "b", "c"]
        np.testing.assert_array_equal(number_target(found, "age"), [60.5, np.nan, 40])
        np.testing.assert_array_equal(binary_target(found, "nodule"), [1, 0, np.nan])


def test_commas_semicolons_and_tabs_are_told_apart_as_in_lists(tmp_path):
    for name, delimiter in (("comma.csv", ","), ("semicolon.csv", ";"), ("tab.tsv", "\t")):
        lines = [("id", "patient_id", "age", "note"), ("001", "007", "60.5", '"a;b,c"'), ("1", "7", "", "d")]
        (tmp_path / name).write_text("\n".join(delimiter.join(line) for line in lines), encoding="utf-8-sig")
        labels = read_labels(tmp_path / name)
        assert labels.ids == ["001", "1"] == [row["id"] for _, row in csv_rows(tmp_path / name)]
        assert labels.columns["patient_id"] == ["007", "7"] and labels.columns["note"] == ["a;b,c", "d"]
        np.testing.assert_array_equal(labels.columns["age"], [60.5, None])


def test_ids_may_be_any_column_and_numbers(table):
    assert table("scan_number,x\n7,1\n8,2\n", id_column="scan_number").ids == ["7", "8"]
    assert table("file,id,x\nf1,i1,1\n").ids == ["i1"]


def test_ids_patients_and_studies_are_as_they_are_written(table):
    labels = table("id,patient_id,study_id,age\n001,007,1.10,60\n1,7,1.1,61\n01,7,1.2,62\n")
    assert labels.ids == ["001", "1", "01"]
    groups = patient_groups(labels)
    assert groups[0] != groups[1] == groups[2]
    assert labels.column("age") == [60, 61, 62]
    assert table("Number,x\n1e2,1\n100,2\n", id_column="Number").ids == ["1e2", "100"]


def test_a_patient_column_of_any_name_is_as_it_is_written(table):
    long = "12345678901234567890"
    labels = table(f"id,who\na,007\nb,7\nc,{long}1\nd,{long}2\ne,007\n", patient_column="who")
    groups = patient_groups(labels, patient_column="who")
    assert groups[0] == groups[4] and len(set(groups)) == 4


@pytest.mark.parametrize("patient", ["PatientID", "patient id", "Subject-ID", "pid", "case_id", "PATIENT"])
def test_usual_names_are_found_however_they_are_written(table, patient):
    labels = table(f"ID,{patient},StudyID\na,007,s\nb,007,t\nc,8,u\nd,9,u\n")
    assert labels.ids == ["a", "b", "c", "d"]
    groups = patient_groups(labels)
    assert groups[0] == groups[1] != groups[2] == groups[3]
    # The usual way of writing goes first.
    assert table("ID,file\na,b\n").ids == ["b"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is empty"),
        ("id,x\n", "no rows"),
        ("name,x\na,1\n", "no column id or file .* its columns are name, x"),
        ("id,x\na,1\n,2\n", "1 rows without a value in id"),
        ("id,x\na,1\nb,1\na,2\n", r"1 ids more than once \(a\)"),
        ("id,x\na,1,9\nb\n", "a row has 3 cells, the header 2: put texts with commas"),
        ("id,x,x\na,1,2\n", "labels.csv has more than one column x"),
    ],
)
def test_bad_tables(table, text, sentence):
    with pytest.raises(LabelError, match=sentence):
        table(text)


def test_unreadable_files(tmp_path):
    with pytest.raises(LabelError, match="is not a file"):
        read_labels(tmp_path / "missing.csv")
    (tmp_path / "wrong.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(LabelError, match="cannot be read as a table"):
        read_labels(tmp_path / "wrong.parquet")
    for text, sentence in (("id,x\n\xe9,1\n", "latin.csv is not UTF-8"), ("id,x\na,\xe9\n", "column x is not UTF-8")):
        (tmp_path / "latin.csv").write_bytes(text.encode("latin-1"))
        with pytest.raises(LabelError, match=sentence):
            read_labels(tmp_path / "latin.csv")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_is_not_utf_8(tmp_path, encoding):
    text = "\ufeffid,patient_id,age\na,7,61\nb,8,52\n"
    (tmp_path / "wide.csv").write_bytes(text.encode(encoding))
    with pytest.raises(LabelError, match="wide.csv is not UTF-8 text: save the table as UTF-8"):
        read_labels(tmp_path / "wide.csv")


def test_matching_by_id_or_by_the_end_of_a_path(table):
    labels = table("file,x\nimages/a.nii.gz,1\nb.nii.gz,0\nc,1\n")
    store = ["b.nii.gz", "c", "a.nii.gz", "other/x.nii.gz"]
    assert match_to_store(labels, store).tolist() == [2, 0, 1]
    assert match_to_store(labels, ["deep/b.nii.gz", "c", "images/a.nii.gz"]).tolist() == [2, 0, 1]


def test_matching_without_the_ending_of_a_file(table):
    labels = table("id,x\nb,1\nd/c.NII.GZ,0\na.1,0\n")
    assert match_to_store(labels, ["images/a.1.nii.gz", "b.nrrd", "d/c"]).tolist() == [1, 2, 0]
    # Two files of one name, and files of one name and two formats, are none.
    unclear = ["b.nii", "b.nrrd", "d/c.nii", "a.1"]
    assert match_to_store(labels, unclear, allow_missing=True).tolist() == [-1, -1, 3]
    assert match_to_store(table("id,x\nb,1\n"), ["b.nii", "images/b"]).tolist() == [1]


def test_labels_without_features(table):
    labels = table("id,x\na,1\nb,0\nc,1\n")
    with pytest.raises(LabelError, match=r"2 of 3 ids of labels.csv have no features \(b, c\): embed"):
        match_to_store(labels, ["a", "z"])
    assert match_to_store(labels, ["a", "z"], allow_missing=True).tolist() == [0, -1, -1]
    with pytest.raises(LabelError, match=r"none of the 3 ids .* \(a, b, c\) is in the feature store \(q\)"):
        match_to_store(labels, ["q"], allow_missing=True)
    # Two scans with one file name: guessing would be a wrong label.
    assert match_to_store(table("id,x\nc,1\nn.nii,0\n"), ["1/n.nii", "2/n.nii", "c"], allow_missing=True)[1] == -1
    with pytest.raises(LabelError, match="labels 1 scans twice"):
        match_to_store(table("id,x\nd/a,1\na,0\n"), ["a"])


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ("1 1 1", "holds only 1: a classifier needs both"),
        ("1 0 2", "holds 2, which is neither 0 nor 1"),
        ("1 0 bad", "--exclusive"),
    ],
)
def test_bad_binary_labels(table, values, sentence):
    labels = table("id,y\n" + "".join(f"{i},{v}\n" for i, v in enumerate(values.split())))
    with pytest.raises(LabelError, match=sentence):
        binary_target(labels, "y")


def test_yes_and_no_words_and_classes(table):
    labels = table("id,y,grade\na,yes,low\nb,No,high\nc,,low\nd,TRUE,\n")
    np.testing.assert_array_equal(binary_target(labels, "y"), [1, 0, np.nan, 1])
    numbers, names = class_target(labels, "grade", classes=["low", "mid", "high"])
    np.testing.assert_array_equal(numbers, [0, 2, 0, np.nan])
    assert class_target(labels, "grade")[1] == ["high", "low"] and names == ["low", "mid", "high"]
    with pytest.raises(LabelError, match="holds high, not among the classes low, mid"):
        class_target(labels, "grade", classes=["low", "mid"])
    with pytest.raises(LabelError, match="has no column absent: it has id, y, grade"):
        binary_target(labels, "absent")
    with pytest.raises(LabelError, match="1 class"):
        class_target(table("id,y\na,x\nb,x\n"), "y")


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ("1 two 3", "holds two, which is no number"),
        ("1,5 2 3", "holds 1,5, which is no number: write 1.5, with a point"),
        ("1 inf 2", "infinite in 1 rows"),
        ("4 4 4", "is 4 in every row"),
    ],
)
def test_bad_numbers(table, values, sentence):
    with pytest.raises(LabelError, match=sentence):
        number_target(table("id;y\n" + "".join(f"{i};{v}\n" for i, v in enumerate(values.split()))), "y")


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ("a,-1,1\nb,2,0\n", "column time is negative in 1 rows"),
        ("a,1,2\nb,2,0\n", "column event holds 2: use 1 for an event"),
        ("a,1,0\nb,2,0\n", "no row has an event"),
    ],
)
def test_bad_survival(table, rows, sentence):
    with pytest.raises(LabelError, match=sentence):
        survival_target(table("id,time,event\n" + rows))


def test_survival_and_points_with_gaps(table):
    labels = table("id,time,event,x,y,z\na,1,1,1,2,3\nb,,1,4,,6\nc,3,0,7,8,9\n")
    np.testing.assert_array_equal(survival_target(labels), [[1, 1], [np.nan, np.nan], [3, 0]])
    np.testing.assert_array_equal(point_target(labels, ["x", "y", "z"])[:, 0], [[1, 2, 3], [np.nan] * 3, [7, 8, 9]])
    with pytest.raises(LabelError, match="three columns"):
        point_target(labels, ["x", "y"])


def test_studies_and_patients_make_one_group(table):
    labels = table("id,patient_id,study_id\na,1,s1\nb,2,s1\nc,2,s2\nd,3,s3\ne,4,s4\n")
    groups = patient_groups(labels)
    assert groups[0] == groups[1] == groups[2] and len({groups[0], groups[3], groups[4]}) == 3
    assert len(set(patient_groups(table("id,x\na,1\nb,1\n")))) == 2
    with pytest.raises(LabelError, match=r"2 rows have no patient_id \(b, c\)"):
        patient_groups(table('id,patient_id\na,1\nb,\nc," "\nd,2\n'))


def test_own_splits_are_checked(table):
    text = "id,patient,split\na,1,train\nb,1,{}\nc,2,Validation\nd,3,test\n"
    labels = table(text.format("train"))
    assert split_rows(labels, patient_groups(labels)).tolist() == ["train", "train", "val", "test"]
    for split, sentence in (
        ("test", r"1 patients or studies are in two splits \(for example a, b\)"),
        ("holdout", "holds"),
    ):
        labels = table(text.format(split))
        with pytest.raises(LabelError, match=sentence):
            split_rows(labels, patient_groups(labels))
    labels = table('id,split\na,train\nb,\nc," "\nd,test\n')
    with pytest.raises(LabelError, match=r"labels.csv: 2 rows have no split \(b, c\).*fill in train, val or test, or"):
        split_rows(labels, patient_groups(labels))
    labels = table("id,split\na,train\nb,val\n")
    with pytest.raises(LabelError, match="no row is in the test split"):
        split_rows(labels, patient_groups(labels))


def test_drawn_splits_keep_patients_together(table):
    labels = table("id,patient\n" + "".join(f"{i},{i // 4}\n" for i in range(120)))
    groups = patient_groups(labels)
    splits = split_rows(labels, groups, seed=1)
    assert all(len(set(splits[groups == g])) == 1 for g in range(30))
    assert [int((splits == s).sum()) for s in ("train", "val", "test")] == [84, 12, 24]
    assert (splits == split_rows(labels, groups, seed=1)).all() and (splits != split_rows(labels, groups, seed=2)).any()
    few = table("id,patient\na,1\nb,1\nc,2\n")
    with pytest.raises(LabelError, match="2 patients are too few"):
        split_rows(few, patient_groups(few))


def test_training_subsets_grow_by_patient():
    groups = np.repeat(np.arange(20), 3)
    rows = np.arange(45)
    smaller = training_subset(rows, groups, fraction=0.2, seed=0)
    larger = training_subset(rows, groups, fraction=0.6, seed=0)
    assert (
        len(smaller) == 9
        and set(smaller) < set(larger)
        and len(training_subset(rows, groups, fraction=1, seed=0)) == 45
    )
    assert all((groups[smaller] == g).sum() in (0, 3) for g in range(15))
    assert len(training_subset(rows, groups, fraction=0.001, seed=0)) == 3
