"""`voxelfm search`: the scans of a feature store that are most like a given one."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from voxelfm_hf.cli.app import app, console, plain, quiet_libraries
from voxelfm_hf.cli.options import Point, parse_point, scan_options
from voxelfm_hf.cli.shared_options import with_options


@app.command()
@with_options(opening=scan_options)
def search(
    *,
    store: Annotated[Path, typer.Argument(help="Feature store of `voxelfm embed`.", metavar="STORE")],
    identifier: Annotated[
        str | None, typer.Option("--id", help="A scan or region of the store to compare with.")
    ] = None,
    scan: Annotated[
        Path | None, typer.Option(help="A new scan to compare with: a file or DICOM folder.", exists=True)
    ] = None,
    point: Point = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Model, where the store does not name it.")] = None,
    count: Annotated[int, typer.Option("--count", "-k", min=1, help="Number of answers.")] = 10,
    without: Annotated[
        list[str] | None, typer.Option(help="Id to leave out, such as other scans of the patient; may be repeated.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object an answer and line.")] = False,
    opening: dict[str, Any],
) -> None:
    """The scans or regions of a store most like one of them or a new one, by cosine similarity of CLS vectors.

    Similar often means scanned alike (spacing, kernel, field of view) rather than a similar disease. Needs faiss-cpu.

    Example: voxelfm search features --scan chest.nii.gz

    Example: voxelfm search nodules --id chest.nii.gz#3 --without chest.nii.gz#1
    """
    from voxelfm_hf.store import FeatureStore

    if (identifier is None) == (scan is None):
        raise typer.BadParameter("say what to search with: --id or --scan")
    of_scan = {"--point": point, "--model": model, "--spacing": opening["spacing"], "--assume-hu": opening["assume_hu"]}
    needless = [option for option, value in of_scan.items() if value]
    if scan is None and needless:
        raise typer.BadParameter(f"{needless[0]} says how the scan of --scan is looked at, and --id needs none")
    region = parse_point(point, scan.name) if scan and point else None
    opened = FeatureStore(store)

    from voxelfm_hf.eval.search.index import ScanIndex
    from voxelfm_hf.eval.search.query import query_vector, stored_vector
    from voxelfm_hf.volumes import read_volume

    quiet_libraries()
    index = ScanIndex.of_store(opened)
    left_out = list(without or [])
    if identifier is not None:
        query = stored_vector(opened, identifier)
        left_out.append(identifier)
    else:
        assert scan is not None
        volume = read_volume(scan, **opening)
        query = query_vector(opened, volume, region=region, model=model)
    for match in index.search(query, k=count, without=left_out):
        if as_json:
            print(json.dumps({"id": match.id, "similarity": round(match.similarity, 4)}))
        else:
            console.print(f"{match.similarity:.3f}  {plain(match.id)}")
