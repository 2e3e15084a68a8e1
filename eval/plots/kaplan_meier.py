"""Kaplan-Meier curves of risk groups with numbers at risk and the log-rank test."""

from pathlib import Path

import numpy as np

from voxelfm_hf.eval.plots.style import INK, TEXT_SIZE, dress, labels, legend, looks, new_figure, plain, save, title
from voxelfm_hf.eval.statistics.survival_curves import kaplan_meier, log_rank, number_at_risk

ORDER = ("low risk", "medium risk", "high risk")


def save_kaplan_meier(
    path: str | Path,
    times: np.ndarray,
    events: np.ndarray,
    groups: np.ndarray,
    *,
    unit: str | None = None,
    heading: str = "",
) -> Path:
    """Draws survival of each group with 95 % bands; ticks mark the censored, the table below counts who is followed.

    Args:
        path: The PNG.
        times: (n,) follow-up times.
        events: (n,) 1 for an event, 0 for censored.
        groups: (n,) group of each row, as from `risk_groups`.
        unit: Unit of the time.
        heading: Title; the p-value is added.

    Returns:
        The path.
    """
    times, events, groups = np.asarray(times, float), np.asarray(events, float), np.asarray(groups)
    known = np.isfinite(times) & np.isfinite(events)
    times, events, groups = times[known], events[known], groups[known]
    names = sorted(set(groups.tolist()), key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))
    shown = looks(names)
    figure = new_figure(7.2, 4.4 + 0.28 * len(names))
    axis, table = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [4, 0.35 * len(names) + 0.25]})
    dress(axis)
    for name in names:
        rows, look = groups == name, shown[name]
        curve = kaplan_meier(times[rows], events[rows])
        text = plain(f"{name} (n {int(rows.sum())}, {int(events[rows].sum())} events)")
        axis.step(
            curve.times, curve.survival, where="post", color=look.colour, linestyle=look.dash, linewidth=1.8, label=text
        )
        axis.fill_between(curve.times, curve.low, curve.high, step="post", color=look.colour, alpha=0.13, linewidth=0)
        at = np.searchsorted(curve.times, curve.censored, side="right") - 1
        axis.plot(curve.censored, curve.survival[at], "|", color=look.colour, markersize=6, markeredgewidth=1, zorder=3)
    end = float(times.max())
    axis.set(ylim=(0, 1.02), xlim=(-0.02 * end, 1.02 * end))
    statistic, p_value = log_rank(times, events, groups)
    test = "log-rank test not defined"
    if np.isfinite(statistic):
        test = "log-rank p " + ("< 0.001" if p_value < 0.001 else f"= {p_value:.3f}")
    title(axis, f"{heading}; {test}" if heading else test)
    labels(axis, "", "share without an event")
    legend(axis, where="best")
    _at_risk_table(table, times, groups, names, shown, [t for t in axis.get_xticks() if 0 <= t <= end])
    labels(table, f"time ({unit})" if unit else "time (unit not stated)", "")
    return save(figure, path)


def _at_risk_table(table, times: np.ndarray, groups: np.ndarray, names: list[str], shown, ticks: list[float]) -> None:
    for side in ("top", "right", "left"):
        table.spines[side].set_visible(False)
    table.tick_params(colors=INK, labelsize=TEXT_SIZE - 1)
    table.set_ylim(len(names) - 0.5, -0.5)
    table.set_yticks(range(len(names)), [plain(name) for name in names], fontsize=TEXT_SIZE - 1)
    table.tick_params(axis="y", length=0)
    for row, name in enumerate(names):
        table.get_yticklabels()[row].set_color(shown[name].colour)
        for tick, number in zip(ticks, number_at_risk(times[groups == name], np.array(ticks)), strict=True):
            table.text(tick, row, str(number), ha="center", va="center", fontsize=TEXT_SIZE - 1, color=INK)
    table.set_title("at risk", loc="left", fontsize=TEXT_SIZE - 1, color=INK)
