"""Tests of a paper's claims on our records, beside the paper's own numbers."""

import math

import numpy as np
import pandas as pd

from kdcore.report import select, statistics, tables, words

VERDICTS = ("holds", "contradicted", "undecided", "interim", "not run", "demo")
REPORTED = ("reported", "reported_low", "reported_high", "reported_p", "reported_right")


def claims(paper, records: list[dict], budget: str) -> pd.DataFrame:
    """The paper's claims at one budget, one row each.

    A side is the mean of a metric over its arms, seed by seed (only seeds that have all of them count), or a constant.
    Columns: id, text, effect, source, relation, margin, unit; left, right (means over the shared seeds), difference (left - right)
    with low and high, the interval of the given level that the verdict uses (``statistics.holm_levels`` over the claims that could
    be tested), n (seeds), planned (those that the sheet asks for), p (Holm-adjusted), p_alone, verdict ("interim" with fewer seeds
    than planned, "demo" at that scale), left_side, right_side (in words), mixed (the seeds whose student and teacher ran on
    different processors); reported (left - right of the paper's own numbers), reported_right (its right side), reported_low,
    reported_high, reported_p (``statistics.reported_test``, unadjusted, where the sheet gives standard deviations and the number of
    ``runs`` behind them); nan where a number is missing.
    """
    done, by_id = select.results(paper, records, budget), {record["id"]: record for record in records}
    scale = paper.budget(budget)["scale"]
    mixed = {(record["arm"], record["seed"]) for record in done if select.mixed_processors(record, by_id)}
    rows, tests, plain = [], [], []
    for claim in paper.sheet.get("claims", []):
        arms = paper.compared(claim)
        sides = [claim[name] for name in ("left", "right") if "value" not in claim[name]]
        means = paired(claim, [select.by_seed(done, side) for side in sides])
        found, overlap = select.samples(paper, budget, done, *sides)
        arguments = {"relation": claim["relation"], "margin": claim.get("margin")}
        tests.append((*paired(claim, found)[:2], arguments | {"overlap": overlap}))
        left, right, seeds = means
        plain.append((left, right, arguments))
        rows.append(
            {
                "id": claim["id"],
                "text": claim["text"],
                "effect": claim.get("effect", ""),
                "source": claim["source"],
                "relation": claim["relation"],
                "margin": tables.as_float(claim.get("margin")),
                "unit": unit(paper, claim),
                "left": statistics.mean_interval(left)[0],
                "right": statistics.mean_interval(right)[0],
                "n": len(seeds),
                "planned": min(paper.seeds(budget, arm) for arm in arms) if set(arms) <= set(paper.budget_arms(budget)) else 0,
                "left_side": _in_words(claim["left"]),
                "right_side": _in_words(claim["right"]),
                "mixed": [seed for seed in seeds if any((arm, seed) in mixed for arm in arms)],
                **reported(paper, claim),
            }
        )
    for row, found in zip(rows, judged(tests), strict=True):
        row |= found
        row["verdict"] = _published(row, scale)
    columns = [
        "id", "text", "effect", "left", "right", "relation", "margin", "unit", "difference", "low", "high", "level", "n", "planned",
        "p", "p_alone", "verdict", "left_side", "right_side", "source", "mixed", *REPORTED,
    ]  # fmt: skip
    frame = pd.DataFrame(rows, columns=columns)
    frame.attrs = tables.about(paper, budget, done) | {"kind": "claims", "id": "claims", "title": "Claims", "number": None, "source": ""}
    others = [(row["text"], _published(row | other, scale), row["verdict"]) for row, other in zip(rows, judged(plain), strict=True)]
    run = set(paper.budget_arms(budget))
    frame.attrs["trained"] = tables.trained(
        paper, budget, [arm for claim in paper.sheet["claims"] for arm in paper.compared(claim) if arm in run]
    )
    frame.attrs["independent"] = [other for other in others if other[1] != other[2]]
    return frame


def judged(tests: list[tuple[list[float], list[float], dict]]) -> list[dict]:
    """The columns difference, low, high, level, p, p_alone and verdict of all claims, given left, right and what
    ``statistics.claim_test`` needs."""
    alone = [statistics.claim_test(left, right, **arguments)["p"] for left, right, arguments in tests]
    judged = []
    for (left, right, arguments), p, alpha in zip(tests, statistics.holm(alone), statistics.holm_levels(alone), strict=True):
        test = statistics.claim_test(left, right, **arguments, alpha=0.05 if math.isnan(alpha) else alpha)
        columns = {"difference": test["mean"], "p": p, "p_alone": test["p"]} | {name: test[name] for name in ("low", "high", "level")}
        judged.append(columns | {"verdict": statistics.claim_verdict(test, arguments["relation"], arguments["margin"])})
    return judged


def _published(row: dict, scale: str) -> str:
    """The verdict of a claim, unless there is none at this scale or not yet."""
    if row["verdict"] == "not run":
        return "not run"
    return "demo" if scale == "demo" else "interim" if row["n"] < row["planned"] else row["verdict"]


def reported(paper, claim: dict) -> dict[str, float]:
    """The columns ``REPORTED`` of a claim, from the paper's own numbers (``Paper.reported``); nan where one is missing."""
    sides = paper.reported(claim)
    if sides is None:
        return dict.fromkeys(REPORTED, math.nan)
    left, right = (float(np.mean([mean for mean, _ in side])) for side in sides)
    test = {"mean": statistics.rounded(left - right), "low": math.nan, "high": math.nan, "p": math.nan}
    if "runs" in paper.sheet and not any(math.isnan(std) for side in sides for _, std in side):
        test = statistics.reported_test(*sides, paper.sheet["runs"], claim["relation"], claim.get("margin"))
    return dict(zip(REPORTED, (test["mean"], test["low"], test["high"], test["p"], right), strict=True))


def unit(paper, claim: dict) -> str:
    """The unit of a claim's metric, from the first row of the sheet with this metric (or with the accuracy, for an error)."""
    metric = claim["left"].get("metric") or claim["right"]["metric"]
    units = {name: name_unit for table in reversed(paper.tables) for row in reversed(table["rows"]) for name, name_unit in _names(row)}
    return units.get(metric, "")


def _names(row: dict) -> list[tuple[str, str]]:
    """(metric, unit) of a row, and those of the error that its accuracy in percent implies."""
    metric, text = row["metric"], row["unit"]
    error = metric.replace("accuracy_percent", "error_percent")
    return [(metric, text), (error, text if error == metric else text.replace("accuracy", "error"))]


def paired(claim: dict, found: list[dict]) -> tuple[list[float], list[float], list]:
    """Left and right [n] of a claim, a constant repeated, and the keys that all of ``found`` (a dict for each side with arms) share."""
    keys, sides = sorted(set.intersection(*map(set, found))), iter(found)
    left, right = (
        [claim[name]["value"]] * len(keys) if "value" in claim[name] else [side[key] for side in (next(sides),) for key in keys]
        for name in ("left", "right")
    )
    return left, right, keys


def _in_words(side: dict) -> str:
    if "value" in side:
        return words.reported(side["value"])
    return f"{side['metric']} of {' and '.join(side['arms'])}"
