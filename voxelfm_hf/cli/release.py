"""`voxelfm push`: models, probes, adapters and prepared data to the Hub."""

import json
from pathlib import Path
from typing import Annotated

import typer

from voxelfm_hf.cli.app import app, console, plain, quiet_libraries


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="Folder of a model, probe, adapter or prepared data.", metavar="DIR")],
    repo_id: Annotated[str, typer.Argument(help="Repository on the Hub: user/name.", metavar="REPO_ID")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Build and check the release, upload nothing.")] = False,
    allow_head: Annotated[
        bool, typer.Option("--allow-head", help="Push prepared scans of the head, which can show a face.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Checks a release and uploads it in one commit.

    The release holds safetensors, configuration, the code that loads it, card and licence: where the card says
    apache-2.0 its text is added, that of any other licence has to lie in DIR/LICENSE. Before anything is sent it is
    loaded in clean processes with and without this package, and searched for pickles, local paths and patient data.

    Example: voxelfm push probe user/nodule-probe --dry-run
    """
    from voxelfm_hf.release.upload import push as push_release

    quiet_libraries()
    pushed = push_release(folder, repo_id, private=private, dry_run=dry_run, allow_head=allow_head)
    if as_json:
        print(json.dumps(vars(pushed)))
        return
    for name, size in pushed.files.items():
        console.print(f"{size / 1e6:10.2f} MB  {plain(name)}")
    if pushed.left_out:
        console.print(f"left out: {plain(', '.join(pushed.left_out))}")
    done = pushed.url or f"{pushed.kind}: ready for {repo_id}, nothing was sent"
    console.print(plain(done))
