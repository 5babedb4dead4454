"""Breiman & Shang 1996: this paper's own figures."""

from functools import partial

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from kdcore.report.drawing import INK, MUTED, PALETTE, WIDTH, heading, plot
from kdcore.report.figures import error_against


def figures(records: list[dict]) -> dict:
    """A born-again tree beside a CART tree; the test error against the number of smeared cases."""
    plots = {}
    if kept := [record["metrics"]["trees"] for record in records if "trees" in record["metrics"]]:
        plots["trees"] = partial(outlines, kept[0], "Breast cancer: CART's tree and a born-again tree (in brackets: training cases)")
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
            title="Test errors of born-again trees against the number of smeared cases",
        )
    return plots


@plot
def outlines(trees: dict[str, list[dict]], title: str = "") -> Figure:
    """Decision trees as indented lists: one line per branch, which for a leaf ends with its class.

    trees: {name: [{depth, condition, cases, class (None for an inner node)}, ...]}, each branch before its sibling.
    """
    classes = sorted({line["class"] for lines in trees.values() for line in lines} - {None})
    colours = dict(zip(classes, PALETTE * len(classes), strict=False))
    height, indent = 0.185, 0.16  # inches: of a line, of a level
    rows = [len(lines) for lines in trees.values()]
    size = (WIDTH, height * sum(rows) + 0.35 * len(trees) + 0.1)
    figure, axes = plt.subplots(len(trees), 1, figsize=size, height_ratios=rows, squeeze=False, layout="constrained")
    for ax, (name, lines) in zip(axes[:, 0], trees.items(), strict=True):
        last: dict[int, int] = {}
        for y, line in enumerate(lines):
            depth, label = line["depth"], line["class"]
            last[depth] = y
            if depth:
                x = (depth - 0.75) * indent
                ax.plot([x, x, depth * indent], [last[depth - 1] + 0.3, y, y], color=MUTED, lw=0.8, solid_joinstyle="miter")
            text = (
                (line["condition"] or "all cases") + (f" \N{RIGHTWARDS ARROW} {label}" if label is not None else "") + f" ({line['cases']})"
            )
            colour = INK if label is None else colours[label]
            weight = "normal" if label is None else "bold"
            ax.text((depth + 0.2) * indent, y, text, va="center", fontsize=9, color=colour, fontweight=weight)
        leaves = sum(line["class"] is not None for line in lines)
        ax.set_title(f"{name}: {leaves} {'leaf' if leaves == 1 else 'leaves'}", fontweight="bold")
        ax.set_xlim(0, WIDTH - 0.2)
        ax.set_ylim(len(lines) - 0.5, -0.5)
        ax.set_axis_off()
    leaves = "; ".join(f"{name} {sum(line['class'] is not None for line in lines)}" for name, lines in trees.items())
    heading(figure, title, f"Decision trees as indented lists, with the cases of each branch. Leaves: {leaves}.")
    return figure
