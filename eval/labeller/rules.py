"""The phrases by which the labeller knows each finding, in a notation a radiologist can read and correct.

Notation (`voxelfm_hf/data/reports/phrases.py`): phrases stand between commas, in any case; a space also matches a
hyphen or slash; `*` stands for any beginning or ending of a word (`nodul*`, `*atele*`); `|` separates alternatives of
one word (`lobe|lobes`); `~` stands for up to four words in between.

Negation, uncertainty and history are not written here: `voxelfm_hf/data/reports/negation.py` decides them for every
mention. The findings are those of the CT-RATE label set, and where a convention had to be chosen it is that of the set:
a described lymph node counts as lymphadenopathy unless it is called normal or not enlarged, dependent densities count
as lung opacity, fibroatelectatic changes as fibrotic sequela and not as atelectasis, and plaque without the word
"calcified" as calcification.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cue:
    """One way in which reports state a finding.

    Args:
        words: Phrases that state it.
        near: If given, one of these must stand in the same clause.
        closer_than: Rival places: the nearest `near` phrase must be closer to the words than any of these, unless the
            two places are joined, as in "pleural and pericardial effusion".
        never: The cue does not count in a clause with one of these.
        ignore: Phrases that are read over, so that "aortic valve" is no aorta.
    """

    words: str
    near: str = ""
    closer_than: str = ""
    never: str = ""
    ignore: str = ""


# Places outside the lungs that have nodules and densities of their own.
_NOT_LUNG = (
    "thyroid*, isthmus, adrenal*, surrenal*, liver, hepat*, spleen, splen*, kidney*, renal, perirenal, perinephric, "
    "pancrea*, gallbladder, stomach, gastric, esophag*, bowel, colon|colonic|pericolonic, oment*, periton*, mesenter*, "
    "retroperiton*, uter*, ovar*, prostat*, breast*, mammar*, axilla*, subcutaneous, cutaneous, skin, muscle*, "
    "abdominal wall, chest wall, vertebra*, endplate*, end plate*, schmorl*, bone|bones|osseous, rib|ribs, sternum, "
    "scapula*, clavic*, humer*, thymus|thymic, trachea, ventricle, atrium, diaphragm, parotid*"
)
_LUNG = (
    "lung*, pulmon*, intrapulmon*, lobe|lobes|lobar, segment*, lingul*, parench*, fissur*, subpleur*, hemithora*, "
    "apex|apices|apical|biapical, bases|basal|bibasilar|bibasal, peribronch*"
)
_LOBES_ELSEWHERE = (
    "lobe|lobes of the thyroid, lobe|lobes of thyroid, thyroid lobe|lobes, lobe|lobes of the liver, liver lobe*, "
    "hepatic lobe|lobes, caudate lobe, liver segment*, segment* ~ of the liver"
)

_HEART_DEVICES = (
    "pacemaker*, pace maker*, pacer, pacing wire*, pacing lead*, pacemaker lead*, ventricular lead*, atrial lead*, "
    "* lead tip*, electrode*, icd|aicd, defibrillator*, loop recorder*, lvad|iabp|ecmo|impella, balloon pump, "
    "tavr|tavi, prosthe*, bioprosthe*, mechanical valve*, valve replacement*, annuloplasty, occluder*, watchman, "
    "stent|stents|stented|stenting, cabg|acbg, bypass graft*, vascular graft*, endograft*, sternotomy, sternal wire*"
)
_LINES_AND_TUBES = (
    "catheter*, cannula*, cvp|cvc|picc, central line*, central venous line*, jugular line, subclavian line, "
    "dialysis line, support lines, port chamber*, port reservoir*, port tip, porta cath*, port a cath*, portacath*, "
    "chest port*, infusion port*, power port, mediport, chemoport, * tube|tubes, nasogastric, orogastric, dobhoff, "
    "intubated, ett, tracheost*, tracheaost*, gastrostomy, jejunostomy, peg, pigtail*, chest drain*, pleural drain*, "
    "surgical drain*, double j, vp shunt*, ventriculoperitoneal shunt*, ivc filter*, caval filter*"
)
_SURGICAL_MATERIAL = (
    "suture|sutures|sutured, staple|staples, staple line*, clip|clips, cerclage, surgical material*, "
    "operation material*, foreign material*, surgical mesh, hardware, screw|screws, cage|cages, spinal fixation, "
    "fixation material*, fixation device*, fixation plate*, stabilization material*, stabilization device*, "
    "bone cement, vertebroplasty cement, kyphoplasty, embolization coil*, embolization material*, tissue expander*, "
    "silicone, breast implant*, mammary implant*, cochlear implant*, dental implant*"
)

_CALCIFICATION = "calcif*, calcium, athero*, plaque*"
_NOT_CALCIFIED = (
    "non calcif* plaque*, noncalcif* plaque*, non calcif* athero* plaque*, non calcif*, noncalcif*, uncalcif*, "
    "soft plaque*, calcium score ~ 0|zero"
)
_ARTERIES = (
    "aorta|aortas|aortic|thoracoaortic, arcus, carotid*, subclavian*, brachiocephalic*, supraaort*, supra aort*, "
    "iliac*, artery|arteries|arterial, vessel|vessels, great vessel*, vasculature, vascular wall*, vascular structure*"
)
# Words with "aort" that are not the aorta, and arteries that have a finding of their own or rarely calcify.
_NOT_ARTERIES = (
    "aortic valve*, aortopulmon*, aorto pulmon*, aortic pulmon*, paraaort*, para aort*, interaort*, "
    "coronar* artery|arteries, coronar* vascular structure*, coronar* vessel*, anterior descending artery|arteries, "
    "one|two|three|single|multi|triple vessel|vessels, pulmonary artery|arteries"
)

RULES: dict[str, tuple[Cue, ...]] = {
    "Medical material": (
        Cue(
            f"{_HEART_DEVICES}, {_LINES_AND_TUBES}, {_SURGICAL_MATERIAL}",
            ignore="suture compression, fallopian tube*, tracheostomy ~ closed",
        ),
        Cue("implant|implants", near="breast*, mammar*, pector*, dental", never="peritone*, metasta*, in favor of"),
        Cue("metal* densit*, metal* artifact*, metal* object*, metal* clip*, metal* foreign, metal* material*"),
        Cue("material|materials", near="surg*, operat*, stomach, sternum, valve*", ignore="contrast material*"),
    ),
    "Arterial wall calcification": (
        Cue(_CALCIFICATION, near=_ARTERIES, never="lymph", ignore=f"{_NOT_CALCIFIED}, {_NOT_ARTERIES}"),
        Cue(
            "vascular calcif*, atherosclero* calcif*, calcif* athero*, aortosclero*",
            never="coronar*, lad|rca|circumflex",
            ignore=_NOT_CALCIFIED,
        ),
    ),
    "Cardiomegaly": (
        Cue(
            "cardiomeg*, cardiomeal*, enlarged heart, large heart, heart enlargement, enlargement of the heart, "
            "enlarged cardiac, enlarged cardiothora*, enlarged cardiomediastinal"
        ),
        Cue(
            "heart|cardiac ~ increas*, increas* ~ heart|cardiac size*|dimension*|diameter*, "
            "increas* ~ size of the heart",
            near="size|sizes, dimension*, diameter*, volume*, contour*, silhouette",
            ignore="* ventric*, * atri*, heart rate, heart cavit*",
        ),
        Cue(
            "heart|cardiac ~ enlarged, heart|cardiac ~ larger, heart|cardiac ~ wider, heart|cardiac ~ above normal, "
            "heart|cardiac ~ greater than",
            never="chamber*, cavit*, ventric*, atri*",
        ),
        Cue(
            "ctr|cti ~ increas*, increas* ~ ctr|cti, cardiothora* ~ increas*, increas* ~ cardiothora*, "
            "cardio thora* ~ increas*, increas* ~ cardio thora*, in favor|favour of the heart, in favor|favour of heart"
        ),
    ),
    "Pericardial effusion": (
        Cue(
            "effusion*, fluid, smear*",
            near="pericard*",
            closer_than="pleura*, hemithora*",
            never="physiolog*, recess|recesses",
            ignore="fluid density",
        ),
        Cue("hemopericard*, pericardial collection*, tamponade"),
    ),
    "Coronary artery wall calcification": (
        Cue(
            _CALCIFICATION,
            near="coronar*, lad|rca|lcx|cx|lmca, anterior descending, circumflex, left main artery",
            ignore=_NOT_CALCIFIED,
        ),
    ),
    "Hiatal hernia": (
        Cue("hiat* ~ hernia*, paraesophageal hernia*, sliding ~ hernia*, hernia* ~ hiat*", ignore="hernia* repair"),
        Cue(
            "hernia*",
            near="esophag*, oesophag*, gastroesophag*, stomach, gastric",
            never="inguinal*, umbilic*, ventral, bochdalek, morgagni, incision*, disc|disk, rupture*",
            ignore="hernia* repair",
        ),
    ),
    "Lymphadenopathy": (
        Cue(
            "lymphadenop*, *adenopath*, lymphadenomeg*, lap|laps, bulky ~ node|nodes, nodal mass*, nodal metasta*, "
            "nodal enlarge*"
        ),
        Cue(
            "lymph node|nodes, lymphnode*, hilar|mediastinal|paratracheal|axillary node|nodes, enlarged node|nodes",
            never=(
                "not enlarged, not ~ enlarged, no longer enlarged, non enlarged, nonenlarged, normal size*, "
                "normal in size, normal ~ size, not meet, physiolog*, subpleur*, intrapulmon*, intraparench*, "
                "fissur*, perifissur*, intramammar*, dissection, excision"
            ),
            ignore="lymph node station*",
        ),
    ),
    "Emphysema": (
        Cue(
            "*emphys*, emphyz*, bulla|bullae|bullas|bullous, bleb*",
            never=(
                "subcutan*, cutaneous, skin, wall, soft tissue*, muscle*, mediastinal emphys*, pneumomediastin*, "
                "cystitis, gastritis"
            ),
        ),
    ),
    "Atelectasis": (
        Cue("*atele*, *atelac*, *atalect*", ignore="fibroat*, fibro at*, fibrotic at*"),
        Cue(
            "collapse|collapsed",
            near="lobe|lobes|lobar, lung|lungs",
            never="vertebr*, fractur*, bronch*, trache*, vein|veins|vena|cava",
        ),
    ),
    "Lung nodule": (
        Cue(
            "nodul|*nodule|*nodules, nodular ~ lesion*, nodular ~ formation*, nodular ~ pattern*, nodular ~ structure*",
            never=f"{_NOT_LUNG}, hypodens*, consolid*, atelect*",
        ),
        Cue(
            "nodul|*nodule|*nodules, nodular ~ lesion*",
            near=_LUNG,
            closer_than=_NOT_LUNG,
            never="schmorl*",
            ignore=_LOBES_ELSEWHERE,
        ),
        Cue("pulmonary metast*, lung metast*, granuloma|granulomas|granulomata, hamartoma*", never=_NOT_LUNG),
    ),
    "Lung opacity": (
        Cue(
            "ground glass, groundglass, ggo|ggos|ggn, frosted glass, icy glass, icy densit*, glass densit*, "
            "crazy paving, opacit*, opacification*, hazy ~ densit*, acinar densit*, dependent ~ densit*, "
            "airspace disease, air space disease, airspace infiltrate*, patchy infiltrate*, pulmonary infiltrate*, "
            "lung infiltrate*",
            ignore="reticular opacit*, linear opacit*, band opacit*",
        ),
        Cue(
            "densit*",
            near="increas*, patch*, nonspecific, focal, diffuse*",
            never=(
                f"{_NOT_LUNG}, sequel*, linear, band*, *atelect*, consolid*, pleuro*, pleural parench*, calcif*, "
                "calcul*, metal*, stent*, soft tissue*, fat|fatty|adipose, mediastin*, lumen|lumens, emphys*, "
                "decreas*, reduc*, low density"
            ),
        ),
    ),
    "Pulmonary fibrotic sequela": (
        Cue(
            "sequel*",
            # Translated reports call the ribs "elevations".
            never=(
                "rib|ribs, elevation, humer*, vertebr*, fractur*, kidney*, renal, liver, spleen, granulomat*, postop*, "
                "infarct*, cerebr*"
            ),
        ),
        Cue(
            "fibrotic, fibrosis, fibros, fibroat*, fibro at*, fibrobronch*, fibrolinear, fibronodular, fibrocalcific, "
            "scar|scars|scarring|scarred, cicatri*, parench* ~ band*, pleuroparench* ~ band*, linear band*, "
            "pleuroparench* ~ densit*",
            never=(
                "parenchymal fibrosis, interstitial fibrosis, mediastin* fibrosis, liver, hepat*, spleen, renal, "
                "kidney*, myocard*, fibrocalcific athero*, breast*, skin, abdominal wall, rib|ribs, postop*, "
                "surgical scar*, incision*"
            ),
        ),
    ),
    "Pleural effusion": (
        Cue(
            "effusion*, fluid",
            near="pleura*, pleuro*, hemithora*, costophrenic, fissur*",
            closer_than="pericard*",
            never="abdom*, periton*",
        ),
        Cue(
            "effusion*",
            never=(
                "pleur*, hemithora*, pericard*, joint*, knee, abdom*, periton*, liver, spleen, subcapsular, kidney*, "
                "*renal"
            ),
        ),
        Cue("hydrothora*, hemothora*, haemothora*, hydropneumothora*, pyothora*, chylothora*, empyema*"),
    ),
    "Mosaic attenuation pattern": (Cue("mosaic*"),),
    "Peribronchial thickening": (
        Cue("thick*", near="peribronchial*, around ~ bronch*, peribronch* wall*", closer_than="pleur*, sept*"),
        # The usual words for it where "peribronchial" is not said; other sentences on bronchial walls mean the wall.
        Cue(
            "bronchial wall thickening*, airway wall thickening*, airway thickening*, bronchial thickening*, "
            "bronchovascular thickening*, peribronchovascular thickening*, peribronch* cuff*, bronchial cuff*"
        ),
    ),
    "Consolidation": (Cue("consolid*, hepatization", never="fracture*"),),
    "Bronchiectasis": (
        Cue(
            "*bronchiect*, bronchoect*, bronchiolect*, bronchectas*, ectas* ~ bronch*, bronch* ~ ectas*, "
            "ectatic ~ bronch*, bronch* ~ ectatic, bronch* ~ dilat*, dilat* ~ bronch*, bronch* ~ enlarge*"
        ),
    ),
    "Interlobular septal thickening": (
        Cue(
            "thick*, promin*, clarif*",
            near="interlobul*, inter lobul*, intralobul*, septal, septa, septae, interseptal*",
            never="interatrial, interventricular, nasal, cyst*",
        ),
        Cue("kerley*, septal line*"),
    ),
}
