"""Breiman & Shang 1996: this paper's own figures."""

from functools import partial

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from kdcore.report.drawing import PALETTE, WIDTH, darker, heading, plot, wrapped
from kdcore.report.figures import error_against


def figures(records: list[dict]) -> dict:
    """A born-again tree beside a CART tree; the test error against the number of smeared cases."""
    plots = {}
    if kept := [record["metrics"]["trees"] for record in records if "trees" in record["metrics"]]:
        plots["trees"] = partial(outlines, kept[0], "Breast cancer: a born-again tree beside CART's (in brackets: training cases)")
    sweeps: dict[str, dict[int, list]] = {}
    for record in records:
        counts = {v["smeared"]: f"_{name}" for name, v in record["config"]["variants"].items() if set(v) == {"smeared"}}
        cells = sweeps.setdefault(record["arm"], {})
        for count, name in (counts | {record["config"]["smeared"]: ""}).items():
            cells.setdefault(count, []).append(record["metrics"][f"born_again_error_percent{name}"])
    counts = sorted({count for cells in sweeps.values() for count in cells})
    if len(counts) > 1:
        plots["smeared"] = partial(
            error_against,
            counts,
            {arm: [cells.get(count, []) for count in counts] for arm, cells in sweeps.items()},
            xlabel="smeared cases for each node",
            ylabel="test error (%)",
            title="The born-again tree's test error against the number of smeared cases",
        )
    return plots


@plot
def outlines(trees: dict[str, list[dict]], title: str = "") -> Figure:
    """Decision trees side by side as indented lists: one line per branch, which for a leaf ends with its class.

    trees: {name: [{depth, condition, cases, class (None for an inner node)}, ...]}, each branch before its sibling.
    """
    classes = sorted({line["class"] for lines in trees.values() for line in lines} - {None})
    colours = dict(zip(classes, PALETTE * len(classes), strict=False))
    height, indent = 0.165, 0.13  # inches: of a line, of a level
    rows = max(len(lines) for lines in trees.values())
    figure, axes = plt.subplots(1, len(trees), figsize=(WIDTH, height * rows + 1.0), squeeze=False, layout="constrained")
    width = WIDTH / len(trees) - 0.2
    for ax, (name, lines) in zip(axes[0], trees.items(), strict=True):
        last: dict[int, int] = {}
        for y, line in enumerate(lines):
            depth, label = line["depth"], line["class"]
            last[depth] = y
            if depth:
                x = (depth - 0.75) * indent
                ax.plot([x, x, depth * indent], [last[depth - 1] + 0.3, y, y], color="#9a9a9a", lw=0.8, solid_joinstyle="miter")
            text = (
                (line["condition"] or "all cases") + (f" \N{RIGHTWARDS ARROW} {label}" if label is not None else "") + f" ({line['cases']})"
            )
            colour = "#222222" if label is None else darker(colours[label], 0.75)
            weight = "normal" if label is None else "bold"
            ax.text((depth + 0.2) * indent, y, text, va="center", fontsize=7.5, color=colour, fontweight=weight)
        leaves = sum(line["class"] is not None for line in lines)
        ax.set_title(f"{name}: {leaves} {'leaf' if leaves == 1 else 'leaves'}", fontsize=10.5)
        ax.set_xlim(0, width)
        ax.set_ylim(rows - 0.5, -0.5)
        ax.set_axis_off()
    heading(figure, wrapped(title, 90))
    return figure
