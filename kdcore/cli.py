"""``kdcore plan | run | replicate | report | check``."""

import argparse
import os
import shutil
import sys
from pathlib import Path

from kdcore import __version__, papers, paths
from kdcore.errors import KdcoreError
from kdcore.trials import order, runner
from kdcore.trials.store import Store


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit code: 0 done, 1 failed or refused, 2 wrong usage, 3 paused."""
    options = parser().parse_args(arguments)
    try:
        return options.command(options)
    except KdcoreError as error:
        print(f"kdcore: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `kdcore plan | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="kdcore", description="The replication suite of knowledge distillation.")
    top.add_argument("--version", action="version", version=f"kdcore {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function, summary: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=summary, description=summary)
        sub.set_defaults(command=function)
        sub.add_argument("--results", default="results", metavar="DIR", help="folder of the records (default: results)")
        return sub

    def grid(sub: argparse.ArgumentParser, named: bool) -> None:
        if named:
            sub.add_argument("paper", nargs="+", help=f"one or more of {', '.join(papers.names())}")
        else:
            sub.add_argument("paper", nargs="*", help="papers; all by default")
        sub.add_argument("--budget", default="smoke", help="smoke (default), laptop, fast or paper")
        sub.add_argument("--seeds", type=seeds, help="how many (5), or which (0,3,4); the budget's own number by default")
        sub.add_argument("--device", default="cpu", help="cpu (default), cuda (every GPU) or cuda:N")

    def pace(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--precision",
            choices=("auto", "float32", "bfloat16"),
            default="auto",
            help="of the products in training; auto (default): bfloat16 where it is fast and was found equivalent for the paper",
        )
        sub.add_argument("--jobs", type=positive, help="trials at a time; one a core, or one a GPU, by default")

    sub = command("plan", plan, "Show the grid: what is done, what is missing, and how long the rest would take here.")
    grid(sub, named=False)
    pace(sub)
    sub.add_argument("--arm", action="append", help="only this arm (may be repeated)")
    sub.add_argument(
        "--no-forecast", action="store_true", help="do not time a few steps of each missing arm that has no record of this device"
    )

    sub = command("run", run, "Run the missing trials of papers; goes on where an earlier run stopped.")
    grid(sub, named=True)
    pace(sub)
    sub.add_argument("--arm", action="append", help="only this arm (may be repeated)")
    sub.add_argument("--seed", type=int, action="append", help="only this seed (may be repeated)")
    sub.add_argument(
        "--order",
        choices=order.ORDERS,
        default="sheet",
        help="sheet (default): paper by paper; value: what fills cells of tables at the paper's own scale first, the cheap before the dear",
    )
    sub.add_argument("--time-limit", type=positive, metavar="MINUTES", help="pause everything at a checkpoint after so long")
    sub.add_argument("--timeout", type=positive, metavar="MINUTES", help="end a trial that takes longer, and record the failure")
    sub.add_argument("--retry-failed", action="store_true", help="run trials again whose record is a failure")
    sub.add_argument("--shard", type=shard, default=(1, 1), metavar="I/N", help="the I-th of N parts of the grid, for array jobs")
    sub.add_argument("--quiet", action="store_true", help="no progress display")

    sub = command("replicate", replicate, "Execute the notebooks with papermill; each runs what is missing of its paper.")
    grid(sub, named=False)
    sub.add_argument("--engine", default="local", help="local (default)")

    sub = command("report", report, "Make tables, figures, the page and the README's scoreboard from the records.")
    sub.add_argument("--smoke", action="store_true", help="tables and figures of the smoke records instead, into DIR/smoke")
    command("check", check, "Check that every record, yaml and table is valid, and that README and tables are up to date.")
    return top


def positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not above 0")
    return int(value) if value == int(value) else value


def seeds(text: str) -> list[int]:
    """ "5" -> [0, 1, 2, 3, 4]; "0,3" or "3," -> those."""
    try:
        found = [int(part) for part in text.split(",") if part.strip()]
        found = found if "," in text else list(range(found[0]))
    except (ValueError, IndexError):
        found = []
    if not found or min(found) < 0:
        raise argparse.ArgumentTypeError(f"'{text}' is neither a number of seeds (5) nor a list of seeds (0,3,4)")
    return found


def shard(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    if not (part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
        raise argparse.ArgumentTypeError(f"'{text}' is not I/N with 1 <= I <= N, like 2/8")
    return int(part), int(parts)


def plan(options) -> int:
    from rich.console import Console
    from rich.table import Table

    console, code = Console(), 0
    for key in options.paper or papers.names():
        planned = runner.plan(key, options.budget, options.arm, options.seeds, Store(options.results))
        seconds = {}
        if not options.no_forecast:
            device = runner.devices(options.device)[0]
            try:
                seconds = runner.forecast(planned, device, options.precision)
            except KdcoreError as error:  # what is done and missing is shown all the same
                print(f"kdcore: {error}", file=sys.stderr)
                code = 1
        table = Table(title=f"{papers.get(key).sheet['short']}, budget {options.budget}: {papers.get(key).budget(options.budget)['about']}")
        for column in ("arm", "done", "missing", "failed", "hours"):
            table.add_column(column, justify="left" if column == "arm" else "right")
        job_of = {id: job for job in planned.jobs for id in job.ids}
        for arm in dict.fromkeys(trial.arm for trial in planned.trials):
            trials = [trial for trial in planned.trials if trial.arm == arm]
            done = [trial for trial in trials if trial in planned.done]
            failed = [trial for trial in trials if trial.id in planned.records and trial not in done]
            jobs = [job_of[trial.id] for trial in trials if trial.id in job_of]
            hours = sum(seconds[job.cohort.id] / len(job.ids) for job in jobs) / 3600 if jobs and seconds else None
            table.add_row(arm, str(len(done)), str(len(trials) - len(done)), str(len(failed)), "" if hours is None else f"{hours:.2f}")
        console.print(table)
        if seconds:
            count = min(options.jobs or os.cpu_count() or 1, max(1, len(planned.jobs)))
            hours = sum(seconds.values()) / 3600
            console.print(
                f"Missing: {hours:.2f} hours of one process on {options.device}, about {hours / count:.2f} h with {count} at a time."
            )
        disk = shutil.disk_usage(_existing(paths.cache())).free / 2**30
        print(f"Cache {paths.cache()}: {disk:.0f} GiB free.")
    return code


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)


def run(options) -> int:
    from kdcore.trials.progress import Progress

    store = Store(options.results)
    keys = list(dict.fromkeys(options.paper))
    asked = (options.budget, options.arm, options.seed or options.seeds, store, options.retry_failed, options.shard)
    planned = order.merged([runner.plan(key, *asked) for key in keys], options.order, runner.devices(options.device)[0])
    with Progress(planned, quiet=options.quiet) as progress:
        outcome = runner.run(
            planned,
            store,
            device=options.device,
            precision=options.precision,
            jobs=options.jobs,
            time_limit=None if options.time_limit is None else 60 * options.time_limit,
            timeout=None if options.timeout is None else 60 * options.timeout,
            watch=progress,
        )
    for sentence in outcome.problems:
        print(f"kdcore: {sentence}", file=sys.stderr)
    if outcome.paused:
        print(f"kdcore: {len(outcome.paused)} trials left; the same command goes on from here", file=sys.stderr)
    for key in keys:
        trials = [trial for trial in planned.trials if trial.paper == key]
        done = [trial for trial in trials if trial.id in outcome.done]
        print(f"{len(done)} of {len(trials)} trials of {key} at {options.budget} are recorded")
    return outcome.exit_code


def replicate(options) -> int:
    from kdcore import notebooks

    code = 0
    for key in options.paper or papers.names():
        code = max(code, notebooks.execute(key, options))
    return code


def report(options) -> int:
    from kdcore import report as reports

    for path in reports.write(options.results, budget="smoke" if options.smoke else None):
        print(path)
    return 0


def check(options) -> int:
    from kdcore import checks

    problems = checks.all_problems(Path(options.results))
    for problem in problems:
        print(f"kdcore: {problem}", file=sys.stderr)
    print("everything is valid and up to date" if not problems else f"{len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
