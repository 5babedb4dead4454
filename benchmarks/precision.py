"""May a paper train in bfloat16? ``python -m benchmarks.precision hinton_mnist --budget fast --arm small``

Trains the same arm and seeds in float32 and in bfloat16, and compares test errors in pairs with an equivalence test (two one-sided
t-tests, margin 0.2 percentage points by default). New records go to the cache, never to results/; records in results/ that were made in
the required precision are reused. A sheet says ``bfloat16: true`` only once this test has passed.
"""

import argparse
import sys
from datetime import UTC, datetime

from benchmarks import measure
from benchmarks.__main__ import RESULTS, save
from kdcore import paths
from kdcore.errors import KdcoreError
from kdcore.report.statistics import claim_test
from kdcore.trials import engine, plan
from kdcore.trials.store import Store

MARGIN = 0.2  # percentage points of test error; on CIFAR, where seeds differ more, use the margin of the paper's table
PRECISIONS = ("float32", "bfloat16")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precision", description="Equivalence of bfloat16 and float32 training.")
    parser.add_argument("paper")
    parser.add_argument("--budget", default="fast")
    parser.add_argument("--arm", action="append", required=True, help="may be repeated")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--margin", type=float, default=MARGIN, help="percentage points of test error (default: %(default)s)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--save", action="store_true", help=f"append the outcome to {RESULTS.name}")
    options = parser.parse_args(arguments)
    try:
        failed = [arm for arm in options.arm if not compare(options, arm)]
    except KdcoreError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    return 1 if failed else 0


def compare(options, arm: str) -> bool:
    """Run what is missing, print one line, and return whether the two precisions are equivalent."""
    errors = {precision: _errors(options, arm, precision) for precision in PRECISIONS}
    test = claim_test(errors["bfloat16"], errors["float32"], "same", options.margin)
    verdict = "equivalent" if test["p"] < 0.05 else "not shown to be equivalent"
    print(
        f"{options.paper} / {arm} / {options.budget}: bfloat16 - float32 = {test['mean']:+.3f} points of test error, "
        f"90 % interval [{test['low']:+.3f}, {test['high']:+.3f}], n = {test['n']}: {verdict} within {options.margin}"
    )
    if options.save:
        about = {"benchmark": "precision", "device": options.device, "paper": options.paper, "arm": arm, "budget": options.budget}
        found = {"test_error_percent": errors, "margin": options.margin, "test": test, "verdict": verdict}
        save({"when": datetime.now(UTC).isoformat(timespec="seconds")} | about | found | {"environment": measure.environment(0)})
    return verdict == "equivalent"


def _errors(options, arm: str, precision: str) -> list[float]:
    seeds, store, committed = list(range(options.seeds)), Store(paths.cache() / "precision" / precision), Store(measure.ROOT / "results")
    for trial in plan.make(options.paper, options.budget, [arm], seeds, store).trials:
        record = committed.get(trial)
        if record and record["status"] == "done" and record["environment"].get("precision", "float32") == precision:
            store.put(record)
    planned = plan.make(options.paper, options.budget, [arm], seeds, store)
    outcome = engine.run(planned, store, device=options.device, precision=precision)
    if outcome.exit_code:
        raise KdcoreError("; ".join([*outcome.failed.values(), *outcome.refused]) or "paused: run the same command again")
    return [store.get(trial)["metrics"]["test_error_percent"] for trial in planned.trials]


if __name__ == "__main__":
    sys.exit(main())
