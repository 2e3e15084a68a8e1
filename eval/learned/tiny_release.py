"""The embedded small model from its run, as a folder with its card.

    python -m voxelfm_hf.eval.learned.tiny_release RUN --results DIR --out ASSETS
    python -m voxelfm_hf.eval.learned.tiny_release ASSETS     renders the card again, where its template has changed

RUN is a run folder of `voxelfm_hf.training.pretrain` on the data of `voxelfm_hf.training.pretrain.tiny_data`; DIR
holds what `voxelfm_hf.eval.learned` wrote for its teacher, with and without `--curve`. What the card says is kept in
its card.json.
"""

import json
import os
import platform
import shutil
import sys
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import ModelCard

from voxelfm_hf.cards import backbone_card
from voxelfm_hf.command import ModuleParser, one_sentence_errors
from voxelfm_hf.files import written_file, written_folder
from voxelfm_hf.hub import load
from voxelfm_hf.training.pretrain.tiny_data import SOURCES
from voxelfm_hf.volumes.errors import ModelError

MAX_MEGABYTES = 8
FACTS = "card.json"
# What a user's chest CT is scaled down to, so that it embeds in seconds on two cores.
MAX_PATCHES = 4000
COMMANDS = (
    "python -m voxelfm_hf.training.pretrain.tiny_data CT --out DATA",
    "accelerate launch -m voxelfm_hf.training.pretrain DATA/recipe.yaml --output_dir RUN",
)
SUMMARY = (
    "A small VoxelFM encoder, trained on two CPU cores so that the package works out of the box. It is no substitute "
    "for the published weights."
)
LIMITS = (
    "It has seen lung nodule crops, head-and-neck CT at about 4 mm and synthetic chests: other anatomy, finer detail "
    "and real pathology beyond nodules are outside what it knows. Results on phantoms are synthetic."
)
EVALUATION = "python -m voxelfm_hf.eval.learned RUN/teacher --ct CT --out RESULTS"
CURVE = "python -m voxelfm_hf.eval.learned RUN/teachers --ct CT --out RESULTS --curve"


def write_release(run: Path, results: Path, out: Path) -> Path:
    """Writes weights (bfloat16), configuration, processor, pictures and the generated card.

    Args:
        run: Run folder with `teacher/`, `data.json`, `environment.json`, `recipe.yaml`, `log.jsonl`.
        results: Folder with results.md, results.png, curve.md, curve.png.
        out: Folder to write, new or empty.

    Raises:
        ModelError: something of the run or the results is missing, or the weights are larger than they may be.
    """
    try:
        data, environment = (json.loads((run / name).read_text()) for name in ("data.json", "environment.json"))
        recipe = yaml.safe_load((run / "recipe.yaml").read_text())
        steps = max(json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines())
        speeds = [json.loads(line) for line in (run / "timing.jsonl").read_text().splitlines()]
        tables = {name: (results / f"{name}.md").read_text() for name in ("results", "curve")}
        pictures = [run / "losses.png", results / "results.png", results / "curve.png"]
        for picture in pictures:
            picture.stat()
    except OSError as error:
        raise ModelError(f"{error.filename} is missing: finish the run and both evaluations first") from None
    model, processor = load(run / "teacher")
    model = model.to(torch.bfloat16)
    processor.max_patches = MAX_PATCHES
    batch = recipe["run"]["total_batch"]
    with written_folder(out) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        for code in folder.glob("*.py"):
            code.unlink()  # the package has them
        size = (folder / "model.safetensors").stat().st_size
        if size > MAX_MEGABYTES * 1_000_000:
            raise ModelError(f"the weights take {size / 1e6:.1f} MB, more than {MAX_MEGABYTES}")
        for picture in pictures:
            shutil.copy(picture, folder)
        said: dict[str, Any] = dict(
            name="VoxelFM tiny",
            summary=SUMMARY,
            limits=LIMITS,
            sources=[{**asdict(SOURCES[source["name"]]), **source} for source in data["sources"]],
            skipped=f"{data['skipped']} volumes were skipped: one side has too few voxels (`min_side` in the recipe).",
            steps=steps,
            batch=batch,
            # from the speeds between log entries, which lie equally many steps apart; waiting for data included
            hours=steps * batch * sum(1 / s["volumes_per_second"] for s in speeds) / len(speeds) / 3600,
            device=f"{environment['device']} (processes: {environment['processes']}, cores: {os.cpu_count()})",
            machine=f"{os.cpu_count()} cores of {platform.machine()}",
            precision=recipe["run"]["mixed_precision"],
            parameters=f"{model.num_parameters():,}",
            hidden_size=model.config.hidden_size,
            depth=model.config.num_hidden_layers,
            heads=model.config.num_attention_heads,
            patch_size=model.config.patch_size,
            commands=COMMANDS,
            evaluation_command=EVALUATION,
            curve_command=CURVE,
            results=tables["results"],
            curve=tables["curve"],
            date=date.today().isoformat(),
            licence_note="Weights: Apache-2.0, trained on data under the licences above (attribution required).",
        )
        (folder / FACTS).write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
        write_card(folder)
    return out


def write_card(folder: Path) -> Path:
    """Renders README.md of a release from its card.json; benchmark scores in the header of the one there are kept.

    Raises:
        ModelError: it has none.
    """
    if not (folder / FACTS).is_file():
        raise ModelError(f"{folder} has no {FACTS}: make the release again from its run")
    card = folder / "README.md"
    said = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    scores = ModelCard.load(card).data.eval_results if card.is_file() else None
    with written_file(card) as temporary:
        temporary.write_text(backbone_card(eval_results=scores or (), **said), encoding="utf-8")
    return card


@one_sentence_errors
def main() -> None:
    parser = ModuleParser("voxelfm_hf.eval.learned.tiny_release", __doc__)
    parser.add_argument("folder", type=Path, help="finished run, or a release whose card is rendered again")
    parser.add_argument("--results", type=Path, help="folder of the two evaluations of the run")
    parser.add_argument("--out", type=Path, help="folder to write, new or empty")
    options = parser.parse_args()
    if (options.results is None) != (options.out is None):
        parser.error("a release takes both --results and --out")
    print(
        write_card(options.folder)
        if options.out is None
        else write_release(options.folder, options.results, options.out)
    )


if __name__ == "__main__":
    sys.exit(main())
