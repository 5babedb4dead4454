"""Ba & Caruana 2014: figures of this paper alone."""

from functools import partial

from kdcore import papers
from kdcore.papers.ba_caruana_mimic.trial import HIDDEN
from kdcore.report import figures as draw


def figures(records: list[dict]) -> dict:
    """Error against the number of parameters, the paper's and ours; what softmax hides and logits tell."""

    paper = papers.get("ba_caruana_mimic")
    (table,) = (table for table in paper.tables if table["id"] == "errors")
    points = []
    for row, size in zip(table["rows"], paper.sheet["sizes"], strict=True):
        mine = [record for record in records if record["arm"] == row["arm"]]
        point = {"label": f"{size['row']}, {size['layers']}", "paper": (size["parameters"], row["paper"]), "ours": None}
        if mine:
            nets = mine[0]["config"]["members"] if row["metric"] == "member_test_error_percent" else 1
            count = 1e6 * mine[0]["metrics"]["parameters_millions"] / nets
            point["ours"] = (count, [record["metrics"][row["metric"]] for record in mine])
        points.append(point)
    if all(point["ours"] is None for point in points):
        return {}
    return {
        "error_against_parameters": partial(
            draw.error_against_size, points, xlabel="parameters", ylabel="% error", title="Error against the number of parameters"
        ),
        "softmax_hides": partial(draw.logits_and_softmax, HIDDEN, "Two sets of logits, one softmax"),
    }
