"""Hinton, Vinyals & Dean 2015: figures of this paper alone."""

from functools import partial

from kdcore.report import figures as draw


def figures(records: list[dict]) -> dict:
    """What draws the paper's own figures from the records of one budget, by name; what has no record is left out."""
    by_arm: dict[str, list[dict]] = {}
    for record in records:
        by_arm.setdefault(record["arm"], []).append(record)
    tests = sum(map(sum, _first(by_arm, "small with KD, no 3s")["confusion_before"])) if "small with KD, no 3s" in by_arm else 0
    drawn = {}
    if "cumbersome" in by_arm:
        drawn["dark_knowledge"] = partial(
            draw.gallery,
            _first(by_arm, "cumbersome")["gallery"],
            (1.0, 4.0, 20.0),
            "Dark knowledge: what the teacher says beyond the label",
        )
    for name, arm, what, title in (
        ("shift_3", "small with KD, no 3s", "added to the bias of class 3", "A net that never saw a 3: errors against the bias shift"),
        (
            "shift_78",
            "small with KD, only 7s and 8s",
            "added to the biases of 7 and 8",
            "A net that saw 7s and 8s alone: errors against the bias shift",
        ),
    ):
        if arm in by_arm:
            measures = [record["metrics"] for record in by_arm[arm]]
            drawn[name] = partial(
                draw.curve,
                measures[0]["shifts"],
                {"test errors (thin: each seed)": [m["shift_test_errors"] for m in measures]},
                {
                    "chosen on held-out cases": [m["shift_heldout"] for m in measures],
                    "chosen on the test set": [m["shift_test"] for m in measures],
                },
                xlabel=what,
                ylabel=f"errors of {tests:,}" if tests else "errors",
                title=title,
                log=True,
            )
    if "small with KD, no 3s" in by_arm:
        for name, when, title in (
            ("confusion_without_3", "before", "The net that never saw a 3, before the shift"),
            ("confusion_without_3_shifted", "shift_heldout", "The net that never saw a 3, after the shift"),
        ):
            matrix = _first(by_arm, "small with KD, no 3s")[f"confusion_{when}"]
            drawn[name] = partial(draw.confusion, matrix, range(len(matrix)), title)
    sweeps: dict[str, dict[float, list]] = {}
    for arm, of_arm in by_arm.items():
        if " units, T=" in arm:
            cells = sweeps.setdefault(arm.partition(",")[0] + " a layer", {})
            cells[of_arm[0]["config"]["temperature"]] = [record["metrics"]["test_errors"] for record in of_arm]
    if sweeps:
        temperatures = sorted({t for cells in sweeps.values() for t in cells})
        drawn["temperature"] = partial(
            draw.error_against,
            temperatures,
            {width: [cells.get(t, []) for t in temperatures] for width, cells in sorted(sweeps.items(), reverse=True)},
            xlabel="temperature T",
            ylabel="test errors",
            title="Errors against temperature, for two widths",
        )
    return drawn


def _first(by_arm: dict[str, list[dict]], arm: str) -> dict:
    """Metrics of an arm's first seed."""
    return by_arm[arm][0]["metrics"]
