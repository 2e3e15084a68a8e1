"""Pictures of a data set: distributions, and a contact sheet of its scans."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from voxelfm_hf.data.measure import AXES, PERCENTILES, TISSUES_HU
from voxelfm_hf.data.shards import shard_files
from voxelfm_hf.files import written_file
from voxelfm_hf.pictures.sheet import ACCENT as LETTER_COLOUR
from voxelfm_hf.pictures.sheet import PLANES

logger = logging.getLogger(__name__)

_WINDOWS_HU = {"lung": (-1350, 150), "soft": (-160, 240)}
_INK, _ACCENT = "#33414e", "#2f6f9f"
_COLOURS = ("#2f6f9f", "#d1793a", "#5a9a6f")
_LETTERS_AT = ((0.04, 0.5), (0.96, 0.5), (0.5, 0.95), (0.5, 0.05))  # as `Plane.letters`: left, right, top, bottom


def save_histograms(
    facts: Mapping[str, list], path: str | os.PathLike, *, reference: tuple[str, Mapping[str, list]] | None = None
) -> Path:
    """Draw the distributions of whatever the facts hold (see `characterise`) into one PNG.

    Args:
        facts: columns: "id", "original_spacing", "field_of_view_mm", "original_shape", "hu_percentiles", tissue
            fractions, "noise_hu", "region", "contrast", "source"...
        path: the PNG.
        reference: (name, facts) of a data set to compare with, drawn over it with dashes; both then as shares of scans.

    Returns:
        The path.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [panel for panel in _PANELS if panel[1](facts) is not None]
    rows = -(-len(panels) // 3)
    figure = Figure(figsize=(12, 3.1 * rows), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    name, others = reference or ("", {})
    if reference:
        about = f"filled or solid: these {len(facts['id'])} scans; dashed: {len(others['id'])} scans of {name}"
        figure.suptitle(about.replace("$", r"\$"), fontsize=10, color=_INK, x=0.01, ha="left")
    axes = np.atleast_1d(figure.subplots(rows, 3, squeeze=False)).ravel()
    for axis, (title, values, draw) in zip(axes, panels, strict=False):
        draw(axis, values(facts), values(others))
        axis.set_title(title, fontsize=10, color=_INK, loc="left")
        axis.tick_params(labelsize=8, colors=_INK)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    return _save(figure, Path(path))


def _by_axis(key: str) -> Any:
    return lambda facts: np.array(facts[key], float) if facts.get(key) else None


def _counts(key: str) -> Any:
    def count(facts: Mapping[str, list]) -> dict[str, int] | None:
        values = facts.get(key) or []
        if all(value is None for value in values):
            return None
        names, numbers = np.unique(["unknown" if v is None else str(v) for v in values], return_counts=True)
        order = np.argsort(-numbers, kind="stable")[:10]
        return {str(names[i]): int(numbers[i]) for i in order}

    return count


def _known(key: str) -> Any:
    def values(facts: Mapping[str, list]) -> np.ndarray | None:
        known = [v for v in facts.get(key) or [] if v is not None]
        return np.array(known, float) if known else None

    return values


def _tissues(facts: Mapping[str, list]) -> dict[str, np.ndarray] | None:
    return {name: np.array(facts[name], float) for name in TISSUES_HU} if facts.get("air") else None


def _draw_axes(axis: Any, table: np.ndarray, reference: np.ndarray | None) -> None:
    """One histogram a spatial axis, over common bins; axes of equal values share one."""
    both = table if reference is None else np.concatenate([table, reference])
    labels = dict(enumerate(AXES))
    for column in (1, 0):
        if np.allclose(both[:, column], both[:, column + 1], rtol=0.02):
            labels[column] += f", {labels.pop(column + 1)}"
    for column, label in labels.items():
        others = None if reference is None else reference[:, column]
        _draw_histogram(axis, table[:, column], others, _bins(both), colour=_COLOURS[column], label=label)
    axis.legend(fontsize=8, frameon=False)


def _draw_values(axis: Any, values: np.ndarray, reference: np.ndarray | None) -> None:
    both = values if reference is None else np.concatenate([values, reference])
    _draw_histogram(axis, values, reference, _bins(both), colour=_ACCENT)


def _bins(values: np.ndarray) -> np.ndarray:
    """Edges of 31 bins over the values; those of scans that are all alike stand in the middle bin."""
    low, high = float(values.min()), float(values.max())
    around = 0.0 if high - low > 1e-6 * abs(high) else 0.1 * abs(high) or 1.0
    return np.linspace(low - around, high + around, 32)


def _draw_histogram(
    axis: Any, values: np.ndarray, reference: np.ndarray | None, bins: np.ndarray, *, colour: str, label: str = ""
) -> None:
    """Numbers of scans; with a reference shares, as the two sets need not be of one size."""

    def draw(numbers: np.ndarray, **look: Any) -> None:
        weights = None if reference is None else np.full(len(numbers), 1 / len(numbers))
        axis.hist(numbers, bins=bins, weights=weights, **look)

    draw(values, histtype="stepfilled", alpha=0.55, color=colour, label=label)
    if reference is not None:
        draw(reference, histtype="step", linestyle="--", linewidth=1.4, color=colour)
    _label_numbers(axis.yaxis, shares=reference is not None)


def _draw_counts(axis: Any, counts: dict[str, int], reference: dict[str, int] | None) -> None:
    names = list(dict.fromkeys([*counts, *(reference or {})]))[::-1]

    def draw(numbers: Mapping[str, int], **look: Any) -> None:
        total = 1 if reference is None else sum(numbers.values())
        axis.barh(names, [numbers.get(name, 0) / total for name in names], **look)

    draw(counts, color=_ACCENT, alpha=0.55)
    if reference is not None:
        draw(reference, fill=False, edgecolor=_INK, linestyle="--", linewidth=1.4)
    if len(names) == 1:
        axis.set_ylim(-1, 1)
    _label_numbers(axis.xaxis, shares=reference is not None)


def _label_numbers(axis: Any, *, shares: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_label_text("share of scans" if shares else "scans", fontsize=8)
    if not shares:
        axis.set_major_locator(MaxNLocator(nbins="auto", integer=True))


def _draw_tissues(axis: Any, tissues: dict[str, np.ndarray], reference: dict[str, np.ndarray] | None) -> None:
    def draw(values: dict[str, np.ndarray], shift: float, colour: str, dash: str) -> None:
        line = {"color": colour, "linestyle": dash}
        axis.boxplot(
            list(values.values()),
            positions=np.arange(len(values)) + shift,
            widths=0.3,
            manage_ticks=False,
            whis=(5, 95),
            showfliers=False,
            boxprops=line,
            whiskerprops=line,
            capprops=line,
            medianprops={"color": _COLOURS[1]},
        )

    draw(tissues, 0.0 if reference is None else -0.18, _ACCENT, "-")
    if reference is not None:
        draw(reference, 0.18, _INK, "--")
    axis.set_xticks(np.arange(len(tissues)), [name.replace("_", "\n") for name in tissues])
    axis.set_ylim(0, 1)
    axis.set_ylabel("share of voxels", fontsize=8)


def _draw_percentiles(axis: Any, table: np.ndarray, reference: np.ndarray | None) -> None:
    """Median and 5 to 95 % band, over scans, of each HU percentile."""
    low, middle, high = np.percentile(table, (5, 50, 95), axis=0)
    axis.fill_between(PERCENTILES, low, high, color=_ACCENT, alpha=0.25, label="5 to 95 % of scans")
    axis.plot(PERCENTILES, middle, color=_ACCENT, label="median scan")
    if reference is not None:
        low, middle, high = np.percentile(reference, (5, 50, 95), axis=0)
        for edge in (low, high):
            axis.plot(PERCENTILES, edge, color=_INK, linestyle=":", linewidth=1)
        axis.plot(PERCENTILES, middle, color=_INK, linestyle="--")
    axis.set_xlabel("percentile of voxels", fontsize=8)
    axis.set_ylabel("HU", fontsize=8)
    axis.legend(fontsize=8, frameon=False)


# (title, what it shows of the facts or None, how)
_PANELS: tuple[tuple[str, Any, Any], ...] = (
    ("Original voxel spacing (mm)", _by_axis("original_spacing"), _draw_axes),
    ("Field of view (mm)", _by_axis("field_of_view_mm"), _draw_axes),
    ("Original size (voxels)", _by_axis("original_shape"), _draw_axes),
    ("Prepared size (voxels)", _by_axis("shape"), _draw_axes),
    ("Hounsfield units", _by_axis("hu_percentiles"), _draw_percentiles),
    ("Tissue (HU ranges)", _tissues, _draw_tissues),
    ("Noise in soft tissue (HU)", _known("noise_hu"), _draw_values),
    ("Body region (estimated)", _counts("region"), _draw_counts),
    ("Contrast agent (hint)", _counts("contrast"), _draw_counts),
    ("Source", _counts("source"), _draw_counts),
    ("Manufacturer", _counts("manufacturer"), _draw_counts),
    ("Reconstruction kernel", _counts("kernel"), _draw_counts),
)


def save_contact_sheet(folder: str | os.PathLike, path: str | os.PathLike, *, most: int = 24) -> Path | None:
    """Show the middle axial and coronal slice of some prepared scans, drawn with a fixed seed, and of how many.

    Args:
        folder: a prepared data set.
        path: the PNG.
        most: how many scans.

    Returns:
        The path; None if no scan can be read.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patheffects import withStroke

    scans, total = _some_scans(Path(folder), most)
    if not scans:
        return None
    columns = min(len(scans), 6)
    rows = -(-len(scans) // columns)
    figure = Figure(figsize=(2.1 * columns, 4.3 * rows), dpi=100, layout="constrained", facecolor="black")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2 * rows, columns, squeeze=False)
    for axis in axes.ravel():
        axis.set_axis_off()
    for index, (hu, spacing, region) in enumerate(scans):
        row, column = 2 * (index // columns), index % columns
        window = _WINDOWS_HU["lung" if "chest" in (region or "") else "soft"]
        planes = ((hu[len(hu) // 2], spacing[1] / spacing[2]), (hu[::-1, hu.shape[1] // 2], spacing[0] / spacing[2]))
        for offset, (plane, aspect) in enumerate(planes):
            axis = axes[row + offset, column]
            axis.imshow(plane, cmap="gray", vmin=window[0], vmax=window[1], aspect=aspect)
            for letter, (x, y) in zip(PLANES[offset].letters, _LETTERS_AT, strict=True):
                text = axis.text(x, y, letter, transform=axis.transAxes, fontsize=8, ha="center", va="center")
                text.set(color=LETTER_COLOUR, path_effects=[withStroke(linewidth=2, foreground="black")])
        axes[row, column].set_title(region or "", fontsize=8, color="white")
    figure.suptitle(f"{len(scans)} of {total} scans", fontsize=9, color="white")
    return _save(figure, Path(path))


def _some_scans(folder: Path, most: int) -> tuple[list[tuple[np.ndarray, Sequence[float], str | None]], int]:
    """Up to `most` scans from random row groups of random shards, and how many scans there are."""
    generator = np.random.default_rng(0)
    files = shard_files(folder)
    places = []
    total = 0
    for number, index in enumerate(generator.permutation(len(files))):
        try:
            shard = pq.read_metadata(files[index])
        except (OSError, pa.ArrowException):
            continue
        total += shard.num_rows
        if number >= most:
            continue
        groups = shard.num_row_groups
        places += [(files[index], int(group)) for group in generator.permutation(groups)]
    order = generator.permutation(len(places))
    scans: list[tuple[np.ndarray, Sequence[float], str | None]] = []
    a_group = max(1, -(-most // max(1, len(places))))
    for file, group in (places[i] for i in order):
        if len(scans) >= most:
            break
        try:
            with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
                table = parquet.read_row_group(group, ["volume", "shape", "spacing", "facts"])
        except (OSError, pa.ArrowException) as error:
            logger.warning("%s row group %d is left out of the picture: %s", file.name, group, error)
            continue
        for row in range(min(a_group, table.num_rows)):
            hu = np.frombuffer(table["volume"][row].as_buffer(), "<i2").reshape(table["shape"][row].as_py())
            facts = table["facts"][row].as_py() or {}
            scans.append((hu.copy(), table["spacing"][row].as_py(), facts.get("region")))
    return scans[:most], total


def _save(figure: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_file(path) as temporary:
        figure.savefig(temporary, format="png")
    return path
