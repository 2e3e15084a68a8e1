"""LoRA fine-tuning from the frozen probe on: `python -m voxelfm_hf.examples.lora_finetuning`.

The chests are synthetic, and so is every number. A handful of epochs on two cores shows how it is done, not what it
gives; compare with the frozen features before you believe it (`fine_tuning:` in a benchmark recipe).
"""

import argparse
from pathlib import Path

from voxelfm_hf.data.phantom.scan_set import write_phantom_set
from voxelfm_hf.eval.labels import read_labels
from voxelfm_hf.eval.probes.finetune import finetune_and_save
from voxelfm_hf.features import EmbedOptions, Task
from voxelfm_hf.scan_list import list_scans
from voxelfm_hf.training.finetune.settings import FinetuneSettings


def main(out: str = "example", epochs: int = 3) -> None:
    folder = Path(out)
    write_phantom_set(folder / "chests", count=60, shape=(48, 64, 64))
    finished = finetune_and_save(
        [Task(scan) for scan in list_scans([folder / "chests" / "images"])],
        read_labels(folder / "chests" / "labels.csv", id_column="file"),
        folder / "tuned",
        model="tiny",
        task="classification",
        read={"targets": ["pleural_effusion"]},
        mode="lora",
        settings=FinetuneSettings(epochs=epochs),
        options=EmbedOptions(max_patches=300),
    )
    if finished is None:  # a process that only helped
        return
    for name, reports in (("frozen", finished.frozen), ("LoRA", finished.reports)):
        print(f"synthetic effusions, {name}: AUROC {reports['pleural_effusion']['auroc']:.2f}")
    print(f"voxelfm predict SCAN --probe {finished.probe} --model {finished.backbone}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", default="example", help="folder for all that is made")
    parser.add_argument("epochs", nargs="?", type=int, default=3, help="how long to train")
    main(**vars(parser.parse_args()))
