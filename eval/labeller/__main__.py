"""Measure the report labeller on annotated reports: `python -m voxelfm_hf.eval.labeller REPORTS.csv`."""

import argparse

from voxelfm_hf.eval.labeller.tables import measure_csv, scores_table
from voxelfm_hf.volumes.errors import VoxelFMError

parser = argparse.ArgumentParser(prog="voxelfm_hf.eval.labeller", description=__doc__)
parser.add_argument("reports", help="CSV, TSV or Parquet: the report text and one 0/1 column a finding")
parser.add_argument("--column", action="append", help="column(s) with the text; known layouts need none")
options = parser.parse_args()
try:
    print(scores_table(measure_csv(options.reports, columns=options.column)))
except VoxelFMError as error:
    parser.exit(2, f"{error}\n")
