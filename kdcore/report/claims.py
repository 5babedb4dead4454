"""Tests of a paper's claims on our records and, if it reports means and standard deviations, on its own numbers."""

import math

import pandas as pd

from kdcore.report import select, statistics, tables, words

VERDICTS = ("holds", "contradicted", "inconclusive", "not run", "not comparable")


def claims(paper, records: list[dict], budget: str) -> pd.DataFrame:
    """The paper's claims at one budget, one row each.

    A side is the mean of a metric over its arms, seed by seed (only seeds that have all of them count), or a constant.
    Columns: id, text, source, relation, margin; left, right (means over the shared seeds), difference with low, high (left -
    right; 95 % interval, 90 % for "same"), n (seeds), p (Holm-adjusted over the paper's claims that could be tested), p_alone,
    verdict, left_side, right_side (in words), mixed (the seeds whose student and teacher ran on different processors). If the
    sheet gives the number of ``runs`` behind the paper's means and standard deviations, also reported, reported_low,
    reported_high, reported_p: the same for the paper's own numbers (``statistics.reported_test``, unadjusted), nan if a side has
    none.
    """
    done, by_id = select.results(paper, records, budget), {record["id"]: record for record in records}
    comparable = paper.budget(budget).get("comparable", True)
    mixed = {(record["arm"], record["seed"]) for record in done if select.mixed_processors(record, by_id)}
    rows = []
    for claim in paper.sheet.get("claims", []):
        arms = [arm for side in ("left", "right") for arm in claim[side].get("arms", ())]
        sides = [None if "value" in claim[side] else select.by_seed(done, claim[side]) for side in ("left", "right")]
        seeds = sorted(set.intersection(*(set(side) for side in sides if side is not None)))
        left, right = (
            [side[s] if side is not None else claim[name]["value"] for s in seeds]
            for side, name in zip(sides, ("left", "right"), strict=True)
        )
        test = statistics.claim_test(left, right, claim["relation"], claim.get("margin"))
        rows.append(
            {
                "id": claim["id"],
                "text": claim["text"],
                "source": claim["source"],
                "relation": claim["relation"],
                "margin": tables.as_float(claim.get("margin")),
                "left": statistics.mean_interval(left)[0],
                "right": statistics.mean_interval(right)[0],
                "difference": test["mean"],
                "low": test["low"],
                "high": test["high"],
                "n": test["n"],
                "p_alone": test["p"],
                "left_side": _in_words(claim["left"]),
                "right_side": _in_words(claim["right"]),
                "mixed": [seed for seed in seeds if any((arm, seed) in mixed for arm in arms)],
                "sides": (left, right),
                **_reported(paper, claim),
            }
        )
    for row, p in zip(rows, statistics.holm(row["p_alone"] for row in rows), strict=True):
        left, right = row.pop("sides")
        row["p"] = p
        verdict = statistics.claim_verdict(left, right, row["relation"], p, None if math.isnan(row["margin"]) else row["margin"])
        row["verdict"] = verdict if comparable or verdict == "not run" else "not comparable"
    columns = [
        "id", "text", "left", "right", "relation", "margin", "difference", "low", "high", "n", "p", "p_alone", "verdict", "left_side",
        "right_side", "source", "mixed", *(("reported", "reported_low", "reported_high", "reported_p") if "runs" in paper.sheet else ()),
    ]  # fmt: skip
    frame = pd.DataFrame(rows, columns=columns)
    frame.attrs = tables.about(paper, budget, done) | {"kind": "claims", "id": "claims", "title": "Claims", "number": None, "source": ""}
    return frame


def _reported(paper, claim: dict) -> dict[str, float]:
    """The test of a claim on the paper's own means and standard deviations; {} if the sheet has no ``runs``."""
    if "runs" not in paper.sheet:
        return {}
    known = {
        (row["arm"], row["metric"]): (row["paper"], row["std"])
        for table in paper.tables
        for row in table["rows"]
        if row.get("std") is not None and not select.doubt(row)
    }
    sides = [[known.get((arm, claim[side]["metric"])) for arm in claim[side].get("arms", ())] for side in ("left", "right")]
    test = dict.fromkeys(("mean", "low", "high", "p"), math.nan)
    if all(side and None not in side for side in sides):
        test = statistics.reported_test(*sides, paper.sheet["runs"], claim["relation"], claim.get("margin"))
    return {"reported": test["mean"], **{f"reported_{key}": test[key] for key in ("low", "high", "p")}}


def _in_words(side: dict) -> str:
    if "value" in side:
        return words.reported(side["value"])
    return f"{side['metric']} of {' and '.join(side['arms'])}"
