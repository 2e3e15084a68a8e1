"""The data set card: README.md with the YAML header of the Hub, every number from description.json."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from voxelfm_hf.cards import NO_LICENSE, TAGS, render_card
from voxelfm_hf.data.measure import AXES, CONTRAST_NOTE, REGION_NOTE, TISSUES_HU
from voxelfm_hf.data.shards import COLUMNS
from voxelfm_hf.files import state_of, written_file
from voxelfm_hf.markdown import cell

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_MARKS = ("<!-- origin, terms and citation: what you write below this line is kept -->", "<!-- end of what is kept -->")


def write_card(
    folder: Path, description: Mapping[str, Any], pictures: Sequence[Path], *, license: str | None = None
) -> Path:
    """Write README.md; of an earlier card the license (when none is given) and the text between the marks are kept.

    Args:
        folder: of the card.
        description: as `characterise.describe` returns it.
        pictures: PNGs to show, inside the folder.
        license: identifier of the Hub, such as "cc-by-4.0".

    Returns:
        The path of the card.
    """
    from huggingface_hub import DatasetCard, DatasetCardData

    card_file = folder / "README.md"
    own_text = ""
    if card_file.is_file():
        earlier = DatasetCard.load(card_file, ignore_metadata_errors=True)
        license = license or earlier.data.license
        own_text = _own_text(earlier.text)
    configs: dict[str, Any] = {}
    if description["prepared"]:
        files = [{"split": "train", "path": "data/*.parquet"}]
        # `datasets` finds what it has read of a folder again by the folder's name and this header, not by its files.
        state = state_of((folder / "data").glob("*.parquet"))
        configs["configs"] = [{"config_name": "default", "data_files": files, "description": state}]
    header = DatasetCardData(
        license=license or NO_LICENSE,
        task_categories=["image-feature-extraction"],
        tags=[*TAGS, "voxelfm"],
        size_categories=[next((name for limit, name in _SIZES if description["scans"] < limit), "n>1M")],
        pretty_name=description["name"],
        **configs,
    )
    values = {
        "description": description,
        "columns": ", ".join(f"`{name}`" + (f" ({about})" if about else "") for name, (_, about) in COLUMNS.items()),
        "own_text": f"{_MARKS[0]}\n{own_text}{_MARKS[1]}",
        "geometry": _geometry(description),
        "tissues": _tissues(description),
        "counts": {
            title: {cell(name): number for name, number in description[key].items()}
            for key, title in (
                ("source", "Source"),
                ("region", "Body region (estimated)"),
                ("contrast", "Contrast agent (hint)"),
                ("original_orientation", "Original orientation"),
                ("manufacturer", "Manufacturer"),
                ("kernel", "Reconstruction kernel"),
            )
            if description.get(key)
        },
        "pictures": [path.relative_to(folder).as_posix() for path in pictures],
        "region_note": REGION_NOTE,
        "contrast_note": CONTRAST_NOTE,
    }
    card = render_card("dataset", header, values, optional=("tissues", "counts", "pictures"), of_data=True)
    with written_file(card_file) as temporary:
        temporary.write_text(card, encoding="utf-8")
    return card_file


def _own_text(card: str) -> str:
    """What the owner of the data wrote between the marks."""
    start, end = (card.find(mark) for mark in _MARKS)
    return card[start + len(_MARKS[0]) : end].lstrip("\n") if 0 <= start < end else ""


def _geometry(description: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Rows of a table: what, "median (5 % to 95 %)" for z, y, x."""
    names = {
        "original_spacing_mm": "original spacing (mm)",
        "field_of_view_mm": "field of view (mm)",
        "original_shape_voxels": "original size (voxels)",
        "spacing_mm": "prepared spacing (mm)",
        "shape_voxels": "prepared size (voxels)",
    }
    rows = []
    for key, title in names.items():
        if key in description:
            rows += [(f"{title}, {axis}", _spread(description[key][axis])) for axis in AXES]
    if description.get("noise_hu"):
        known = description["noise_hu"]["known"]
        rows.append((f"noise in soft tissue (HU), known for {known}", _spread(description["noise_hu"])))
    return rows


def _tissues(description: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    fractions = description.get("tissue_fractions") or {}
    rows = []
    for name, (low, high) in TISSUES_HU.items():
        if name in fractions:
            span = f"below {high}" if low < -30000 else f"from {low}" if high > 30000 else f"{low} to {high}"
            rows.append((name.replace("_", " "), span, _spread(fractions[name], scale=100)))
    return rows


def _spread(values: Mapping[str, float], scale: float = 1) -> str:
    middle, low, high = (values[key] * scale for key in ("median", "p5", "p95"))
    return f"{middle:.4g} ({low:.4g} to {high:.4g})"
