"""``python -m benchmarks [NAME ...]``: measure, print one table, and optionally check or save it."""

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import cifar, measure, mlp, suite
from benchmarks.measure import BenchmarkError, Spread
from benchmarks.suite import BENCHMARKS, Row, Settings

RESULTS = Path(__file__).with_name("results.jsonl")
MINIMUM_ROUNDS = 5
TOO_BUSY = 0.1  # share of the CPU that other processes may use before ratios become unreliable
HEAD = ("id", "benchmark", "what", "baseline", "ours", "unit", "ratio [min-max]", "floor", "target", "verdict", "peak MB")


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    unknown = [name for name in options.names if name not in BENCHMARKS]
    if unknown:
        return _complain(f"unknown benchmark '{unknown[0]}': choose from {', '.join(BENCHMARKS)}", 2)
    if options.rounds < 1:
        return _complain("--rounds must be at least 1", 2)
    if options.save and (options.quick or options.rounds < MINIMUM_ROUNDS):
        return _complain(f"--save takes only full runs: at least {MINIMUM_ROUNDS} rounds and no --quick", 2)
    try:
        return _run(options)
    except BenchmarkError as error:
        return _complain(str(error), 1)
    except KeyboardInterrupt:
        return _complain("stopped", 130)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="kdcore's speed against the usual training loop.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(BENCHMARKS)} (default: all)")
    parser.add_argument("--rounds", type=int, default=MINIMUM_ROUNDS, help="how often each side is measured (default %(default)s)")
    parser.add_argument("--quick", action="store_true", help="short rounds on a smaller set, to see that it works")
    parser.add_argument("--seed", type=int, default=0, help="seed of data, weights and batches (default %(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="only the rows of this device (default: every device of this machine)")
    parser.add_argument("--save", action="store_true", help=f"append one JSON row per benchmark to {RESULTS.name}")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a floor is missed")
    return parser


def _complain(sentence: str, status: int) -> int:
    print(f"benchmarks: {sentence}", file=sys.stderr)
    return status


def _settings(options: argparse.Namespace) -> Settings:
    if options.quick:
        quick = {"task": mlp.Task(options.seed, 10_000), "images": cifar.Task(options.seed, 10_000)}
        return Settings(options.rounds, seconds=0.4, trial_steps=6, wrn_trial_steps=1, pseudo_cases=4_000, **quick)
    return Settings(options.rounds, task=mlp.Task(options.seed), images=cifar.Task(options.seed))


def _run(options: argparse.Namespace) -> int:
    settings, names = _settings(options), list(dict.fromkeys(options.names)) or list(BENCHMARKS)
    jobs = [(name, device) for name in names for device in suite.devices(name) if options.device in (None, device)]
    if not jobs:
        return _complain(f"nothing to run: this machine has no {options.device}, or it has no rows for {', '.join(names)}", 2)
    trained = [job for job in jobs if job[0] != "munge"]
    for on_cifar, device in dict.fromkeys((name in suite.ON_CIFAR, device) for name, device in trained):
        suite.check_numerics(on_cifar, options.seed, device)
        nets = "convolutional nets" if on_cifar else "MLPs"
        _progress(f"numerics of {nets} on {device}: kdcore's losses equal the plain loop's, and the table equals the teacher")
    environment = measure.environment(options.seed)
    cells, notes, missed = [], [], []
    for name, device in jobs:
        _progress(f"{name} on {device}: {settings.rounds} rounds ...")
        ceilings, load = measure.ceilings(device), measure.OtherLoad()
        outcome = BENCHMARKS[name](settings, device)
        others = load.share()
        found = [_cells(name, row) for row in outcome.rows]
        for line in found:
            _progress("  " + "  ".join(line[2:]))  # so that a long run that is stopped has not been for nothing
        cells += found
        missed += [f"{row.id} {row.what}" for row in outcome.rows if row.verdict() == "below floor"]
        notes += [f"{name} ({device}): {note}" for note in (*outcome.notes, _conditions(ceilings, others))]
        if options.save:
            save(_record(name, device, settings, outcome, ceilings, others, environment))
    print(_table(HEAD, cells))
    print("\n".join(["", *notes, "", ", ".join(f"{key} {value}" for key, value in environment.items())]))
    if missed:
        print(f"below the floor: {'; '.join(missed)}", file=sys.stderr)
    return 1 if missed and options.check else 0


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"


def _cells(name: str, row: Row) -> list[str]:
    unit = "x" if row.judged == "ratio" else ""
    ratio = row.ratio()
    sign = "<= " if row.judged == "ours" and row.lower_is_better else ""
    bounds = ["-" if bound is None else sign + _number(bound) + unit for bound in (row.floor, row.target)]
    return [
        row.id,
        name,
        row.what,
        _number(Spread.of(row.baseline).median),
        _number(Spread.of(row.ours).median),
        row.unit,
        f"{ratio.median:.2f}x [{ratio.low:.2f}-{ratio.high:.2f}]",
        *bounds,
        row.verdict(),
        f"{row.memory_mb:,.0f} (base {row.baseline_memory_mb:,.0f})",
    ]


def _table(head: tuple[str, ...], lines: list[list[str]]) -> str:
    widths = [max(len(line[i]) for line in [list(head), *lines]) for i in range(len(head))]
    right = {3, 4, 6, 7, 8, 10}

    def text(line) -> str:
        return "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width) for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )

    return "\n".join([text(head), "  ".join("-" * width for width in widths), *map(text, lines)])


def _conditions(ceilings: dict[str, float], others: float | None) -> str:
    limits = ", ".join(f"{key} {_number(value)}" for key, value in ceilings.items())
    share = "an unknown share" if others is None else f"{100 * others:.0f} %"
    advice = ": too much; measure again on an idle machine" if others is not None and others > TOO_BUSY else ""
    return f"{limits}; other processes used {share} of the CPU{advice}"


def _record(name, device, settings: Settings, outcome: suite.Outcome, ceilings: dict, others: float | None, environment: dict) -> dict:
    """One line of the results file. Each round's figure is kept, so that ratios can be recomputed."""
    rows = [vars(row) | {"ratio": vars(row.ratio()), "verdict": row.verdict()} for row in outcome.rows]
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "benchmark": name,
        "device": device,
        "rounds": settings.rounds,
        "seconds": settings.seconds,
        "cases": settings.cases(name),
        "rows": rows,
        "notes": outcome.notes,
        "ceilings": ceilings,
        "cpu_used_by_others": others,
        "environment": environment,
    }


def save(record: dict) -> None:
    def rounded(value):
        if isinstance(value, dict):
            return {key: rounded(item) for key, item in value.items()}
        if isinstance(value, list):
            return [rounded(item) for item in value]
        return float(f"{value:.5g}") if isinstance(value, float) else value

    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(rounded(record)) + "\n")


if __name__ == "__main__":
    sys.exit(main())
