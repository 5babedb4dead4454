"""Bucila, Caruana & Niculescu-Mizil 2006: this paper's own figures."""

from functools import partial

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from kdcore.papers.model_compression import munge
from kdcore.report.drawing import BLUE, WIDTH, heading, plot
from kdcore.report.figures import lines_against

METHODS = {"munge": "MUNGE", "nbe": "NBE", "random": "RANDOM"}


def figures(records: list[dict]) -> dict:
    """Pseudo data in two dimensions; the mimic net's error against the number of cases and of hidden units."""
    sizes: dict[tuple, tuple[dict, dict]] = {}
    widths: dict[tuple, tuple[dict, dict]] = {}
    for record in records:
        metrics, config = record["metrics"], record["config"]
        if config["teacher"] is None or config["pseudo"] not in METHODS:
            continue
        problem, method = record["arm"].partition(":")[0], METHODS[config["pseudo"]]
        levels = {"ensemble": metrics["ensemble_rmse"], "best single model": metrics["single_rmse"], "best net": metrics["net_rmse"]}
        _add(sizes, (_named(problem), f"{config['units']} units"), method, config["cases"], metrics["rmse"], levels)
        _add(widths, (_named(problem), f"{config['cases']:,} cases"), method, config["units"], metrics["rmse"], levels)
    plots = {"pseudo_data": pseudo_data}
    for name, panels, swept, title in (
        ("cases", sizes, "training cases", "Errors of mimic nets against the number of training cases"),
        ("units", widths, "hidden units", "Errors of mimic nets against the number of hidden units"),
    ):
        # a sweep has at least three points; fewer are single cells of another sweep
        shown = {", ".join(key): panel for key, panel in panels.items() if max(map(len, panel[0].values())) > 2}
        if name == "units":
            shown = {key: ({"MUNGE": lines["MUNGE"]}, levels) for key, (lines, levels) in shown.items()}
        if shown:
            plots[name] = partial(lines_against, shown, xlabel=swept, ylabel="test RMSE", title=title)
    return plots


def _named(problem: str) -> str:
    """A problem's name as in the paper: "letter.p1" -> "LETTER.p1"."""
    name, dot, part = problem.partition(".")
    return name.upper() + dot + part


def pseudo_data(note: str = "") -> Figure:
    """The paper's figure 1 for our data."""
    title = "Three kinds of pseudo data in two dimensions (MUNGE: p = 0.5, s = 5)"
    return clouds(_two_dimensions(), title, note=note)


def _add(panels: dict, key: tuple, line: str, x: int, value: float, levels: dict) -> None:
    lines, known = panels.setdefault(key, ({}, {}))
    lines.setdefault(line, {}).setdefault(x, []).append(value)
    for name, level in levels.items():  # the same in every arm of a seed
        cell = known.setdefault(name, [])
        if level not in cell:
            cell.append(level)


def _two_dimensions() -> dict[str, np.ndarray]:
    """Each method's pseudo data for 500 points of two interlocked half circles, in the spirit of the paper's figure 1."""
    rng = np.random.default_rng(0)
    angle, side = rng.random(500) * np.pi, np.arange(500) % 2
    points = np.stack([np.cos(angle), np.sin(angle)], 1) * (1 - 2 * side[:, None]) + side[:, None] * [1.0, 0.5]
    points = (points + 0.12 * rng.standard_normal(points.shape)).round(6)  # last digits of sin and cos depend on the processor
    numbers = [0, 0]
    return {
        "training cases": points,
        "RANDOM": munge.random(points, 2000, rng),
        "NBE": munge.NaiveBayesMixture(points, numbers, rng).sample(2000, rng),
        "MUNGE": munge.munge(points, numbers, 2000, rng, 0.5, 5.0),
    }


@plot
def clouds(panels: dict[str, np.ndarray], title: str = "") -> Figure:
    """Points [n, 2] on shared axes, one panel for each name."""
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    size = (WIDTH, WIDTH / columns * 0.75 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, sharex=True, sharey=True, layout="constrained")
    for ax, (name, points) in zip(axes.flat, panels.items(), strict=False):
        # as a picture: thousands of points would take a megabyte
        ax.plot(points[:, 0], points[:, 1], ".", ms=2.2, color=BLUE, alpha=0.6, mew=0, rasterized=True)
        ax.set_title(f"{name} ({len(points):,})")
    for ax in list(axes.flat)[len(panels) :]:
        ax.set_visible(False)
    heading(
        figure, title, f"Clouds of points in two dimensions: {', '.join(f'{name} {len(points):,}' for name, points in panels.items())}."
    )
    return figure
