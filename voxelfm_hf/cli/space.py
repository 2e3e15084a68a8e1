"""`voxelfm space`: the browser demo on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from voxelfm_hf.cli.app import app, console, quiet_libraries
from voxelfm_hf.cli.options import ModelOption
from voxelfm_hf.hub import EMBEDDED


@app.command()
def space(
    model: ModelOption = EMBEDDED,
    store: Annotated[
        Path | None, typer.Option(help="Feature store to search for similar scans.", exists=True, file_okay=False)
    ] = None,
    probe: Annotated[str | None, typer.Option("--probe", "-p", help="Probe folder or Hub id to ask.")] = None,
    report: Annotated[str | None, typer.Option("--report", help="Report model, folder or Hub id, to ask.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets others in.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="Port; by default the first free one from 7860.")] = None,
) -> None:
    """A page in the browser: scroll a scan, see patch features over it, click to find what looks alike.

    One scan is read or computed at a time, whoever asks; uploads are deleted once they are read.

    Example: voxelfm space --store features --probe probe --report report/stage2/model
    """
    from voxelfm_hf.space.app import Page, serve, stop_as_by_keyboard

    quiet_libraries()
    page = Page(model, store=store, probe=probe, report=report)
    stop_as_by_keyboard()
    served = serve(page, host=host, port=port)
    console.print(f"{served.local_url} (stop with Ctrl+C)")
    served.block_thread()
