"""Heo, Lee, Yun & Choi 2019: this paper's own figures."""

from collections.abc import Callable
from functools import partial

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure

from kdcore import papers
from kdcore.models import MLP
from kdcore.papers.activation_boundaries import toy
from kdcore.report.drawing import PALETTE, WIDTH, heading, plot
from kdcore.report.figures import learning_curves, lines_against

METHODS = ("none", "KD", "FITNET + KD", "FSP + KD", "AT + KD", "Jacobian + KD", "AB + KD")
PICTURES = {"teacher": "teacher", "mse": "mean squared error", "boundary": "boundaries"}


def figures(records: list[dict]) -> dict:
    """Errors against epochs and amount of data, paper and ours; sides of the boundaries during training; the toy's plane."""
    tables = {table["id"]: table["rows"] for table in papers.get("activation_boundaries").tables}
    swept = {
        "fast_training": (
            "fast",
            lambda config: sum(map(int, config["epochs"].split("+"))),
            {"xlabel": "epochs, both stages together", "title": "Few epochs, paper and ours"},
        ),
        "little_data": (
            "little_data",
            lambda config: config["percent"],
            {"xlabel": "% of the training set", "title": "Little data, paper and ours"},
        ),
    }
    plots = {}
    for name, (table, place, words) in swept.items():
        panels = _panels(tables[table], records, place)
        if panels["ours"][0]:
            plots[name] = partial(lines_against, panels, ylabel="% test error", **words)
    arms = {row["arm"] for table in ("fast", "little_data") for row in tables[table] if row["arm"].startswith("AB + KD")}
    watched = [record for record in records if record["arm"] in arms and "layer1_same_side_end" in record["metrics"]]
    if watched:
        # the longest training among the tables' cells, and among those the one with the most data
        best = max(watched, key=lambda record: (len(record["history"]), record["config"]["percent"]))
        mine = [record for record in watched if record["arm"] == best["arm"]]
        title = f"Neurons on the teacher's side of their boundary\n{best['arm']}: {best['config']['epochs']} epochs"
        by_layer = {f"layer {layer}": [_of_layer(record, layer) for record in mine] for layer in (1, 2, 3)}
        plots["boundary_sides"] = partial(learning_curves, by_layer, "% on the teacher's side", title)
    for record in records:
        if "toy" in record["metrics"]:
            plots["toy"] = partial(_draw_toy, record)
            break
    return plots


def _panels(rows: list[dict], records: list[dict], place: Callable[[dict], float]) -> dict:
    """{paper, ours: (lines {method: {x: values}}, {})} from a table's rows; ``place`` gives x from an arm's config at budget paper."""
    paper = papers.get("activation_boundaries")
    panels: dict = {"paper": ({}, {}), "ours": ({}, {})}
    for row in rows:
        label = row["arm"].split(", ")[0]
        values = [record["metrics"][row["metric"]] for record in records if record["arm"] == row["arm"]]
        for panel, cell in (("paper", [row["paper"]]), ("ours", values)):
            if cell:
                panels[panel][0].setdefault(label, {})[place(paper.config("paper", row["arm"]))] = cell
    return panels


def _of_layer(record: dict, layer: int) -> dict:
    by_epoch = [row.get("same_side_percent") for row in record["history"]]
    return {"history": [{} if sides is None else {"% on the teacher's side": sides[layer - 1]} for sides in by_epoch]}


def _draw_toy(record: dict):
    # in double precision and rounded: boundaries must not depend on the processor that draws them
    points, labels = (values.numpy() for values in toy.plane(record["config"]["data"]))
    ends = zip(points.min(0).tolist(), points.max(0).tolist(), strict=True)
    across, up = (np.linspace(low - 0.3, high + 0.3, toy.GRID).round(6) for low, high in ends)
    grid = torch.from_numpy(np.stack(np.meshgrid(across, up), -1))
    panels = {}
    for name, shown in PICTURES.items():
        layers = record["metrics"]["toy"][name]
        net = MLP([2, *(len(bias) for _, bias in layers)])
        for weight, bias, (w, b) in zip(net.weights, net.biases, layers, strict=True):
            weight.data, bias.data = torch.tensor([w], dtype=torch.float64), torch.tensor([b], dtype=torch.float64)
        with torch.no_grad():
            logits, taps = net.features(grid.flatten(0, 1))
        if name != "teacher":
            shown += f"\n{record['metrics'][f'{name}_other_side_percent']:.1f} % on the other side"
        classes, neurons = logits.round(decimals=6).numpy().argmax(1), taps[toy.TAP].round(decimals=6).numpy().T
        panels[shown] = (classes.reshape(toy.GRID, toy.GRID), neurons.reshape(-1, toy.GRID, toy.GRID))
    title = "What a student makes of its teacher's boundaries: four digits on a plane"
    return boundaries(panels, across, up, points, labels, title)


@plot
def boundaries(panels: dict[str, tuple], across, up, points, labels, title: str = "") -> Figure:
    """The decisions of nets with two inputs over a plane, side by side: the predicted class in pale colours, the boundary of each
    neuron as a thin line, and the training points.

    panels: {name: (classes [n, m], pre-activations [neurons, n, m])}; across [m], up [n]: coordinates of the grid; points [N, 2],
    labels [N] from 0.
    """
    count = int(max(labels)) + 1
    figure, axes = plt.subplots(
        1, len(panels), figsize=(WIDTH, WIDTH / len(panels) + 1.1), squeeze=False, sharey=True, layout="constrained"
    )
    pale = mpl.colors.ListedColormap([[1 - 0.3 * (1 - part) for part in mpl.colors.to_rgb(colour)] for colour in PALETTE[:count]])
    for ax, (name, (classes, neurons)) in zip(axes[0], panels.items(), strict=True):
        ax.pcolormesh(across, up, classes, cmap=pale, vmin=0, vmax=count - 1, shading="nearest", rasterized=True)
        for neuron in neurons:
            if neuron.min() < 0 < neuron.max():  # others have no boundary in this region
                ax.contour(across, up, neuron, levels=[0.0], colors="#333333", linewidths=0.6)
        for number, marker in zip(range(count), "os^Dv<>" * count, strict=False):
            chosen = points[labels == number]
            ax.plot(chosen[:, 0], chosen[:, 1], marker, ms=2, color=PALETTE[number], mew=0, alpha=0.7, rasterized=True)
        ax.set_title(name, fontsize=10, fontweight="normal")
        ax.grid(False)
    heading(figure, title)
    return figure
