"""Runs the commands behind the numbers of the documentation and keeps what they say: `python docs/measure.py NAME…`.

Each name of `RUNS` stands for the commands of one table. What they print or write is cut to what tables show and kept
in docs/results/ with date, commit, machine and time; `python docs/make_tables.py` turns that into README.md and
docs/results.md. Run it in a clean checkout. Without a name it lists them.
"""

import argparse
import csv
import json
import os
import platform
import resource
import subprocess
import sys
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch

DOCS = Path(__file__).parent
KEPT = DOCS / "results"
RUNS_FILE = KEPT / "runs.json"
TABLES = {"results.csv": "", "confounds.csv": "", "comparisons.csv": "-compared"}
COLUMNS = (
    "encoder", "second", "stratum", "stage", "task", "what", "target", "metric", "value", "difference", "low", "high",
    "p_value", "p_holm", "chance", "n", "fraction", "train_rows", "seconds", "peak_memory_mb", "trainable_parameters",
)  # fmt: skip
BENCHMARK = "voxelfm benchmark"
SPEED = "python -m voxelfm_hf.eval.speed"
PHANTOM_ACQUISITION = "kernel,contrast,noise_hu,slice_thickness,spacing_z,field_of_view_mm_y"
PHANTOM_TARGETS = "--target emphysema --target pleural_effusion --target fat_mm"
# $CT, $PHANTOMS, $REPORTS, $OUT and $WORK are filled in by the shell and shown without the dollar.
RUNS = {
    "lidc": [f"{BENCHMARK} lidc --data $CT --out $OUT"],
    "openkbp": [f"{BENCHMARK} openkbp --data $CT --quick --out $OUT"],
    "openkbp_centres": [f"{BENCHMARK} openkbp_centres --data $CT --quick --out $OUT"],
    "phantoms": [f"{BENCHMARK} phantoms --data $PHANTOMS --quick --out $OUT"],
    "phantom_lesions": [f"{BENCHMARK} phantom_lesions --data $PHANTOMS --quick --out $OUT"],
    "lidc_finetuning": [f"{BENCHMARK} lidc_finetuning --data $CT --out $OUT"],
    "confounds_lidc": [
        "voxelfm confounds $WORK/lidc/stores/tiny-???????? $CT --dataset lidc --target malignant --target diameter_mm "
        "--out $OUT"
    ],
    "confounds_phantoms": [
        "python -m voxelfm_hf.data.phantom $OUT/set --count 400 --scans-each 2 --shape 64 72 72",
        "voxelfm embed $OUT/set/images --out $OUT/store",
        f"voxelfm confounds $OUT/store $OUT/set/labels.csv --id-column file --allow-missing --acquisition "
        f"{PHANTOM_ACQUISITION} {PHANTOM_TARGETS} --out $OUT",
    ],
    "learned": ["python -m voxelfm_hf.eval.learned tiny --ct $CT --out $OUT"],
    "reports": [f"{BENCHMARK} reports --out $OUT"],
    "labeller": ["python -m voxelfm_hf.eval.labeller $REPORTS"],
    **{
        f"speed_{name}": [f"{SPEED} {words}"]
        for name, words in {
            "model": "model --patches 512 --patches 1024 --patches 2048",
            "profile": "profile",
            "memory": "memory",
            "background": "background",
            "prepare": "prepare",
            "prepare_memory": "prepare-memory",
            "reading": "reading",
            "embed": "embed --max-patches 4000",
            "train": "train --rounds 5",
            "probes": "probes",
            "search": "search",
        }.items()
    },
    "gpu_model": [f"{SPEED} model --device cuda --dtype bf16 --patches 512 --patches 4096 --patches 12000 --rounds 10"],
    "gpu_memory": [f"{SPEED} memory --device cuda --patches 25000"],
    "gpu_train": [f"{SPEED} train --device cuda --full --batch 8 --prototypes 65536 --workers 8 --rounds 2"],
    "gpu_pretrain": [
        "python -m voxelfm_hf.data.phantom $OUT/set --count 64 --shape 112 128 128",
        "voxelfm prepare $OUT/set/images --out $OUT/shards",
        "accelerate launch -m voxelfm_hf.training.pretrain base --data $OUT/shards --output_dir $OUT/run --min_side 16 "
        "--run.total_steps 12 --run.total_batch 64 --run.batch_size 32 --run.num_workers 14 --run.log_every 2 "
        "--run.checkpoint_every 12 --optimizer.warmup_steps 4",
        "tail -n 3 $OUT/run/timing.jsonl",
    ],
}


def measure(name: str, places: dict[str, str]) -> None:
    """Runs the commands of one name and keeps their tables, or what they print where they write none."""
    out = Path(places["WORK"], name)
    places = places | {"OUT": str(out)}
    threads = {} if name.startswith("speed") else {"OMP_NUM_THREADS": "1"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | places | threads | {"PATH": path}
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    printed = [
        subprocess.run(["bash", "-c", command], env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
        for command in RUNS[name]
    ]
    seconds = time.monotonic() - begun
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    KEPT.mkdir(exist_ok=True)
    written = [source for source in TABLES if (out / source).is_file()]
    for source in written:
        _keep_table(out / source, KEPT / f"{name}{TABLES[source]}.csv")
    if not written:
        (KEPT / f"{name}.txt").write_text("\n".join(line for line in printed[-1].splitlines() if line.strip()) + "\n")
    runs = json.loads(RUNS_FILE.read_text()) if RUNS_FILE.is_file() else {}
    runs[name] = {
        "commands": [command.replace("$", "") for command in RUNS[name]],
        "date": date.today().isoformat(),
        "commit": _commit(),
        "machine": _machine(),
        "seconds": round(seconds),
        "processor_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime),
    }
    RUNS_FILE.write_text(json.dumps(dict(sorted(runs.items())), indent=1) + "\n")


def _machine() -> str:
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    return f"{gpu}{os.cpu_count()} cores of {platform.machine()}, torch {version('torch')}"


def _commit() -> str:
    """The commit of the checkout, marked where files differ from it other than the results themselves."""
    commit = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=DOCS, text=True).strip()
    changed = ["git", "status", "--porcelain", "--untracked-files=no", "--", ":/", f":!{KEPT.name}"]
    return commit + ("-dirty" if subprocess.check_output(changed, cwd=DOCS) else "")


def _keep_table(source: Path, target: Path) -> None:
    """The rows that tables show: main metrics at all labels, or their mean over targets at any; eight digits."""
    with open(source, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if "main" in rows[0]:
        rows = [row for row in rows if row["main"] == "True" or row["metric"] == "mean_position_error_mm"]
        rows = [row for row in rows if float(row["fraction"]) == 1 or row["target"] == "macro"]
    columns = [column for column in COLUMNS if column in rows[0]]
    with open(target, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_short(row[column]) for column in columns] for row in rows)


def _short(value: str) -> str:
    try:
        return f"{float(value):.8g}" if "." in value else value
    except ValueError:
        return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[[], *RUNS], help="which tables; see the list")
    parser.add_argument("--ct", default="ct", help="folder with lidc/ and openkbp/")
    parser.add_argument("--reports", default="reports.csv", help="annotated reports (CT-RATE's text classifier set)")
    parser.add_argument("--work", default="measured", help="folder for what the commands write")
    options = parser.parse_args()
    for name in options.names:
        places = {"CT": options.ct, "REPORTS": options.reports, "WORK": options.work}
        print(f"{name}: {' && '.join(RUNS[name])}", flush=True)
        measure(name, places | {"PHANTOMS": str(Path(options.work, "chests"))})
    if not options.names:
        print(*RUNS, sep="\n")


if __name__ == "__main__":
    main()
