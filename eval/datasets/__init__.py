"""Data sets for benchmarks, one file each: `ABOUT` says what it is and where to get it, `read` gives scans and labels.

    read(folder, **options) -> BenchmarkData

`folder` is what was downloaded, unpacked as `ABOUT.layout` says. A new data set is one new file here.
"""

from dataclasses import dataclass, field
from pathlib import Path

from voxelfm_hf.eval.labels import LabelTable
from voxelfm_hf.eval.named_modules import NamedModules
from voxelfm_hf.features import Task


@dataclass(frozen=True)
class About:
    """What a data set is.

    Attributes:
        title: Its name.
        where: Address to get it from.
        licence: Licence or terms, in short.
        citation: What to cite.
        layout: The files that `read` expects below its folder, in one line.
        sources: Where layout and columns were looked up.
    """

    title: str
    where: str
    licence: str
    citation: str
    layout: str
    sources: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class BenchmarkData:
    """Scans and labels of a data set, ready for `embed_scans` and the tasks.

    Attributes:
        tasks: Scans, with regions where the data set is one of regions.
        labels: One row an embedded id; `patient_id` where patients are known, often `study_id` and `split`, and
            target columns.
        folder: Where relative paths of mask columns start.
        baselines: Name -> label columns that any encoder has to beat.
        acquisition: Numeric columns that say how a scan was made.
        subgroups: Columns to score by.
        notes: What was left out or decided, for the card.
        classes: Names of the values 0, 1, ... of the label maps, the background first; empty without label maps.
    """

    tasks: list[Task]
    labels: LabelTable
    folder: Path
    baselines: dict[str, tuple[str, ...]] = field(default_factory=dict)
    acquisition: tuple[str, ...] = ()
    subgroups: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)
    classes: tuple[str, ...] = ()


_DATASETS = NamedModules(__name__, "data set", helpers=("geometry", "label_maps", "tables"))
dataset_names, load_dataset = _DATASETS.names, _DATASETS.load
