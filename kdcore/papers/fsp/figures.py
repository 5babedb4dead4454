"""Yim, Joo, Bae & Kim 2017: this paper's own figures."""

from functools import partial

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kdcore.report.drawing import WIDTH, heading, plot, wrapped

MOMENTS = ("teacher", "student before", "student after stage 1", "student at the end")  # of a record's fsp_matrices


def figures(records: list[dict]) -> dict:
    """The FSP matrices of the teacher, and of the student before and after the first stage and at the end."""
    plots = {}
    for record in records:
        if "fsp_matrices" in record["metrics"]:
            matrices_of = record["metrics"]["fsp_matrices"]
            title = "FSP matrices of teacher and student, means over test images"
            columns = [f"section {number + 1}" for number in range(len(matrices_of[MOMENTS[0]]))]
            plots["fsp_matrices"] = partial(matrices, {name: matrices_of[name] for name in MOMENTS}, columns, title)
            break
    return plots


@plot
def matrices(panels: dict[str, list], columns, title: str = "") -> Figure:
    """Matrices as heat maps: a row for each panel and a column for each section, with one colour scale per column.

    panels: {label: [matrix of columns[0], of columns[1], ...]}, each [rows][columns] of numbers. The colours of a column run
    from its smallest value (or 0, if that is smaller) to its largest.
    Raises ValueError if a panel does not have one matrix for each column.
    """
    if wrong := [label for label, row in panels.items() if len(row) != len(columns)]:
        raise ValueError(f"'{wrong[0]}' has {len(panels[wrong[0]])} matrices for {len(columns)} columns")
    side = (WIDTH - 0.4) / len(columns)
    size = (WIDTH, side * len(panels) + 0.9)
    figure, axes = plt.subplots(len(panels), len(columns), figsize=size, squeeze=False, layout="constrained")
    for c, (column, name) in enumerate(zip(axes.T, columns, strict=True)):
        shown = [np.asarray(row[c], float) for row in panels.values()]
        low, high = min(0.0, *(matrix.min() for matrix in shown)), max(matrix.max() for matrix in shown)
        for ax, matrix in zip(column, shown, strict=True):
            image = ax.imshow(matrix, cmap="cividis", vmin=low, vmax=high, interpolation="none")
            ax.set_xticks([])
            ax.set_yticks([])
            ax.grid(False)
            ax.spines[:].set_visible(False)
        height, width = shown[0].shape
        column[0].set_title(f"{name}\n{height} \N{MULTIPLICATION SIGN} {width}", fontsize=9.5, loc="center")
        bar = figure.colorbar(image, ax=column, location="bottom", fraction=0.03, pad=0.01, aspect=16)
        bar.ax.xaxis.set_major_locator(MaxNLocator(nbins=3))
        bar.outline.set_visible(False)
    for ax, label in zip(axes[:, 0], panels, strict=True):
        ax.set_ylabel(wrapped(label, 22))
    ends = [f"{name} up to {max(float(np.max(row[c])) for row in panels.values()):.3g}" for c, name in enumerate(columns)]
    heading(figure, title, f"Heat maps of {', '.join(panels)}. Values: {'; '.join(ends)}.")
    return figure
