"""Yim, Joo, Bae & Kim 2017: figures of this paper alone."""

from functools import partial

from kdcore.papers.fsp.trial import MATRICES, SECTIONS
from kdcore.report import figures as draw


def figures(records: list[dict]) -> dict:
    """The FSP matrices of teacher and student, before and after the first stage and at the end."""
    drawn = {}
    for record in records:
        if "fsp_matrices" in record["metrics"]:
            found = record["metrics"]["fsp_matrices"]
            title = f"FSP matrices, {record['arm']} (mean over test images)"
            drawn["fsp_matrices"] = partial(draw.matrices, {name: found[name] for name in MATRICES}, SECTIONS, title)
            break
    return drawn
