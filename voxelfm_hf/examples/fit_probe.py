"""Fit a probe on frozen features and ask it about a scan: `python -m voxelfm_hf.examples.fit_probe`.

The chests are synthetic, and so is every number. With your own scans: a folder of scans and a CSV with the columns `id`
(the path below the folder), `patient_id` and one a finding.
"""

import argparse
from pathlib import Path

from voxelfm_hf.data.phantom.scan_set import write_phantom_set
from voxelfm_hf.eval.labels import read_labels
from voxelfm_hf.eval.probes.apply import ProbeReader
from voxelfm_hf.eval.probes.run import fit_and_evaluate, save_probe
from voxelfm_hf.features import EmbedOptions, Task, embed_scans
from voxelfm_hf.hub import embedded_model
from voxelfm_hf.scan_list import list_scans
from voxelfm_hf.store import FeatureStore
from voxelfm_hf.volumes import read_volume


def main(out: str = "example") -> None:
    folder = Path(out)
    write_phantom_set(folder / "chests", count=60, shape=(48, 64, 64))
    tasks = [Task(scan) for scan in list_scans([folder / "chests" / "images"])]
    embed_scans(tasks, embedded_model(), folder / "features", EmbedOptions())

    labels = read_labels(folder / "chests" / "labels.csv", id_column="file")
    probe, reports, data, predictions = fit_and_evaluate(
        FeatureStore(folder / "features"), labels, task="classification", read={"targets": ["pleural_effusion"]}
    )
    assert probe is not None
    auroc = reports["pleural_effusion"]["estimates"]["auroc"]
    print(f"synthetic effusions: AUROC {auroc['value']:.2f} [{auroc['low']:.2f}, {auroc['high']:.2f}]")
    save_probe(folder / "probe", probe, reports, data, predictions)

    scan = read_volume(tasks[0].scan.path)
    print(ProbeReader(folder / "probe").answer(scan).facts())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", default="example", help="folder for all that is made")
    main(**vars(parser.parse_args()))
