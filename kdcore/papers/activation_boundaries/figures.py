"""Heo, Lee, Yun & Choi 2019: this paper's own figures."""

from collections.abc import Callable
from functools import partial

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from kdcore import papers
from kdcore.report import select
from kdcore.report.drawing import ON_PALE, PALETTE, WIDTH, heading, plot
from kdcore.report.figures import learning_curves, lines_against

BASELINE = "none"  # the method to which the others are compared
PICTURES = {"teacher": "teacher", "mse": "mean squared error", "boundary": "boundaries"}


def figures(records: list[dict]) -> dict:
    """What each method gains with few epochs and with little data, paper and ours; sides of the boundaries during training; the
    toy's plane."""
    tables = {table["id"]: table["rows"] for table in papers.get("activation_boundaries").tables}
    swept = {
        "fast_training": (
            "fast",
            lambda config: sum(map(int, config["epochs"].split("+"))),
            {"xlabel": "epochs, both stages together", "title": "What each method gains with few epochs"},
        ),
        "little_data": (
            "little_data",
            lambda config: config["percent"],
            {"xlabel": "training set (%)", "title": "What each method gains with little data"},
        ),
    }
    plots = {}
    for name, (table, place, words) in swept.items():
        panels = _panels(tables[table], records, place)
        if panels:
            plots[name] = partial(lines_against, panels, ylabel="change of the error (%)", zero=True, **words)
    arms = {row["arm"] for table in ("fast", "little_data") for row in tables[table] if row["arm"].startswith("AB + KD")}
    watched = [record for record in records if record["arm"] in arms and "layer1_same_side_end" in record["metrics"]]
    if watched:
        # the longest training among the tables' cells, and among those the one with the most data
        best = max(watched, key=lambda record: (len(record["history"]), record["config"]["percent"]))
        mine = [record for record in watched if record["arm"] == best["arm"]]
        first, second = best["config"]["epochs"].split("+")
        title = f"{best['arm']}, {first} epochs on boundaries, then {second} on labels"
        by_layer = {f"layer {layer}": _of_layer(mine, layer) for layer in (1, 2, 3)}
        plots["boundary_sides"] = partial(learning_curves, by_layer, "neurons on the teacher's side (%)", title)
    for record in records:
        if "toy" in record["metrics"]:
            plots["toy"] = partial(draw_toy, record["config"]["data"], record["metrics"])
            break
    return plots


def _panels(rows: list[dict], records: list[dict], place: Callable[[dict], float]) -> dict:
    """{method: (lines {ours, paper: {x: changes of the error in % of the baseline's}}, {})} from a table's rows, for methods that have
    records; ``place`` gives x from an arm's config at budget paper. Ours are compared seed by seed."""
    paper, of_arm = papers.get("activation_boundaries"), select.by_arm(records)
    arms = {tuple(row["arm"].split(", ")): row for row in rows}
    panels: dict = {}
    for (method, setting), row in arms.items():
        base = arms.get((BASELINE, setting))
        if method == BASELINE or base is None:
            continue
        x = place(paper.config("paper", row["arm"]))
        theirs = {record["seed"]: record["metrics"][base["metric"]] for record in of_arm.get(base["arm"], [])}
        mine = {record["seed"]: record["metrics"][row["metric"]] for record in of_arm.get(row["arm"], [])}
        changes = [100 * (mine[seed] / theirs[seed] - 1) for seed in sorted(set(mine) & set(theirs))]
        lines = panels.setdefault(method, ({"ours": {}, "paper": {}}, {}))[0]
        if changes:
            lines["ours"][x] = changes
        if row["paper"] is not None and base["paper"] is not None:
            lines["paper"][x] = [100 * (row["paper"] / base["paper"] - 1)]
    return {method: panel for method, panel in panels.items() if panel[0]["ours"]}


def _of_layer(records: list[dict], layer: int) -> tuple[np.ndarray, np.ndarray]:
    """Epochs and values [seeds, n] of one layer, at the epochs at which it was measured."""
    seeds = [[row.get("same_side_percent") for row in record["history"]] for record in records]
    places = [i for i in range(min(map(len, seeds))) if all(seed[i] is not None for seed in seeds)]
    return np.array(places) + 1, np.array([[seed[i][layer - 1] for i in places] for seed in seeds])


def draw_toy(data: str, metrics: dict, note: str = "") -> Figure:
    """The toy's plane, from the layers in a record's metrics and the training points of ``data``."""
    import torch  # slow to import

    from kdcore.models import MLP
    from kdcore.papers.activation_boundaries import toy

    # in double precision and rounded: boundaries must not depend on the processor that draws them
    points, labels = (values.numpy() for values in toy.plane(data))
    ends = zip(points.min(0).tolist(), points.max(0).tolist(), strict=True)
    across, up = (np.linspace(low - 0.3, high + 0.3, toy.GRID).round(6) for low, high in ends)
    grid = torch.from_numpy(np.stack(np.meshgrid(across, up), -1))
    panels = {}
    for name, shown in PICTURES.items():
        layers = metrics["toy"][name]
        net = MLP([2, *(len(bias) for _, bias in layers)])
        for weight, bias, (w, b) in zip(net.weights, net.biases, layers, strict=True):
            weight.data, bias.data = torch.tensor([w], dtype=torch.float64), torch.tensor([b], dtype=torch.float64)
        with torch.no_grad():
            logits, taps = net.features(grid.flatten(0, 1))
        if name != "teacher":
            shown = f"student, {shown}\n{metrics[f'{name}_other_side_percent']:.1f} % on the other side"
        classes, neurons = logits.round(decimals=6).numpy().argmax(1), taps[toy.TAP].round(decimals=6).numpy().T
        panels[shown] = (classes.reshape(toy.GRID, toy.GRID), neurons.reshape(-1, toy.GRID, toy.GRID))
    title = "What two kinds of transfer make of the teacher's boundaries"
    return boundaries(panels, across, up, points, labels, title, note=note)


@plot
def boundaries(panels: dict[str, tuple], across, up, points, labels, title: str = "") -> Figure:
    """The decisions of nets with two inputs over a plane, side by side: the predicted class in pale colours, the boundary of each
    neuron as a thin line, and the training points.

    panels: {name: (classes [n, m], pre-activations [neurons, n, m])}; across [m], up [n]: coordinates of the grid; points [N, 2],
    labels [N] from 0.
    """
    count = int(max(labels)) + 1
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    size = (WIDTH, WIDTH / columns * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, sharex=True, sharey=True, layout="constrained")
    pale = mpl.colors.ListedColormap([[1 - 0.3 * (1 - part) for part in mpl.colors.to_rgb(colour)] for colour in PALETTE[:count]])
    for ax, (name, (classes, neurons)) in zip(axes.flat, panels.items(), strict=False):
        ax.pcolormesh(across, up, classes, cmap=pale, vmin=0, vmax=count - 1, shading="nearest")
        for neuron in neurons:
            if neuron.min() < 0 < neuron.max():  # others have no boundary in this region
                ax.contour(across, up, neuron, levels=[0.0], colors=ON_PALE, linewidths=0.6)
        for number, marker in zip(range(count), "os^Dv<>" * count, strict=False):
            chosen = points[labels == number]
            ax.plot(chosen[:, 0], chosen[:, 1], marker, ms=2, color=PALETTE[number], mew=0, alpha=0.7)
        ax.set_title(name, fontsize=9.5)
        ax.grid(False)
        ax.set_rasterization_zorder(2.4)  # all but the axis, as one picture: it would take a megabyte
    for ax in list(axes.flat)[len(panels) :]:
        ax.set_visible(False)
    names = "; ".join(" ".join(name.split()) for name in panels)
    heading(figure, title, f"The plane of the two inputs, coloured by predicted class, with a line for each neuron's boundary: {names}.")
    return figure
