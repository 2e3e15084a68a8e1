"""Speed and memory against plain implementations: `python -m voxelfm_hf.eval.speed model | profile | memory | ...`.

Every line is a ratio of medians taken alternately in one process, or the peak memory of a process of its own.
"""

import sys
from typing import Annotated, Literal

import typer

from voxelfm_hf.command import typer_main
from voxelfm_hf.volumes.errors import VoxelFMError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)


def _there(device: str) -> str:
    """The device, where there is one."""
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise VoxelFMError("--device cuda needs a GPU that torch can use, and there is none.")
    return device


Rounds = Annotated[int, typer.Option(help="Alternating repetitions; the medians count.", min=1)]
Shape = Annotated[tuple[int, int, int], typer.Option(help="Voxels (D H W) of the synthetic CT.")]
Dtypes = Annotated[list[str], typer.Option(help="bf16 or fp32; may be repeated.")]
Patches = Annotated[list[int], typer.Option(help="Patch tokens; may be repeated.")]
Device = Annotated[Literal["cpu", "cuda"], typer.Option(help="Where to compute.", callback=_there)]


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"


@app.command()
def model(
    patches: Patches = [512, 1024, 2048, 4096],  # noqa: B006  (typer reads it)
    dtype: Dtypes = ["bf16", "fp32"],  # noqa: B006
    rounds: Rounds = 3,
    device: Device = "cpu",
) -> None:
    """Forward of the base model against an eager twin with a Conv3d."""
    from voxelfm_hf.eval.speed.model import against_twin

    for name in dtype:
        for count in patches:
            typer.echo(against_twin(name, count, rounds=rounds, device=device))


@app.command()
def profile(patches: Patches = [4096], dtype: Dtypes = ["bf16", "fp32"]) -> None:  # noqa: B006
    """Where the time of a forward goes."""
    from voxelfm_hf.eval.speed.model import share_outside_products, time_by_operator

    for name in dtype:
        for count in patches:
            shares = time_by_operator(name, count)
            typer.echo(
                f"profile, {name}, {count} patches: {share_outside_products(shares):.1%} outside matrix products and "
                f"attention; " + ", ".join(f"{key} {share:.1%}" for key, share in [*shares.items()][:8])
            )


@app.command()
def memory(
    patches: Patches = [6000, 12000, 25000],  # noqa: B006
    dtype: Annotated[str, typer.Option(help="bf16 or fp32.")] = "bf16",
    layers: Annotated[int | None, typer.Option(help="Blocks to run; by default all.")] = None,
    device: Device = "cpu",
) -> None:
    """Peak memory of a process that encodes one volume, by number of patches; with --device cuda, of the GPU."""
    from voxelfm_hf.eval.speed.model import forward_memory

    for count in patches:
        before, peak = forward_memory(count, dtype=dtype, layers=layers, device=device)
        typer.echo(
            f"memory, {dtype}, {count} patches: peak {_megabytes(peak)}, of which {_megabytes(peak - before)} in the "
            f"forward ({(peak - before) / count / 1e3:.0f} kB a patch)"
        )


@app.command()
def background(shape: Shape = (160, 256, 256), rounds: Rounds = 3) -> None:
    """The background box against a dense convolution."""
    from voxelfm_hf.eval.speed.prepare import background_speed

    typer.echo(background_speed(shape, rounds=rounds))


@app.command()
def prepare(shape: Shape = (160, 256, 256), rounds: Rounds = 3) -> None:
    """Crop, resampling, patch budget and normalisation against the published way."""
    from voxelfm_hf.eval.speed.prepare import processor_speed

    typer.echo(processor_speed(shape, rounds=rounds))


@app.command("prepare-memory")
def prepare_memory(shape: Shape = (300, 512, 512)) -> None:
    """Memory that preparing a scan needs beyond the scan."""
    from voxelfm_hf.eval.speed.prepare import preparation_memory

    box, whole = preparation_memory(shape)
    size = "x".join(map(str, shape))
    typer.echo(f"background box, {size}: {_megabytes(box)} beyond the volume")
    typer.echo(f"whole preparation, {size}: {_megabytes(whole)} beyond the volume, its output included")


@app.command()
def reading(shape: Shape = (300, 512, 512), rounds: Rounds = 3) -> None:
    """Reading scans against `gzip -dc` and GDCM."""
    from voxelfm_hf.eval.speed.reading import measure_reading, missing_encoders

    for line in measure_reading(shape, rounds=rounds):
        typer.echo(line)
    if missing := missing_encoders():
        typer.echo(f"not measured, as pydicom has no encoder: {', '.join(missing)}; pip install 'voxelfm-hf[test]'")


@app.command()
def embed(
    shape: Shape = (150, 512, 512),
    scans: Annotated[int, typer.Option(help="How many scans.", min=1)] = 20,
    max_patches: Annotated[int, typer.Option(help="Patch budget.", min=1)] = 8000,
    workers: Annotated[int, typer.Option(help="Processes that read ahead.", min=0)] = 1,
) -> None:
    """Share of `voxelfm embed` outside the model."""
    from voxelfm_hf.eval.speed.embed import embed_share

    typer.echo(embed_share(shape, scans=scans, max_patches=max_patches, workers=workers))


@app.command()
def probes(
    scans: Annotated[int, typer.Option(help="Rows of the store.", min=20)] = 1000,
    findings: Annotated[int, typer.Option(help="Yes/no labels.", min=1)] = 18,
    seeds: Annotated[int, typer.Option(help="Seeds of subsets and fits.", min=1)] = 5,
    width: Annotated[int, typer.Option(help="Length of a CLS vector.", min=1)] = 864,
) -> None:
    """A grid of linear probes, seven label fractions, fitted side by side."""
    from voxelfm_hf.eval.speed.probes import grid_speed

    typer.echo(grid_speed(scans=scans, labels=findings, seeds=seeds, width=width))


@app.command()
def search(
    rows: Annotated[int, typer.Option(help="Rows of the store.", min=20)] = 100_000,
    queries: Annotated[int, typer.Option(help="Queries, one at a time.", min=1)] = 100,
    width: Annotated[int, typer.Option(help="Length of a CLS vector.", min=1)] = 864,
) -> None:
    """An index over a store of random vectors: building it, and the time of a query."""
    from voxelfm_hf.eval.speed.search import search_speed

    typer.echo(search_speed(rows=rows, width=width, queries=queries))


@app.command()
def train(
    rounds: Rounds = 3,
    workers: Annotated[int, typer.Option(help="Loader processes.")] = 0,
    prototypes: Annotated[list[int], typer.Option(help="Prototypes K of the head; may be repeated.")] = [8192, 65536],  # noqa: B006
    full: Annotated[bool, typer.Option("--full", help="The whole base recipe, not one reduced for CPUs.")] = False,
    batch: Annotated[int, typer.Option(help="Volumes of a micro-batch.", min=1)] = 2,
    device: Device = "cpu",
) -> None:
    """A pre-training step, its masks and its loader against the published step built plainly."""
    from voxelfm_hf.eval.speed.training import loader_speed, masking_speed, published_recipe, reduced_recipe, step_speed

    typer.echo(masking_speed(rounds=rounds))
    make_recipe = published_recipe if full else reduced_recipe
    for count in prototypes:
        speed, parts = step_speed(make_recipe(batch_size=batch, num_prototypes=count), rounds=rounds, device=device)
        typer.echo(speed)
        typer.echo("of a step: " + ", ".join(f"{name} {share:.1%}" for name, share in parts.items()))
    typer.echo(f"loader, {workers} worker(s): {loader_speed(num_workers=workers):.2f} volumes/s")


if __name__ == "__main__":
    sys.exit(typer_main(app, "python -m voxelfm_hf.eval.speed")())
