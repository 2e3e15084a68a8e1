"""The report labeller on sentences in the styles of several hospitals, and on annotated reports where there are any."""

import csv
from pathlib import Path

import pytest
from sklearn.metrics import f1_score, precision_score, recall_score

from voxelfm_hf.eval.labeller import FINDINGS, label_report, label_report_with_evidence
from voxelfm_hf.eval.labeller.tables import label_csv, macro_f1, measure_csv, score_labels, scores_table
from voxelfm_hf.volumes.errors import LabelError

MATERIAL, ARTERY, CARDIOMEGALY, PERICARDIAL, CORONARY, HERNIA = FINDINGS[:6]
NODES, EMPHYSEMA, ATELECTASIS, NODULE, OPACITY, SEQUELA = FINDINGS[6:12]
PLEURAL, MOSAIC, PERIBRONCHIAL, CONSOLIDATION, BRONCHIECTASIS, SEPTAL = FINDINGS[12:]


def stated(text: str) -> set[str]:
    return {finding for finding, label in label_report(text).items() if label}


def cases(*pairs: tuple[str, set[str]]):
    return pytest.mark.parametrize(("text", "expected"), pairs, ids=[text[:60] for text, _ in pairs])


def test_the_findings_are_those_of_the_label_set_in_its_order():
    assert [name.lower() for name in FINDINGS] == [
        "medical material", "arterial wall calcification", "cardiomegaly", "pericardial effusion",
        "coronary artery wall calcification", "hiatal hernia", "lymphadenopathy", "emphysema", "atelectasis",
        "lung nodule", "lung opacity", "pulmonary fibrotic sequela", "pleural effusion", "mosaic attenuation pattern",
        "peribronchial thickening", "consolidation", "bronchiectasis", "interlobular septal thickening",
    ]  # fmt: skip
    assert tuple(label_report("Emphysema.")) == FINDINGS


@cases(
    ("A pacemaker with leads in the right atrium and ventricle is present.", {MATERIAL}),
    ("Status post median sternotomy and CABG.", {MATERIAL}),
    ("Port-a-cath with its tip in the superior vena cava.", {MATERIAL}),
    ("Stent in the LAD and a mechanical valve in the mitral position.", {MATERIAL}),
    ("NG tube tip is in the stomach.", {MATERIAL}),
    ("Surgical clips in the gallbladder fossa.", {MATERIAL}),
    ("Postsurgical changes of right upper lobectomy with a staple line in the hilum.", {MATERIAL}),
    ("No contrast material was given, so the mediastinum was assessed suboptimally.", set()),
    ("There is no space-occupying lesion in the liver.", set()),
    ("Atherosclerotic calcification of the thoracic aorta and coronary arteries.", {ARTERY, CORONARY}),
    ("Calcified plaques are seen in the walls of the aortic arch and the coronary arteries.", {ARTERY, CORONARY}),
    ("Three-vessel coronary artery calcification.", {CORONARY}),
    ("Non-calcified plaque in the LAD.", set()),
    ("Coronary calcium score is 0.", set()),
    ("Aortic valve calcification.", set()),
    ("Mitral annular calcifications.", set()),
    ("Calcified pleural plaques.", set()),
    ("Calcified lymph nodes in the aortopulmonary window.", {NODES}),
    ("Calcified lymph nodes beside the aortic arch.", {NODES}),
    ("The heart is mildly enlarged.", {CARDIOMEGALY}),
    ("The cardiothoracic ratio has increased in favor of the heart.", {CARDIOMEGALY}),
    ("CTR: 0.57", {CARDIOMEGALY}),
    ("The cardiothoracic ratio is 51%.", {CARDIOMEGALY}),
    ("The cardiothoracic ratio is 50%.", set()),
    ("CTR: 0.50", set()),
    ("The cardiothoracic ratio is 48%.", set()),
    ("Heart size is at the upper limits of normal.", set()),
    ("The CTR lies within normal limits.", set()),
    ("Trace pericardial effusion.", {PERICARDIAL}),
    ("Effusion of 9 mm lies between the pericardial leaves.", {PERICARDIAL}),
    ("A sliding type hernia is seen at the lower end of the esophagus.", {HERNIA}),
    ("Fat-containing umbilical hernia.", set()),
    ("Umbilical hernia containing stomach.", set()),
    ("Lymph nodes with short axes of up to 13 mm were seen in the lower paratracheal area.", {NODES}),
    ("Mediastinal adenopathy, with a 1.6 cm precarinal node.", {NODES}),
    ("Mediastinal lymph nodes are normal in size.", set()),
    ("Scattered small mediastinal lymph nodes, not enlarged by CT criteria.", set()),
    ("No enlarged lymph nodes in pathological dimensions were seen.", set()),
    ("Centrilobular emphysema with bullae at the apices.", {EMPHYSEMA}),
    ("Subcutaneous emphysema along the left chest wall.", set()),
    ("Subcutaneous emphysema.", set()),
    ("Mild dependent atelectasis.", {ATELECTASIS}),
    ("Collapse of the left lower lobe.", {ATELECTASIS}),
    ("Compression fracture of T12 with collapse.", set()),
    ("Calcified granuloma in the left lower lobe.", {NODULE}),
    ("Hypodense nodules are present in both lobes of the thyroid gland.", set()),
    ("1.5 cm left adrenal nodule.", set()),
    ("Thyroid nodule.", set()),
    ("Nodule in segment 4 of the liver.", set()),
    ("Patchy ground-glass opacities in both lungs.", {OPACITY}),
    ("Frosted glass areas in both lungs.", {OPACITY}),
    ("Tree-in-bud opacities in the right lower lobe.", {OPACITY}),
    ("Density increases dependent on gravity are seen in both lower lobes.", {OPACITY}),
    ("Diffuse density decrease in the liver, consistent with steatosis.", set()),
    ("Biapical pleuroparenchymal scarring.", {SEQUELA}),
    ("Fibrotic bands in both lower lobes.", {SEQUELA}),
    ("Fibroatelectatic changes in the lingula.", {SEQUELA}),
    ("Sequelae of old rib fractures are seen on the left.", set()),
    ("Small bilateral pleural effusions.", {PLEURAL}),
    ("Effusion measuring 12 mm on the right and 9 mm on the left between the pleural leaves.", {PLEURAL}),
    ("Perirenal effusion is noted on the left.", set()),
    ("Free fluid is seen in the abdomen.", set()),
    ("Mosaic perfusion pattern.", {MOSAIC}),
    ("Diffuse peribronchial thickness increase is seen.", {PERIBRONCHIAL}),
    ("Mild bronchial wall thickening.", {PERIBRONCHIAL}),
    ("Dense consolidation in the right lower lobe.", {CONSOLIDATION}),
    ("Rib fracture with beginning consolidation.", set()),
    ("Bronchi are dilated in the lower lobes.", {BRONCHIECTASIS}),
    ("Traction bronchiectasis.", {BRONCHIECTASIS}),
    ("Smooth interlobular septal thickening and Kerley B lines.", {SEPTAL}),
    ("Interventricular septal thickening.", set()),
)
def test_each_finding_is_known_by_its_words(text, expected):
    assert stated(text) == expected


@cases(
    ("No pleural effusion, pneumothorax or consolidation.", set()),
    ("Pleural effusion and pneumothorax were not seen in either hemithorax.", set()),
    ("Neither pleural effusion nor consolidation is seen.", set()),
    ("Absence of pleural effusion.", set()),
    ("Negative for lymphadenopathy.", set()),
    ("Pleural effusion: none.", set()),
    ("Pleural effusion (-).", set()),
    ("Lymph nodes: Unremarkable.", set()),
    ("Findings are not consistent with consolidation.", set()),
    ("Consolidation is unlikely.", set()),
    ("The lungs are clear without nodules, masses, or consolidation.", set()),
    ("Bilateral lower lobe bronchiectasis without peribronchial thickening.", {BRONCHIECTASIS}),
    ("A nodule without calcification is seen in the emphysematous left lung.", {NODULE, EMPHYSEMA}),
    ("Mild biapical scarring without nodules or consolidation, and trace effusions bilaterally.", {SEQUELA, PLEURAL}),
    ("No consolidation is seen, however there is a small nodule in the right lung.", {NODULE}),
    ("Linear atelectasis is present in the middle lobe but there is no consolidation.", {ATELECTASIS}),
    ("Although no consolidation is seen, ground glass areas are present in both lower lobes.", {OPACITY}),
    ("No mass, nodule or infiltration was seen, except for a 3 mm nodule in the lingula.", {NODULE}),
    ("Apart from sequelae changes in the apices, no lesion was seen.", {SEQUELA}),
    ("Nodules are seen in both lungs, and pleural effusion and pneumothorax were not seen.", {NODULE}),
    ("Three nodules, the largest of which is 9 mm, are seen, and no mass was found.", {NODULE}),
    ("The heart is not enlarged.", set()),
    ("Interlobular septa are not thickened and bronchi are not dilated.", set()),
    ("The nodule has not increased in the emphysematous lung.", {NODULE, EMPHYSEMA}),
    ("The lungs show no opacity, with a calcified granuloma on the right.", {NODULE}),
    ("Consolidation and ground glass are both absent while atelectasis is seen.", {ATELECTASIS}),
    ("Effusion is present in the pericardium but not in the pleura.", {PERICARDIAL}),
    ("No filling defect due to embolism; bilateral emphysema.", {EMPHYSEMA}),
    ("No pericardial effusion; small left pleural effusion.", {PLEURAL}),
    ("Pericardial effusion without pleural effusion.", {PERICARDIAL}),
    ("Lungs show no nodules and there is a trace effusion on the left.", {PLEURAL}),
    ("No pericardial effusion was found, and the coronary arteries contain calcified plaques.", {CORONARY}),
)
def test_negation_ends_where_the_sentence_turns(text, expected):
    assert stated(text) == expected


@cases(
    ("Possible small left pleural effusion.", {PLEURAL}),
    ("Suspicious for a pulmonary nodule in the left apex.", {NODULE}),
    ("Consolidation cannot be excluded.", {CONSOLIDATION}),
    ("Left basilar opacity may represent atelectasis or pneumonia.", {OPACITY, ATELECTASIS}),
    ("Subsegmental atelectasis versus scar in the right middle lobe.", {ATELECTASIS, SEQUELA}),
    ("A density in the left lung base (atelectasis? nodule?).", set()),
    ("Mosaic attenuation (small airway disease? small vessel disease?) is seen.", {MOSAIC}),
    ("Evaluate for lung nodule.", set()),
    ("Follow-up is recommended to exclude a nodule.", set()),
)
def test_doubt_counts_and_questions_do_not(text, expected):
    assert stated(text) == expected


@cases(
    ("Patient with a history of emphysema.", set()),
    ("In the previous examination a consolidation was observed in the right lung.", set()),
    ("Consolidation seen in the previous examination has completely disappeared.", set()),
    ("Pleural effusion, which was present in the previous examination, is not seen today.", set()),
    ("Previously described right lower lobe nodule is no longer seen.", set()),
    ("The catheter seen in the previous examination has been removed.", set()),
    ("The consolidation has partially regressed.", {CONSOLIDATION}),
    ("The consolidation has not resolved.", {CONSOLIDATION}),
    ("Resolved right effusion, persistent left effusion.", {PLEURAL}),
    ("Interval resolution of the consolidation with residual scarring.", {SEQUELA}),
    ("A nodule, which had not been seen on the earlier scan, is present in the left upper lobe.", {NODULE}),
    ("Pleural effusion has decreased compared with the previous examination.", {PLEURAL}),
    ("No significant difference was found in the size and number of the nodules in both lungs.", {NODULE}),
    ("No new pulmonary nodule. Stable 3 mm nodule in the lingula.", {NODULE}),
    ("The previously noted ground-glass opacities persist.", {OPACITY}),
)
def test_history_is_told_from_today(text, expected):
    assert stated(text) == expected


@cases(
    ("Emphysema, bronchiectasis, and a 6 mm nodule in the left lung.", {EMPHYSEMA, BRONCHIECTASIS, NODULE}),
    (
        "Heart dimensions have increased and an effusion lies between the pericardial leaves.",
        {CARDIOMEGALY, PERICARDIAL},
    ),
    ("Large pericardial effusion with moderate bilateral pleural effusions.", {PERICARDIAL, PLEURAL}),
    ("No effusion was seen on the left, but a small pleural effusion is present on the right.", {PLEURAL}),
    ("In the right lung, consolidation was not seen; the left lower lobe shows atelectasis.", {ATELECTASIS}),
    ("Atelektasis and atelectatic changes at both bases.", {ATELECTASIS}),
    ("Linear atelctasis and ateletasis.", {ATELECTASIS}),
)
def test_lists_sides_and_misspellings(text, expected):
    assert stated(text) == expected


def test_indication_technique_and_comparison_are_not_read():
    text = (
        "INDICATION: Emphysema, rule out nodule. TECHNIQUE: CT of the chest, injection through the catheter.\n"
        "COMPARISON: Pleural effusion on radiograph.\nFINDINGS: Small hiatal hernia.\nIMPRESSION: 1. Nothing acute."
    )
    assert stated(text) == {HERNIA}


def test_findings_without_a_heading_after_the_comparison_are_read():
    assert stated("Comparison: CT of last year. Emphysema is seen. No nodule. The heart is normal. No effusion.") == {
        EMPHYSEMA
    }


def test_structured_report():
    text = (
        "FINDINGS:\nLINES AND TUBES: Right PICC tip in the SVC.\nLUNGS: Mild paraseptal emphysema. No nodule.\n"
        "PLEURA: No effusion.\nHEART: Normal size. Coronary artery calcium: Severe.\nLYMPH NODES: None enlarged.\n\n"
        "IMPRESSION:\n1. Emphysema.\n2. No effusion"
    )
    assert stated(text) == {MATERIAL, EMPHYSEMA, CORONARY}


def test_lines_without_full_stops_are_separate_statements():
    assert stated("Emphysema\nNo pleural effusion\nCardiomegaly") == {EMPHYSEMA, CARDIOMEGALY}
    assert stated("Impression:\n- Emphysema\n- No effusion\n- Cardiomegaly") == {EMPHYSEMA, CARDIOMEGALY}


def test_evidence_is_the_sentences_that_state_the_finding():
    evidence = label_report_with_evidence("Small nodule. No effusion. A second nodule is 5.5 mm. Emphysema.")
    assert evidence[NODULE] == ["Small nodule", "A second nodule is 5.5 mm"]
    assert evidence[EMPHYSEMA] == ["Emphysema"]
    assert evidence[PLEURAL] == []


def test_empty_text_has_no_finding():
    assert stated("") == set() == stated(" \n. ")


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_text(text, encoding=encoding)
    return path


def test_a_table_of_reports_becomes_a_table_of_labels(tmp_path):
    reports = write(
        tmp_path / "reports.csv",
        '\ufeffscan_id,report_text,patient\na,"Emphysema, no nodule.\nSmall effusion.",Smith\nb,,Roe\nc,Normal.,Doe\n',
    )
    summary = label_csv(reports, tmp_path / "labels" / "out.csv", columns="report_text")
    assert (summary.reports, summary.empty, summary.positives[EMPHYSEMA], summary.positives[NODULE]) == (3, 1, 1, 0)
    text = (tmp_path / "labels" / "out.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    assert [row["id"] for row in rows] == ["a", "b", "c"]
    assert [row[PLEURAL] for row in rows] == ["1", "", "0"]
    assert "Smith" not in text and "Small effusion" not in text
    assert [path.name for path in (tmp_path / "labels").iterdir()] == ["out.csv"]


def test_rows_are_numbered_where_no_column_names_them(tmp_path):
    reports = write(tmp_path / "r.csv", "report;site\nEmphysema.;x\nNormal.;x\n")
    assert label_csv(reports, tmp_path / "out.csv").numbered == 2
    rows = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
    assert [(row["id"], row[EMPHYSEMA]) for row in rows] == [("1", "1"), ("2", "0")]


@pytest.mark.parametrize("column", ["AccessionNo", "Accession Number", "VolumeName", "StudyID", "report_id", "ID"])
@pytest.mark.parametrize(("text", "columns"), [("report_text", "report_text"), ("Findings", None)])
def test_usual_id_columns_are_recognised_before_a_name(tmp_path, column, text, columns):
    reports = write(tmp_path / "r.csv", f"Name,{column},{text}\nSmith,007,Emphysema.\nRoe,,Normal.\n")
    assert label_csv(reports, tmp_path / "out.csv", columns=columns).numbered == 1
    rows = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
    assert [row["id"] for row in rows] == ["007", "2"]


@pytest.mark.parametrize(
    ("content", "ids"),
    [
        ("study,report\nCT1,Emphysema.\n,Normal.\nCT3,Normal.\n", ["CT1", "2", "CT3"]),
        ("Study;report\nchest;Emphysema.\nchest;Normal.\n", ["1", "2"]),
        ("study,accession,report\nCT1,A1,Normal.\n", ["A1"]),
    ],
    ids=["of one report each", "a kind of study", "beside a surer name"],
)
def test_a_column_study_is_taken_where_it_tells_the_reports_apart(tmp_path, content, ids):
    label_csv(write(tmp_path / "r.csv", content), tmp_path / "out.csv")
    rows = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
    assert [row["id"] for row in rows] == ids


@pytest.mark.parametrize(
    ("content", "columns", "message"),
    [
        ("", None, "no rows"),
        ("report_text\n", None, "no rows"),
        ("a,b\n1,2\n", None, "no column known to hold reports"),
        ("a,b\n1,2\n", "report_text", "no column 'report_text'.*'a', 'b'"),
        ("report_text\nleft, right, both\n", None, "more cells than columns"),
        ('report_text\n"no end\n', None, "cannot be read as CSV"),
    ],
)
def test_a_bad_table_is_refused_in_one_sentence_and_leaves_nothing(tmp_path, content, columns, message):
    reports = write(tmp_path / "r.csv", content)
    with pytest.raises(LabelError, match=message) as caught:
        label_csv(reports, tmp_path / "out.csv", columns=columns)
    assert "r.csv" in str(caught.value) and "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["r.csv"]


def test_other_encodings_missing_files_and_overwriting_are_refused(tmp_path):
    latin = write(tmp_path / "latin.csv", "report_text\nLésion\n", encoding="latin-1")
    with pytest.raises(LabelError, match="UTF-8"):
        label_csv(latin, tmp_path / "out.csv")
    with pytest.raises(LabelError, match="not a file"):
        label_csv(tmp_path / "none.csv", tmp_path / "out.csv")
    reports = write(tmp_path / "r.csv", "report_text\nEmphysema.\n")
    with pytest.raises(LabelError, match="write the labels to another file"):
        label_csv(reports, reports)
    assert reports.read_text() == "report_text\nEmphysema.\n"


def test_scores_agree_with_scikit_learn(tmp_path):
    texts = ["Emphysema and a nodule.", "No emphysema.", "Emphysema.", "Nodule.", "Normal."]
    truth = {EMPHYSEMA: [1, 1, 0, 0, 0], NODULE: [1, 0, 0, 1, 0]}
    table = tmp_path / "annotated.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["report_text", *FINDINGS])
        for row, text in enumerate(texts):
            writer.writerow([text, *(truth.get(finding, [0] * 5)[row] for finding in FINDINGS)])
    scores = {score.finding: score for score in measure_csv(table)}
    for finding, expected in truth.items():
        predicted = [label_report(text)[finding] for text in texts]
        assert scores[finding].precision == pytest.approx(precision_score(expected, predicted))
        assert scores[finding].recall == pytest.approx(recall_score(expected, predicted))
        assert scores[finding].f1 == pytest.approx(f1_score(expected, predicted))
        assert scores[finding].positives == sum(expected)
    assert macro_f1(list(scores.values())) == pytest.approx((scores[EMPHYSEMA].f1 + scores[NODULE].f1) / 18)
    assert "| Emphysema | 2 | 0.500 | 0.500 | 0.500 |" in scores_table(scores.values())


def test_annotations_must_be_complete_and_binary(tmp_path):
    with pytest.raises(LabelError, match="no column for Medical material"):
        measure_csv(write(tmp_path / "a.csv", "report_text,Emphysema\nEmphysema.,1\n"))
    header = ",".join(["report_text", *FINDINGS])
    with pytest.raises(LabelError, match="row 1, Medical material: the annotation is 'x'"):
        measure_csv(write(tmp_path / "b.csv", f"{header}\nEmphysema.,{','.join('x' * 18)}\n"))


def test_a_finding_that_never_occurs_scores_zero_not_nan():
    nothing = dict.fromkeys(FINDINGS, 0)
    assert {(s.precision, s.recall, s.f1) for s in score_labels([nothing], [nothing])} == {(0.0, 0.0, 0.0)}


def test_quality_on_annotated_reports(real_data):
    reports = real_data / "reports" / "reports.csv"
    if not reports.is_file():
        pytest.skip("no annotated reports in VOXELFM_TEST_DATA/reports/reports.csv")
    scores = measure_csv(reports)
    assert macro_f1(scores) >= 0.92
    assert min(score.f1 for score in scores) >= 0.8
