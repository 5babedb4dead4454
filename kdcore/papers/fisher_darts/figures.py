"""Whettam 2019/2020: figures of this paper alone."""

from functools import partial

from kdcore import papers
from kdcore.models.darts import GENOTYPES
from kdcore.report import figures as draw


def figures(records: list[dict]) -> dict:
    """The baseline's spread, the paths of growth, where students look, error against similarity, the cells that were found."""

    by_arm: dict[str, list[dict]] = {}
    for record in records:
        by_arm.setdefault(record["arm"], []).append(record)
    drawn = {}
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
        title = "The DARTS student under four teachers: how much single runs differ"
        drawn["spread"] = partial(draw.spread, rows, xlabel="% top-1 error", title=title)
    paths = {}
    for name, arm in (("Fisher information", "Fisher teacher"), ("random", "random-order teacher"), ("uniform", "uniform teacher")):
        if arm in by_arm:
            growth = by_arm[arm][0]["metrics"]["growth"]
            paths |= {f"{name}, {way}" if len(growth) > 1 else name: path for way, path in growth.items()}
    if paths:
        drawn["growth"] = partial(draw.growth, paths, "Growing the student: groups of each cell's convolutions, step by step")
    seen = {
        f"{student} student, {'no' if teacher == 'none' else teacher} teacher": by_arm[arm][0]["metrics"]["maps"]
        for student in ("DenseNet", "DARTS")
        for teacher in ("none", "WRN", "DenseNet", "DARTS")
        if (arm := f"{teacher} -> {student}") in by_arm
    }
    if seen:
        drawn["maps"] = partial(draw.attention, seen, "Where students look, by their teacher")
    points: dict[str, list] = {}
    for arm, found in by_arm.items():
        for record in found:
            if "map_similarity" in record["metrics"]:
                points.setdefault(arm, []).append((record["metrics"]["map_similarity"], record["metrics"]["test_error_percent"]))
    if points:
        axes = {"xlabel": "mean cosine of the attention maps of teacher and student", "ylabel": "% top-1 error of the student"}
        drawn["similarity"] = partial(draw.scatter, points, **axes, title="Do students that look like their teachers make fewer errors?")
    kinds = {}
    for arm, found in by_arm.items():
        name = found[0]["config"]["network"] or ""
        if arm == "none -> DARTS":
            kinds |= {f"the student's {kind}": edges for kind, edges in GENOTYPES[name.split("_")[1]]._asdict().items()}
        elif "genotype" in found[0]["metrics"]:
            kinds |= {f"{arm}: {kind}": edges for kind, edges in found[0]["metrics"]["genotype"].items()}
    if kinds:
        drawn["cells"] = partial(draw.cells, kinds, "The student's cells, and those that our searches found")
    return drawn
