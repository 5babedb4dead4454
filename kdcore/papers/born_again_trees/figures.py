"""Breiman & Shang 1996: figures of this paper alone."""

from functools import partial

from kdcore.report import figures as draw


def figures(records: list[dict]) -> dict:
    """What draws the paper's own figures from the records of one budget, by name; what has no record is left out."""
    drawn = {}
    if kept := [record["metrics"]["trees"] for record in records if "trees" in record["metrics"]]:
        drawn["trees"] = partial(draw.outlines, kept[0], "Breast cancer: a born-again tree beside CART's (in brackets: training cases)")
    sweeps: dict[str, dict[int, list]] = {}
    for record in records:
        counts = {v["smeared"]: f"_{name}" for name, v in record["config"]["variants"].items() if set(v) == {"smeared"}}
        cells = sweeps.setdefault(record["arm"], {})
        for count, name in (counts | {record["config"]["smeared"]: ""}).items():
            cells.setdefault(count, []).append(record["metrics"][f"born_again_error_percent{name}"])
    counts = sorted({count for cells in sweeps.values() for count in cells})
    if len(counts) > 1:
        drawn["smeared"] = partial(
            draw.error_against,
            counts,
            {arm: [cells.get(count, []) for count in counts] for arm, cells in sweeps.items()},
            xlabel="smeared cases for each node",
            ylabel="test error (%)",
            title="The born-again tree's test error against the number of smeared cases",
        )
    return drawn
