"""Whettam 2020: this paper's own figures."""

import math
from functools import partial

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kdcore import papers
from kdcore.models.darts import GENOTYPES
from kdcore.report import select
from kdcore.report.drawing import (
    BACK,
    BLUE,
    INK,
    MUTED,
    ON_DARK,
    ON_PALE,
    PALETTE,
    STRAIGHT,
    VERMILLION,
    WIDTH,
    heading,
    number_list,
    pixels,
    plot,
    rounded,
    wrapped,
)


def figures(records: list[dict]) -> dict:
    """The spread of single runs, the paths of growth, attention maps of students, error against similarity, cells of the searches."""
    by_arm = select.by_arm(records)
    plots = {}
    sheet = next(table for table in papers.get("fisher_darts").tables if table["id"] == "teachers")
    rows = [
        {
            "label": row["label"],
            "paper": (row["paper"], row["std"]),
            "ours": [record["metrics"]["test_error_percent"] for record in by_arm.get(row["arm"], [])],
        }
        for row in sheet["rows"]
        if row["metric"] == "test_error_percent"
    ]
    if any(row["ours"] for row in rows):
        title = "How much single runs of the DARTS student differ, under four teachers"
        plots["spread"] = partial(spread, rows, xlabel="top-1 error (%)", title=title)
    paths = {}
    for name, arm in (("Fisher information", "Fisher teacher"), ("random", "random-order teacher"), ("uniform", "uniform teacher")):
        if arm in by_arm:
            ways = by_arm[arm][0]["metrics"]["growth"]
            paths |= {f"{name}, {way}" if len(ways) > 1 else name: path for way, path in ways.items()}
    if paths:
        plots["growth"] = partial(growth, paths, "Growing a teacher from the student: groups of each cell's convolutions")
    seen = {
        f"{student} student, {'no' if teacher == 'none' else teacher} teacher": by_arm[arm][0]["metrics"]["maps"]
        for student in ("DenseNet", "DARTS")
        for teacher in ("none", "WRN", "DenseNet", "DARTS")
        if (arm := f"{teacher} -> {student}") in by_arm
    }
    if seen:
        plots["maps"] = partial(attention, seen, "Where students look, by their teacher")
    points: dict[str, list] = {}
    for arm, mine in by_arm.items():
        for record in mine:
            if "map_similarity" in record["metrics"]:
                points.setdefault(arm, []).append((record["metrics"]["map_similarity"], record["metrics"]["test_error_percent"]))
    if points:
        axes = {"xlabel": "mean cosine of the attention maps of teacher and student", "ylabel": "top-1 error of the student (%)"}
        plots["similarity"] = partial(scatter, points, **axes, title="Do students that attend like their teachers make fewer errors?")
    kinds = {}
    for arm, mine in by_arm.items():
        name = mine[0]["config"]["network"] or ""
        if arm == "none -> DARTS":
            kinds |= {f"the student's {kind}": edges for kind, edges in GENOTYPES[name.split("_")[1]]._asdict().items()}
        elif "genotype" in mine[0]["metrics"]:
            kinds |= {f"{arm}: {kind}": edges for kind, edges in mine[0]["metrics"]["genotype"].items()}
    if kinds:
        plots["cells"] = partial(cells, kinds, "The student's cells, and those that our searches found")
    return plots


@plot
def scatter(groups: dict[str, list[tuple[float, float]]], *, xlabel: str = "", ylabel: str = "", title: str = "") -> Figure:
    """One measure against another: a point for each pair (x, y), a colour and marker for each group. With three or more groups, also
    the least-squares line through all points with its 95 % band, from a bootstrap over groups, since their points are not
    independent. The points set the axes: with few groups the band is wide and may extend beyond the figure."""
    figure, ax = plt.subplots(figsize=(WIDTH, 4.6), layout="constrained")
    table = pd.DataFrame([(label, *point) for label, points in groups.items() for point in points], columns=["group", "x", "y"])
    shown = {}
    if len(groups) > 2 and table["x"].nunique() > 1:
        import seaborn  # slow to import

        look = {"scatter": False, "color": MUTED, "line_kws": {"lw": 1.2}}
        seaborn.regplot(table, x="x", y="y", units="group", seed=0, truncate=True, ax=ax, **look)
        (line,), (band,) = ax.lines, ax.collections  # rounded: the last digits of a thousand fits depend on the processor
        shown["line through all, 95 % band"] = line
        line.set_data(rounded(line.get_xdata()), rounded(line.get_ydata()))
        band.set_verts([rounded(path.vertices) for path in band.get_paths()])
    for (label, points), colour, marker in zip(groups.items(), PALETTE * 4, "os^Dv<>ph" * 4, strict=False):
        shown_label = label.replace("->", "\N{RIGHTWARDS ARROW}")
        (shown[shown_label],) = ax.plot(*zip(*points, strict=True), marker, color=colour, ms=6.5, alpha=0.85, mew=0)
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.margins(x=0.08)
    if len(table):
        room = 0.15 * ((table["y"].max() - table["y"].min()) or 1.0)
        ax.set_ylim(table["y"].min() - room, table["y"].max() + room)
    means = number_list(
        [(f"{label} at {np.mean([x for x, _ in points]):.3f}", float(np.mean([y for _, y in points]))) for label, points in groups.items()],
        12,
    )
    heading(figure, title, f"{ylabel[:1].upper()}{ylabel[1:]} against {xlabel}, means of groups: {means}.")
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=min(2, max(1, len(shown))))
    return figure


@plot
def spread(rows: list[dict], *, xlabel: str = "", title: str = "") -> Figure:
    """How much single runs differ: the paper's mean -+ one standard deviation, and beside it ours, with a dot for every seed. The
    panels have the same scale but different origins, so that spreads can be compared whatever the errors are.

    rows: [{label, paper (mean, standard deviation) or None, ours [one value per seed]}].
    """
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 0.45 * len(rows) + 1.1), sharey=True, layout="constrained")
    reach: tuple[list, list] = ([], [])
    for y, row in enumerate(rows):
        if row["paper"] is not None:
            mean, std = row["paper"]
            axes[0].errorbar(mean, y, xerr=std, fmt="D", ms=6, color=VERMILLION, capsize=3)
            reach[0].extend((mean - std, mean + std))
        if ours := row["ours"]:
            std = np.std(ours, ddof=1) if len(ours) > 1 else None
            axes[1].errorbar(np.mean(ours), y - 0.1, xerr=std, fmt="o", ms=7, color=BLUE, capsize=3)
            axes[1].plot(ours, [y + 0.2] * len(ours), "o", ms=4, color=BLUE, alpha=0.55, mew=0)
            reach[1].extend((*ours, np.mean(ours) - (std or 0), np.mean(ours) + (std or 0)))
    width = 1.15 * max([1.0, *(max(values) - min(values) for values in reach if values)])
    for ax, values in zip(axes, reach, strict=True):
        middle = (max(values) + min(values)) / 2 if values else width / 2
        ax.set_xlim(middle - width / 2, middle + width / 2)
        ax.grid(axis="y", visible=False)
        ax.xaxis.set_major_locator(MaxNLocator(nbins=4))
        ax.set_xlabel(f"{'paper' if ax is axes[0] else 'ours'}: {xlabel}")
    axes[0].set_yticks(range(len(rows)), [wrapped(row["label"], 18) for row in rows])
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    marks = [
        mpl.lines.Line2D([], [], marker="D", ms=6, color=VERMILLION, label="paper: mean, one standard deviation"),
        mpl.lines.Line2D([], [], marker="o", ms=7, color=BLUE, label="ours: the same"),
        mpl.lines.Line2D([], [], marker="o", ls="", ms=4, color=BLUE, alpha=0.55, mew=0, label="one seed"),
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=2)
    ours = number_list([(row["label"], float(np.std(row["ours"], ddof=1))) for row in rows if len(row["ours"]) > 1])
    theirs = number_list([(row["label"], row["paper"][1]) for row in rows if row["paper"] is not None])
    heading(figure, title, f"Standard deviations of {xlabel}. Ours: {ours}. Paper: {theirs}.")
    return figure


@plot
def growth(paths: dict[str, list[dict]], title: str = "") -> Figure:
    """How networks were grown, one panel per path: the groups of every module (row) after each step (column).

    paths: {name: [{module, size, groups {module: number}}, ...]}. A dot marks the module whose groups a step halved; a grey row
    has nothing to halve.
    """
    height = 0.6 + 0.24 * max(len(path[0]["groups"]) for path in paths.values())
    figure, axes = plt.subplots(len(paths), 1, figsize=(WIDTH, height * len(paths) + 0.4), squeeze=False, layout="constrained")
    top = max(2, *(groups for path in paths.values() for groups in path[0]["groups"].values()))
    for ax, (name, path) in zip(axes[:, 0], paths.items(), strict=True):
        modules = list(path[0]["groups"])
        values = np.array([[step["groups"][module] for step in path] for module in modules], float)
        grown = [step["module"] for step in path]
        fixed = np.array([module not in grown and row.max() == 1 for module, row in zip(modules, values, strict=True)])
        colours = mpl.colormaps["cividis_r"].with_extremes(bad="#c9c9c9")
        extent = (0.5, len(path) + 0.5, len(modules) - 0.5, -0.5)
        shown = np.ma.masked_array(rounded(np.log(values) / math.log(top)), np.broadcast_to(fixed[:, None], values.shape))
        ax.imshow(shown, cmap=colours, vmin=0, vmax=1, aspect="auto", interpolation="none", extent=extent)
        for (y, x), value in np.ndenumerate(values):
            if grown[x] == modules[y]:
                ax.plot(x + 1, y, "o", ms=5, mfc=ON_DARK, mec=ON_PALE, mew=0.8)
            elif not fixed[y] and values.size <= 400:
                colour = ON_DARK if value > math.sqrt(top) else ON_PALE
                ax.text(x + 1, y, f"{value:g}", ha="center", va="center", fontsize=8, color=colour)
        ax.set_yticks(range(len(modules)), modules)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
        ax.grid(False)
        ax.set_title(f"{name}: {len(path)} steps, to {path[-1]['size']:,} weights")
    axes[-1, 0].set_xlabel("step\n(dot: the cell that grows; numbers: groups of its\nconvolutions, 1 for full ones; grey: none to grow)")
    sizes = number_list([(name, path[-1]["size"]) for name, path in paths.items()])
    heading(figure, title, f"Groups of each cell's convolutions after each step. Final sizes in weights: {sizes}.")
    return figure


@plot
def attention(entries: dict[str, list[dict]], title: str = "") -> Figure:
    """Attention maps of nets: a row for each image and layer, a column for each net.

    entries: {net: [{image (base64 of uint8), shape [3, H, W], maps [{values (base64 of uint8), shape [h, w]}]}]}, the same
    images for all nets.
    """
    first = next(iter(entries.values()))
    rows = [(picture, layer) for picture, entry in enumerate(first) for layer in range(len(entry["maps"]))]
    columns = len(entries) + 1
    side = min(1.1, WIDTH / columns)
    figure, axes = plt.subplots(len(rows), columns, figsize=(WIDTH, side * len(rows) + 0.6), squeeze=False, layout="constrained")
    for row, (picture, layer) in zip(axes, rows, strict=True):
        image = pixels(first[picture]["image"], first[picture]["shape"])
        row[0].imshow(np.moveaxis(image, 0, -1), interpolation="none")
        for ax, pictures in zip(row[1:], entries.values(), strict=True):
            attended = pictures[picture]["maps"][layer]
            ax.imshow(pixels(attended["values"], attended["shape"]), cmap="inferno", vmin=0, vmax=255, interpolation="none")
        row[0].set_ylabel("{} \N{MULTIPLICATION SIGN} {}".format(*first[picture]["maps"][layer]["shape"]), fontsize=9)
        for ax in row:
            ax.set_xticks([])
            ax.set_yticks([])
            ax.grid(False)
    for ax, head in zip(axes[0], ["picture", *entries], strict=True):
        ax.set_title(wrapped(head, 11), fontsize=9, loc="center")
    heading(
        figure,
        title,
        f"Attention maps of {len(first)} test images at {len(rows) // len(first)} layers: {', '.join(entries)}. Bright: attended.",
    )
    return figure


@plot
def cells(kinds: dict[str, list[tuple[str, int]]], title: str = "") -> Figure:
    """Cells of an architecture search, one panel per kind. Each column is a feature map: the two inputs, then the four nodes. An
    arrow is an operation, from its input to the node that it contributes to; a node is the sum of two operations, and the output
    is the concatenation of the nodes.

    kinds: {kind: [(operation, index of its input), ...]}, 8 each, as in a genotype.
    """
    figure, axes = plt.subplots(len(kinds), 1, figsize=(WIDTH, 3.2 * len(kinds) + 0.2), squeeze=False, layout="constrained")
    look = {"fc": BACK, "ec": MUTED, "zorder": 3}
    word = {"fontsize": 9, "ha": "center", "va": "center", "zorder": 4}
    for ax, (kind, edges) in zip(axes[:, 0], kinds.items(), strict=True):
        bottom = len(edges) + 0.2
        for column, name in enumerate(("c(k-2)", "c(k-1)", "0", "1", "2", "3")):
            if column < 2:
                top, last = -1.0, max((row for row, (_, source) in enumerate(edges) if source == column), default=-1.0)
                ax.text(column, top, name, **word, bbox={"boxstyle": "round,pad=0.35"} | look)
            else:
                top, last = 2 * column - 3.5, bottom  # between its two operations
                ax.add_patch(mpl.patches.Rectangle((column - 0.07, top - 0.8), 0.14, 1.6, **look))
                ax.text(column, top, name, **word)
            ax.plot([column, column], [top, last], color=MUTED, lw=0.9, zorder=1)
        for row, (name, source) in enumerate(edges):
            node, colour = 2 + row // 2, PALETTE[row % 2]
            arrow = STRAIGHT | {"arrowstyle": "-|>", "color": colour, "lw": 1.3, "shrinkA": 0, "shrinkB": 0}
            ax.annotate("", (node - 0.07, row), (source, row), arrowprops=arrow, zorder=2)
            ax.plot(source, row, "o", ms=4, color=colour, zorder=2)
            ax.text(node - 0.12, row - 0.08, name.replace("_", " "), color=INK, fontsize=8.5, ha="right", va="bottom", zorder=4)
        ax.plot([2, 5], [bottom, bottom], color=MUTED, lw=0.9, zorder=1)
        ax.text(3.5, bottom, "c(k): the four nodes side by side", **word, bbox={"boxstyle": "round,pad=0.35"} | look)
        ax.set_xlim(-0.5, 5.5)
        ax.set_ylim(bottom + 0.6, -1.6)
        ax.set_axis_off()
        ax.set_title(f"{kind} cells")
    edges = "; ".join(f"{kind} cells: {', '.join(name.replace('_', ' ') for name, _ in edges)}" for kind, edges in kinds.items())
    heading(figure, title, f"Diagrams of cells, with the operations of each: {edges}.")
    return figure
