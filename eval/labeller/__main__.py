"""Measure the report labeller on annotated reports: `python -m voxelfm_hf.eval.labeller REPORTS.csv`."""

import sys

from voxelfm_hf.command import ModuleParser, one_sentence_errors
from voxelfm_hf.eval.labeller.tables import measure_csv, scores_table


@one_sentence_errors
def main() -> None:
    parser = ModuleParser("voxelfm_hf.eval.labeller", __doc__)
    parser.add_argument("reports", help="CSV, TSV or Parquet: the report text and one 0/1 column a finding")
    parser.add_argument("--column", action="append", help="column(s) with the text; known layouts need none")
    options = parser.parse_args()
    print(scores_table(measure_csv(options.reports, columns=options.column)))


sys.exit(main())
