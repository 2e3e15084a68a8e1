"""Reports: sections, sentences, what a mention asserts, tables in several layouts, reduction to abnormal findings."""

import re

import pyarrow
import pyarrow.parquet
import pytest

from voxelfm_hf.data.reports import Report, parse_report, read_reports
from voxelfm_hf.data.reports.negation import assertion, clauses
from voxelfm_hf.data.reports.phrases import phrase_pattern
from voxelfm_hf.data.reports.reduction import (
    NO_ABNORMALITY,
    ORGANS,
    format_reduced,
    reduce_report,
    report_target,
)
from voxelfm_hf.data.reports.text import split_sections, split_sentences
from voxelfm_hf.volumes.errors import LabelError


def test_sections_by_heading_in_any_case_and_on_their_own_line():
    text = "Clinical information: cough. FINDINGS: Lungs: clear.\nImpression\n1. Normal chest."
    assert [(section.title, section.text) for section in split_sections(text)] == [
        ("indication", "cough."),
        ("findings", "Lungs: clear."),
        ("impression", "1. Normal chest."),
    ]


def test_words_of_headings_inside_sentences_are_no_headings():
    text = "In this examination, the findings are stable. The impression of the nodule is benign."
    assert [(section.title, section.text) for section in split_sections(text)] == [("", text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A 5.5 mm nodule. CT of 28.03.2016 was used.", ["A 5.5 mm nodule", "CT of 28.03.2016 was used"]),
        ("No effusion.Normal heart.", ["No effusion", "Normal heart"]),
        ("1. Emphysema. 2. Nodule of 3 mm.", ["Emphysema", "Nodule of 3 mm"]),
        ('" Emphysema " Small effusion', ["Emphysema", "Small effusion"]),
        ("• Emphysema\n• Small effusion\n", ["Emphysema", "Small effusion"]),
        (
            "Nodule (cyst? Metastasis?) in the lung. Normal heart",
            ["Nodule (cyst? Metastasis?) in the lung", "Normal heart"],
        ),
        ("A nodule in the\nright lung is\nseen. Stable", ["A nodule in the right lung is seen", "Stable"]),
        (
            "Emphysema in both lungs Minimal effusion on the left",
            ["Emphysema in both lungs", "Minimal effusion on the left"],
        ),
        ("Approx. 3 mm nodule.", ["Approx. 3 mm nodule"]),
        (" . \n - \n", []),
    ],
)
def test_sentences(text, expected):
    assert split_sentences(text) == expected


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("There is an effusion", "present"),
        ("There is no effusion", "absent"),
        ("An effusion was not detected", "absent"),
        ("An effusion was not detected on the previous scan", "present"),
        ("The effusion has resolved", "absent"),
        ("The effusion has not resolved", "present"),
        ("No change in the effusion", "present"),
        ("No narrowing due to the effusion", "present"),
        ("No thickening or nodule, but an effusion is seen", "present"),
        ("A nodule is seen and no effusion is present", "absent"),
        ("Possible effusion", "uncertain"),
        ("Effusion?", "uncertain"),
        ("An effusion cannot be excluded", "uncertain"),
        ("Opacity (pneumonia? effusion?)", "hypothetical"),
        ("Correlate clinically and evaluate for effusion", "hypothetical"),
        ("History of effusion", "past"),
        ("In the previous examination, there was an effusion", "past"),
        ("In the previous examination, the effusion was larger and is stable now", "present"),
        ("No history of effusion", "absent"),
        ("No nodule although an effusion is seen", "present"),
        ("The lungs are not hyperinflated, nor is there an effusion", "absent"),
        ("Pleural spaces free from effusion", "absent"),
        ("R/o effusion", "hypothetical"),
        ("Screening for sequelae with a history of effusion", "past"),
        ("In the previous examination, an effusion was seen, and it persists", "present"),
    ],
)
def test_what_a_mention_asserts(sentence, expected):
    mention = re.search("effusion", sentence, re.IGNORECASE)
    assert assertion(sentence, *mention.span()) == expected


def test_clauses_make_one_statement_each():
    sentence = "The heart is normal, the aorta is wide (41 mm) but no plaque is seen"
    assert [sentence[start:end].strip(" ,") for start, end in clauses(sentence)] == [
        "The heart is normal",
        "the aorta is wide (41 mm)",
        "but no plaque is seen",
        "(41 mm)",
    ]


def test_phrase_notation():
    pattern = phrase_pattern("ground glass, lobe|lobes, *atelect*, septal ~ thick*")
    found = [
        match[0]
        for match in pattern.finditer("Ground-glass, lobes, lobed, microatelectases, septal and wall thickening")
    ]
    assert found == ["Ground-glass", "lobes", "microatelectases", "septal and wall thickening"]
    assert not pattern.search("septal a b c d e thickening")


def test_free_text_report_is_parsed():
    report = parse_report("EXAM: CT. TECHNIQUE: with contrast. FINDINGS: Nodule.\nIMPRESSION: 1. Nodule.", id="a")
    assert report == Report(id="a", findings="Nodule.", impression="1. Nodule.")
    assert parse_report("Nodule. Normal heart.").findings == "Nodule. Normal heart."
    assert parse_report("").is_empty
    assert parse_report("FINDINGS: Not given.").is_empty


def test_the_layout_of_ct_rate(tmp_path):
    path = tmp_path / "reports.csv"
    path.write_text(
        "VolumeName,ClinicalInformation_EN,Technique_EN,Findings_EN,Impressions_EN\n"
        'train_1_a_1.nii.gz,cough,plain CT,"Nodule, small.",Nodule.\ntrain_2_a_1.nii.gz,,,Not given.,Normal.\n'
    )
    assert list(read_reports(path)) == [
        Report("train_1_a_1.nii.gz", "Nodule, small.", "Nodule."),
        Report("train_2_a_1.nii.gz", "", "Normal."),
    ]


def test_the_layout_of_merlin_also_as_parquet_and_tsv(tmp_path):
    text = "FINDINGS: LIVER: Cyst. IMPRESSION: Cyst."
    pyarrow.parquet.write_table(
        pyarrow.table({"study id": ["AC1", "AC2"], "Findings": [text, None]}), tmp_path / "reports.parquet"
    )
    (tmp_path / "reports.tsv").write_text(f"study id\tFindings\nAC1\t{text}\nAC2\t\n")
    for name in ("reports.parquet", "reports.tsv"):
        first, second = read_reports(tmp_path / name)
        assert first == Report("AC1", "LIVER: Cyst.", "Cyst.")
        assert second.id == "AC2" and second.is_empty


def test_columns_can_be_named(tmp_path):
    path = tmp_path / "r.csv"
    path.write_text("key,one,two\nx,Nodule.,Cyst.\n")
    assert list(read_reports(path, columns=["one", "two"], id_column="key")) == [Report("x", "Nodule.\nCyst.", "")]
    with pytest.raises(LabelError, match="no column 'three'"):
        read_reports(path, columns="three")
    with pytest.raises(LabelError, match="no column 'name'"):
        read_reports(path, columns="one", id_column="name")


def test_tables_that_cannot_be_read(tmp_path):
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no more")
    (tmp_path / "sheet.xlsx").write_bytes(b"PK")
    for name, message in (
        ("broken.parquet", "as Parquet"),
        ("sheet.xlsx", "save it as CSV"),
        ("none.csv", "not a file"),
    ):
        with pytest.raises(LabelError, match=message):
            read_reports(tmp_path / name)


MERLIN = """FINDINGS:
LOWER THORAX: Small bilateral effusions with adjacent atelectasis. No pericardial effusion.
LIVER: Diffuse steatosis. No focal lesion. The left lobe is enlarged.
GALLBLADDER: Cholelithiasis without cholecystitis.
SPLEEN: Normal in size.
KIDNEYS: 1.2 cm cyst in the left kidney; no hydronephrosis.
BOWEL: Diverticulosis of the sigmoid colon. No obstruction.
BONES: Degenerative changes of the lumbar spine. No acute fracture.
IMPRESSION: Small effusions."""


def test_reduction_of_a_structured_report():
    assert reduce_report(MERLIN) == {
        "Lungs": ("Small bilateral effusions with adjacent atelectasis",),
        "Gastrointestinal": ("Diverticulosis of the sigmoid colon",),
        "Liver": ("Diffuse steatosis", "The left lobe is enlarged", "Cholelithiasis without cholecystitis"),
        "Kidneys": ("1.2 cm cyst in the left kidney",),
        "Bones": ("Degenerative changes of the lumbar spine",),
    }


def test_reduction_of_running_text_by_organ_words_and_by_what_they_imply():
    reduced = reduce_report(
        "The trachea is open. Emphysema is present, and no nodule is seen. It is more marked on the right. "
        "Heart size is normal but calcified plaques are seen in the coronary arteries. Small hiatal hernia. "
        "The spleen is enlarged. A hypodense nodule is seen in the right lobe of the thyroid gland. "
        "Osteophytes are seen. There is a cyst in the left lobe of the liver. Kidneys are normal."
    )
    assert reduced == {
        "Lungs": ("Emphysema is present",),
        "Heart": ("Calcified plaques are seen in the coronary arteries",),
        "Gastrointestinal": ("Small hiatal hernia",),
        "Liver": ("There is a cyst in the left lobe of the liver",),
        "Spleen": ("The spleen is enlarged",),
        "Bones": ("Osteophytes are seen",),
        "Other": ("A hypodense nodule is seen in the right lobe of the thyroid gland",),
    }
    assert list(reduced) == [organ for organ in ORGANS if organ in reduced]


def test_reduction_leaves_out_negation_history_questions_and_repetitions():
    assert reduce_report("No nodule. Pleural effusion was not seen. Wall thickness of the stomach is normal.") == {}
    assert reduce_report("History of pneumonia. Evaluate for embolism. Nodule is no longer seen.") == {}
    assert reduce_report("A small nodule is at the left apex. Small nodule at the left apex.") == {
        "Lungs": ("A small nodule is at the left apex",)
    }


def test_the_impression_is_used_only_without_findings():
    assert reduce_report(Report("a", "", "Emphysema.")) == {"Lungs": ("Emphysema",)}
    assert reduce_report(Report("a", "Normal lungs.", "Emphysema.")) == {}


def test_targets_are_lines_by_organ_or_the_fixed_sentence():
    report = Report("a", "Cyst in the liver. Emphysema. Nodule at the left apex.", "")
    assert report_target(report) == "Lungs: Emphysema. Nodule at the left apex.\nLiver: Cyst in the liver."
    assert report_target(Report("a", "Normal heart.", "")) == NO_ABNORMALITY == format_reduced({})
    assert format_reduced({"Liver": ("Cyst",)}) == "Liver: Cyst."


def test_a_reduced_report_is_read_back_by_organ():
    reduced = {organ: (f"Cyst of {number + 1} mm", "Calcified plaques") for number, organ in enumerate(ORGANS)}
    assert reduce_report(format_reduced(reduced)) == reduced
