"""The task families, one file each with the same names.

For probes and the benchmark:

    read(store, labels, **options) -> TaskData          match, check, split
    fit(data, **FitOptions) -> VoxelFMProbe             fit on train, choose on validation; None where nothing is fitted
    calibrate(probe, data, train=, device=)             what `fit` chooses after training, where there is such a thing
    predict(probe, data, rows) -> predictions           in natural units
    evaluate(predictions, data, rows) -> reports        metrics with intervals and subgroups, by target

Where something is fitted:

    why_unfit(targets) -> str                           why nothing can be fitted on some training targets
    answer(probe, EncodedScan) -> Answer                what a probe says about one scan, in words and units

For the card of a probe (`voxelfm_hf.eval.probes.card`):

    ANSWER, HEADLINES                                   what a probe gives, in words; the metrics of its header, which
                                                        retrieval has too, and `counts`
    counts(data, rows) -> {heading: text}               what some rows hold

For the benchmark (`voxelfm_hf.eval.benchmark`), whose prediction files are written and read here:

    columns(predictions, data, rows, probe=) -> [...]   by target, what is kept of the predictions of some rows
    judge(tables, options) -> Judged                    kept predictions with their measures
    main_metric(options) -> str                         the metric that is tested, tabulated and drawn
    HAS_MACRO                                           whether a mean over targets means something
    ceiling(data) -> (n, k)                             features that know the answer, where a row of numbers can
    settle(fit, logits, held_logits, held_labels)       values and threshold of one of many fits side by side, and
    target_columns(data, number, rows, predictions)     their columns, where outputs are fitted each by itself

What travels with the weights of a probe is a class in `modeling/probe_tasks_voxelfm.py`: heads, labels, loss, answers
of the head. Figures that only one task has are in `eval/probes/plots.py`, `eval/benchmark/figures.py` and
`pictures.py`; none is needed.
"""

from voxelfm_hf.eval.named_modules import NamedModules

_TASKS = NamedModules(__name__, "task", helpers=("answer", "data", "fitting", "grid", "kept", "neighbours"))
task_names, load_task = _TASKS.names, _TASKS.load
# Nothing is fitted: features are compared as they are. The others are those of `HEADS_OF_TASK`, which imports torch.
HEADLESS = ("retrieval",)
