"""What the modules for `evaluate.load(path)` share: evaluate copies the one file it loads, so the rest is imported.

A module defines one class; it imports this file as a module, since evaluate takes the first metric class it finds.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import datasets
import evaluate

NUMBER = datasets.Value("float64")
SETTINGS = {
    "patients": "n identifiers; the bootstrap draws patients. Without them every row is its own patient.",
    "subgroups": "Column name -> n levels; every metric is repeated within each level.",
    "replicates": "Bootstrap replicates of the 95 % intervals; 0, the default, gives no interval.",
    "seed": "Seed of the bootstrap.",
}
REPORT = (
    'The value of every metric by name, NaN where it is not defined; "estimates" with value, low, high, n and a note '
    'for each; "subgroups" when asked for.'
)


class LoadableMetric(evaluate.Metric):
    """A metric of predictions and references; its docstring is its description.

    Attributes:
        predictions, references: The type of one row, as `datasets` has it.
        arguments: Name -> what it is, of predictions, references and what else `_compute` takes.
        settings: The same of the bootstrap, which `_compute` passes on.
        answer: What `compute` gives.
    """

    predictions: ClassVar[Any] = NUMBER
    references: ClassVar[Any] = NUMBER
    arguments: ClassVar[Mapping[str, str]]
    settings: ClassVar[Mapping[str, str]] = SETTINGS
    answer: ClassVar[str] = REPORT

    def _info(self) -> evaluate.MetricInfo:
        arguments = "\n".join(f"    {name}: {text}" for name, text in {**self.arguments, **self.settings}.items())
        return evaluate.MetricInfo(
            description=self.__doc__,
            citation="",
            inputs_description=f"\nArgs:\n{arguments}\n\nReturns:\n    {self.answer}\n",
            features=datasets.Features({"predictions": self.predictions, "references": self.references}),
        )
