"""The `voxelfm` command. Every subcommand parses, calls one function and prints.

Exit codes: 0 all done, 1 a programming error (with a traceback), 2 bad input or options, 3 part of a batch failed.
"""

from pathlib import Path
from typing import Annotated

import typer

# Importing registers the commands, in the order of --help.
from voxelfm_hf.cli import scans  # noqa: F401  # isort: skip
from voxelfm_hf.cli import probe  # noqa: F401  # isort: skip
from voxelfm_hf.cli import search  # noqa: F401  # isort: skip
from voxelfm_hf.cli import finetune  # noqa: F401  # isort: skip
from voxelfm_hf.cli import report  # noqa: F401  # isort: skip
from voxelfm_hf.cli import data  # noqa: F401  # isort: skip
from voxelfm_hf.cli import benchmark  # noqa: F401  # isort: skip
from voxelfm_hf.cli import confounds  # noqa: F401  # isort: skip
from voxelfm_hf.cli import release  # noqa: F401  # isort: skip
from voxelfm_hf.cli import space  # noqa: F401  # isort: skip
from voxelfm_hf.cli.app import app, console, quiet_libraries
from voxelfm_hf.command import typer_main


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for everything the demo makes.")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Which synthetic patient.")] = 0,
) -> None:
    """The main job on a synthetic CT: written as NIfTI and DICOM, embedded, compared, drawn.

    Example: voxelfm demo --out demo
    """
    from voxelfm_hf.demo import run_demo

    quiet_libraries()
    run_demo(out, seed=seed, say=lambda text: console.print(text))


main = typer_main(app, "voxelfm")
