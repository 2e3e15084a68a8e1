"""How large localisation errors are: the share of scans within each distance."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from voxelfm_hf.eval.plots.style import dress, labels, legend, looks, new_figure, plain, save, title


def save_error_curve(path: str | Path, errors: Mapping[str, np.ndarray], *, heading: str = "") -> Path:
    """Draws, for each encoder, the share of scans whose error is at most so many millimetres.

    Args:
        path: The PNG.
        errors: Name -> (n,) errors in mm; NaN is left out.
        heading: Title.

    Returns:
        The path.
    """
    figure = new_figure(6.4, 4.2)
    axis = figure.subplots()
    dress(axis)
    for name, look in looks(errors).items():
        values = np.sort(np.asarray(errors[name], float))
        values = values[np.isfinite(values)]
        if not len(values):
            continue
        share = np.arange(len(values) + 1) / len(values)
        text = plain(f"{name}: median {np.median(values):.1f} mm, n {len(values)}")
        axis.step(
            np.r_[0.0, values], share, where="post", color=look.colour, linestyle=look.dash, linewidth=1.8, label=text
        )
    axis.set_ylim(0, 1.02)
    axis.set_xlim(left=0)
    title(axis, heading or "localisation error")
    labels(axis, "error (mm)", "share of scans with at most this error")
    legend(axis, where="lower right")
    return save(figure, path)
