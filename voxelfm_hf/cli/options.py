"""Options and arguments that several subcommands take, and what their text means."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from voxelfm_hf.files import refuse_used
from voxelfm_hf.volumes.errors import ScanError
from voxelfm_hf.volumes.geometry import parse_spacing

if TYPE_CHECKING:
    from voxelfm_hf.scan_list import Region, Task

ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="Model folder or Hub id; tiny is the small model inside the package.")
]
Point = Annotated[
    str | None, typer.Option(help="X,Y,Z,EDGE of a cube in every scan given, LPS mm, where regions are looked at.")
]
MaxPatches = Annotated[int | None, typer.Option(min=1, help="Patch budget of a whole scan; more detail, more time.")]
Pad = Annotated[bool, typer.Option("--pad", help="Pad scans thinner than one patch by their edge values.")]
IdColumn = Annotated[str | None, typer.Option(help="Column that names the scan, as the store or the inputs do.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a scan and line.")]
AssumeHU = Annotated[bool, typer.Option("--assume-hu", help="Take the values as HU even if they do not look like it.")]
Series = Annotated[int | None, typer.Option(help="Series of a DICOM folder, by the number that `voxelfm info` lists.")]


def scan_options(
    assume_hu: AssumeHU = False,
    spacing: Annotated[
        str | None,
        typer.Option(help="Voxel size z,y,x in mm of .npy files that have no sidecar, for example 2.5,0.7,0.7."),
    ] = None,
) -> dict[str, Any]:
    """How scans are read: arguments of `read_volume`."""
    return {"assume_hu": assume_hu, "spacing": _spacing(spacing)}


def _spacing(text: str | None) -> tuple[float, float, float] | None:
    if text is None:
        return None
    try:
        return parse_spacing(text)
    except ValueError:
        raise ScanError(f"--spacing takes three numbers z,y,x in mm, for example 2.5,0.7,0.7, got {text}") from None


def size_options(
    max_patches: MaxPatches = None,
    region_size: Annotated[
        int | None, typer.Option(min=1, help="Voxels along a region's edge; by default the model's training crop.")
    ] = None,
    pad: Pad = False,
) -> dict[str, Any]:
    """In what size scans and regions are embedded: arguments of `EmbedOptions`."""
    return {"max_patches": max_patches, "region_size": region_size, "pad": pad}


def scan_tasks(
    inputs: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Scans, folders to search for scans, or CSV lists (path, id).",
            metavar="INPUT",
            callback=lambda paths: some_exist(paths or []),
        ),
    ] = None,
    regions: Annotated[
        Path | None, typer.Option(help="CSV of cubes in place of whole scans: scan,x,y,z,edge_mm[,id], LPS mm.")
    ] = None,
) -> "list[Task]":
    """What INPUT… and --regions ask for.

    Raises:
        typer.BadParameter: they ask for nothing.
        ScanError, LabelError: see `list_tasks`.
    """
    from voxelfm_hf.scan_list import list_tasks

    if not inputs and regions is None:
        raise typer.BadParameter("name scans, folders or a CSV list, or --regions")
    return list_tasks(inputs or [], regions=regions)


def some_exist(paths: list[Path]) -> list[Path]:
    """The paths, of which single ones may be missing: those fail by themselves while the rest goes on.

    Raises:
        ScanError: all of them are missing.
    """
    if paths and not any(path.exists() for path in paths):
        raise ScanError(f"{paths[0]}: no such file or folder; check the path.")
    return paths


def new_folder(path: Path) -> Path:
    """Callback of an option: refuses a folder in use before anything is read or computed."""
    refuse_used(path)
    return path


def parse_point(text: str, identifier: str) -> "Region":
    """The region of --point in a scan."""
    from voxelfm_hf.scan_list import Region

    try:
        x, y, z, edge = (float(part) for part in text.split(","))
    except ValueError:
        raise ScanError(f"--point takes X,Y,Z,EDGE in LPS mm, for example 12,-40,310,24, got {text}") from None
    return Region(f"{identifier}#point", (x, y, z), edge)
