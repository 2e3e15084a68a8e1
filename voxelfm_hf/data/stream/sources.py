"""A data set of a stream: how a recipe or a caller names it, and what readers find once it is open."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np

from voxelfm_hf.data.rows import ColumnMap
from voxelfm_hf.volumes import RecipeError


@dataclass(frozen=True)
class StreamSource:
    """One data set of a stream.

    Attributes:
        data: a folder (prepared Parquet shards, or scans of any format), a file (Parquet, CSV or JSON lines of paths,
            WebDataset tar), a list of files or URLs, a glob (over HTTP only train-*-of-00012.parquet), a data set on
            the Hub, or a `datasets` object.
        weight: share of the samples drawn from it; by default its number of scans (all sources or none).
        columns: which column holds what (`ColumnMap`), for data sets that were not prepared here.
        name: for messages and samples; by default derived from `data`.
        config, split, revision: of a data set on the Hub.
        crop_background: for scans that were not prepared: crop to the body on the fly.
        assume_hu: for scans that were not prepared: take values as HU even if they do not look like it.
    """

    data: Any
    weight: float | None = None
    columns: ColumnMap | Mapping[str, str | None] | None = None
    name: str | None = None
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    crop_background: bool = True
    assume_hu: bool = False

    @classmethod
    def of(cls, value: Any) -> "StreamSource":
        """A source from whatever a recipe or a caller gives: a source, a mapping of its fields, or just the data."""
        if isinstance(value, cls):
            return value
        if isinstance(value, Mapping) and type(value).__module__.split(".")[0] != "datasets":
            known = [field.name for field in fields(cls)]
            unknown = sorted(set(value) - set(known))
            if unknown:
                raise RecipeError(f"a data source has an unknown field {unknown[0]!r}; it knows {', '.join(known)}.")
            if "data" not in value:
                raise RecipeError("a data source needs the field data: a folder, file, URL or data set.")
            return cls(**value)
        return cls(value)


class OpenSource(Protocol):
    """A source that was opened: it knows its units and reads them."""

    name: str
    count: int | None  # scans in it, where that is known without reading it
    units: int
    first_rows: np.ndarray | None  # (units + 1,) rows before each unit; None where rows only come one after the other
    columns: ColumnMap
    prepared: bool  # made by `prepare`
    assume_hu: bool

    def read(self, unit: int) -> "Sequence[Mapping[str, Any]] | Iterator[Mapping[str, Any]]":
        """The rows of one unit, not decoded."""

    def label(self, unit: int) -> str:
        """The unit's name for messages."""

    def unit_id(self, unit: int) -> str | None:
        """The id of the only scan in a unit, where that is known without reading it."""

    def unit_path(self, unit: int) -> str | None:
        """The file or URL of the only scan in a unit, where it is one."""

    def sample(self, row: Mapping[str, Any], fallback: str, *, min_side: int) -> dict[str, Any]:
        """Decode a row; ScanError says why it must be skipped."""
