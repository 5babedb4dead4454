"""Romero et al. 2015: this paper's own figures."""

from functools import partial

from kdcore import papers
from kdcore.papers.fitnets.schedule import ramp
from kdcore.report.figures import curve


def figures(records: list[dict]) -> dict:
    """The weight of the teacher in stage 2: the paper's schedule beside that of the released code."""
    if all(record["arm"] != "FitNet 4" for record in records):
        return {}
    paper, parts, lines = papers.get("fitnets"), 100, {}
    for name, arm in (("paper", "FitNet 4"), ("released code", "FitNet 4, released code")):  # the second needs no record
        weight = paper.config(records[0]["budget"], arm)["soft_weight"]
        lines[name] = [ramp(weight, part / parts) for part in range(parts + 1)]
    title = "How the weight of the soft targets falls while FitNet 4 trains"
    return {
        "soft_weight": partial(
            curve, range(parts + 1), lines, xlabel="progress of stage 2 (%)", ylabel="weight of the soft targets (lambda)", title=title
        )
    }
