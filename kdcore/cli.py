"""``kdcore plan | run | replicate | report | check | notebook | new``."""

import argparse
import contextlib
import importlib
import math
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from kdcore import __version__, paths, validation
from kdcore.errors import KdcoreError, Stopped


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code: 0 done, 1 failed or refused, 2 wrong usage, 3 paused."""
    code = options = None
    try:
        _let_sigterm_interrupt()
        try:
            importlib.import_module("kdcore.trials")
        except ImportError as error:  # Windows
            raise KdcoreError(str(error)) from error
        top = parser()
        options = top.parse_args(arguments)
        if options.command is None:
            top.print_help(sys.stderr)
            top.exit(2, "\nkdcore: error: name a command, such as kdcore plan\n")
        code = options.command(options)
        print(end="", flush=True)  # report output that cannot be written here, not while Python shuts down
        return code
    except (KeyboardInterrupt, Stopped) as error:
        print(f"kdcore: {str(error) or 'stopped'}; the same command resumes from here", file=sys.stderr)
        return 3
    except KdcoreError as error:
        print(f"kdcore: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "kdcore":
            raise
        print(f"kdcore: this command needs {error.name}, which is not installed: pip install -r requirements.txt", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `kdcore plan | head`
        _forget_output()
        if code is None and options and options.command in (run, replicate, check):
            print("kdcore: the output was closed: run the same command again", file=sys.stderr)
            return 1
        return code or 0
    except OSError as error:  # a full disk, a folder without permission
        print(f"kdcore: {paths.trouble(error)}", file=sys.stderr)
        if not error.filename:
            _forget_output()
        return 1


def _forget_output() -> None:
    """Discard buffered output, so that Python does not complain about it on exit."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _let_sigterm_interrupt() -> None:
    """Treat SIGTERM like Ctrl-C, so that nothing is left behind. (A run of trials handles both itself.)"""
    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def parser() -> argparse.ArgumentParser:
    from kdcore import papers
    from kdcore.trials import order

    top = argparse.ArgumentParser(
        prog="kdcore",
        description="A replication suite for knowledge distillation.",
        epilog="`kdcore COMMAND --help` explains a command. Exit codes: 0 done, 1 failed or refused, 2 wrong usage, 3 paused.",
    )
    top.add_argument("--version", action="version", version=f"kdcore {__version__}")
    top.set_defaults(command=None)
    commands = top.add_subparsers(metavar="COMMAND")

    def command(name: str, function, summary: str, results: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=summary, description=summary)
        sub.set_defaults(command=function)
        if results:
            sub.add_argument("--results", metavar="DIR", help="results folder (default: results of the checkout)")
        return sub

    def grid(sub: argparse.ArgumentParser, named: bool) -> None:
        listed = ", ".join(papers.names())
        if named:
            sub.add_argument("paper", metavar="PAPER", nargs="+", action=Distinct, help=f"one or more of {listed}")
        else:
            sub.add_argument("paper", metavar="PAPER", nargs="*", action=Distinct, help=f"any of {listed} (default: all)")
        sub.add_argument("--budget", default="smoke", help="smoke (default), laptop, fast or paper")
        chosen = sub.add_mutually_exclusive_group()
        chosen.add_argument("--seeds", type=seeds, help="how many (5), or which (0,3,4); default: the budget's number")
        if named:
            chosen.add_argument("--seed", type=_typed(validation.parsed_seed), action="append", help="only this seed (may be repeated)")
        sub.add_argument("--device", type=_typed(validation.device), default="cpu", help="cpu (default), cuda (every GPU) or cuda:N")

    def pace(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--precision",
            choices=validation.PRECISIONS,
            default="auto",
            help="of matrix products in training; auto (default): bfloat16 if it is fast here and was found equivalent for the paper",
        )
        sub.add_argument("--jobs", type=_typed(validation.parsed_jobs), metavar="N", help="trials at a time (default: one per core or GPU)")
        sub.add_argument("--arm", action=Distinct, help="only this arm (may be repeated)")

    minutes = {"type": _typed(validation.parsed_minutes), "metavar": "MINUTES"}
    sub = command("plan", plan, "Show what is done and missing, how long the rest takes on this machine, and what its seeds can show.")
    grid(sub, named=False)
    pace(sub)
    sub.add_argument(
        "--no-forecast", action="store_true", help="skip the forecast, which times a few steps of each missing arm without a record here"
    )

    sub = command("run", run, "Run the missing trials of papers; resumes where an earlier run stopped.")
    grid(sub, named=True)
    pace(sub)
    sub.add_argument(
        "--order",
        choices=order.ORDERS,
        default="sheet",
        help="sheet (default): paper by paper; value: first the trials for table cells that compare with the paper, cheap ones first",
    )
    sub.add_argument("--time-limit", **minutes, help="pause everything at a checkpoint after this time")
    sub.add_argument("--timeout", **minutes, help="end a trial that takes longer than this, and record the failure")
    sub.add_argument("--retry-failed", action="store_true", help="run trials again that failed")
    sub.add_argument("--shard", type=shard, default=(1, 1), metavar="I/N", help="part I of N of the missing trials, for array jobs")
    sub.add_argument("--quiet", action="store_true", help="no progress display")

    sub = command("replicate", replicate, "Execute the notebooks with papermill, after running each paper's missing trials.")
    grid(sub, named=False)
    sub.add_argument("--engine", default="local", help="local (default)")

    sub = command("report", report, "Make tables, figures, pages and the README's generated parts from the records.")
    either = sub.add_mutually_exclusive_group()
    either.add_argument("--smoke", action="store_true", help="make tables and figures of the smoke records instead, in DIR/smoke")
    either.add_argument("--site", action="store_true", help="make the site too, in DIR/site")
    command("check", check, "Check that sheets and records are valid, and that README, tables, pages and notebooks are up to date.")
    summary = "Update the standard cells of notebooks from their sheets; all other cells are left alone."
    sub = command("notebook", notebook, summary, results=False)
    sub.add_argument("paper", metavar="PAPER", nargs="+", action=Distinct, help="one or more keys of papers")
    sub = command("new", new, "Create the skeleton of a new paper: its folder, notebook and test.", results=False)
    sub.add_argument("paper", metavar="KEY", help="key of the paper: lower-case letters, digits and underscores")
    return top


class Distinct(argparse.Action):
    """Collects values like "append", or those of ``nargs="*"``, and refuses repeated ones."""

    def __call__(self, parser, namespace, values, option=None):
        every = list(getattr(namespace, self.dest) or []) + (values if isinstance(values, list) else [values])
        try:
            setattr(namespace, self.dest, validation.distinct(every, self.dest) if every else every)
        except KdcoreError as error:
            raise argparse.ArgumentError(self, str(error)) from None


def _typed(parse: Callable) -> Callable:
    """Turn a function of kdcore.validation into the ``type`` of an argument, so that refused values are usage errors."""

    def typed(text: str):
        try:
            return parse(text)
        except KdcoreError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return typed


seeds, shard = _typed(validation.parsed_seeds), _typed(validation.parsed_shard)


def plan(options) -> int:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from kdcore import papers
    from kdcore.trials import environment, forecast
    from kdcore.trials.plan import make as make_plan
    from kdcore.trials.store import Store

    console, code, store = Console(), 0, Store(validation.results(options.results))
    validation.folder(paths.cache(), "set KDCORE_CACHE to a writable folder")
    for key in options.paper or _all_papers():
        planned = make_plan(key, options.budget, options.arm, options.seeds, store)
        seconds = {}
        if not options.no_forecast:
            device = environment.devices(options.device)[0]
            try:
                seconds = forecast.seconds(planned, device, options.precision)
            except KdcoreError as error:  # still show what is done and missing
                print(f"kdcore: {error}", file=sys.stderr)
                code = 1
        about = papers.get(key).budget(options.budget)["about"]
        table = Table(title=Text(f"{papers.get(key).sheet['short']}, budget {options.budget}: {about}"))
        for column in ("arm", "done", "missing", "failed", "hours"):
            table.add_column(column, justify="left" if column == "arm" else "right")
        done = {trial.id for trial in planned.done}
        share = {each: seconds[job.cohort.id] / len(job.ids) for job in planned.jobs for each in job.ids} if seconds else {}
        arms: dict[str, list[str]] = {}
        for trial in planned.trials:
            arms.setdefault(trial.arm, []).append(trial.id)
        for arm, ids in arms.items():
            ended, failed = sum(each in done for each in ids), sum(each in planned.records and each not in done for each in ids)
            missing = [share[each] for each in ids if each in share]
            table.add_row(Text(arm), str(ended), str(len(ids) - ended), str(failed), f"{sum(missing) / 3600:.2f}" if missing else "")
        console.print(table)
        _print_power(console, planned, papers.get(key), options.budget)
        if seconds:
            count = min(options.jobs or os.cpu_count() or 1, max(1, len(planned.jobs)))
            hours = sum(seconds.values()) / 3600
            console.print(
                f"Missing: {hours:.2f} hours of one process on {options.device}, about {hours / count:.2f} h with {count} in parallel."
            )
        disk = shutil.disk_usage(_existing(paths.cache())).free / 2**30
        print(f"Cache {paths.cache()}: {disk:.0f} GiB free.")
    return code


def _print_power(console, planned, paper, budget: str) -> None:
    """Print what the planned seeds can show about the paper's claims and numbers."""
    from rich.box import SIMPLE
    from rich.table import Table
    from rich.text import Text

    try:
        from kdcore.report import power, select, words
    except ModuleNotFoundError as error:
        print(f"What the planned seeds can show is not computed, because {error.name} is not installed.")
        return
    if paper.budget(budget)["scale"] == "demo":  # nothing is judged
        return
    seeds: dict[str, set[int]] = {}
    for trial in planned.trials:
        seeds.setdefault(trial.arm, set()).add(trial.seed)
    records = [planned.records[trial.id] for trial in planned.done]
    claims = power.claims(paper, records, budget, seeds)
    if not claims:
        print("No claim has all of its arms, with two seeds or more, among these trials.")
        return
    if not all(math.isnan(row["spread"]) for row in claims):
        table = Table(title=Text("What the planned seeds can show"), box=SIMPLE)  # unlike that of arms, for scripts that read that one
        for column in ("claim", "seeds", "spread", "gap so far", "detects", "verdict so far", "seeds needed"):
            table.add_column(column, justify="left" if column in ("claim", "verdict so far") else "right")
        for row in claims:
            detects, margin = words.number(row["detects"], 2), row["margin"]
            table.add_row(
                Text(row["text"]),
                f"{row['now']} of {row['planned']}",
                words.number(row["spread"], 2),
                words.number(row["gap"], 2, signed=True),
                detects if margin is None or not detects else f"margin {detects}, has {words.reported(margin)}",
                row["verdict"],
                f"> {power.MOST}" if row["needs"] is None else str(row["needs"] or ""),
            )
        console.print(table)
    print(power.in_words(claims))
    if paper.budget(budget)["scale"] in select.COMPARED and (numbers := power.numbers(paper, records, budget, seeds)):
        print(power.margins_in_words(numbers))


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)


def run(options) -> int:
    from kdcore.trials import engine, environment, order
    from kdcore.trials.plan import make as make_plan
    from kdcore.trials.progress import Progress
    from kdcore.trials.store import Store

    store = Store(validation.results(options.results))
    asked = (options.budget, options.arm, options.seed or options.seeds, store, options.retry_failed, options.shard)
    planned = order.merged([make_plan(key, *asked) for key in options.paper], options.order, environment.devices(options.device)[0])
    with Progress(planned, quiet=options.quiet) as progress:
        outcome = engine.run(
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
        print(f"kdcore: {len(outcome.paused)} trials left; the same command resumes from here", file=sys.stderr)
    recorded = set(outcome.done)
    for key in options.paper:
        trials = [trial for trial in planned.trials if trial.paper == key]
        done = [trial for trial in trials if trial.id in recorded]
        print(f"{len(done)} of {len(trials)} trials of {key} at {options.budget} are recorded")
    return outcome.exit_code


def replicate(options) -> int:
    from kdcore import papers
    from kdcore.notebooks import batch
    from kdcore.trials import environment

    keys = options.paper or _all_papers()
    for key in keys:  # report an invalid budget of any paper before hours are spent on the others
        papers.get(key).budget(options.budget)
    validation.engine(options.engine)
    environment.devices(options.device)
    results = str(validation.writable(validation.results(options.results)))
    for key in keys:
        batch.execute(key, budget=options.budget, seeds=options.seeds, device=options.device, engine=options.engine, results=results)
    return 0


def report(options) -> int:
    from kdcore import papers, unchanged

    folder = _recorded(options, smoke_alone=options.smoke)
    if not any((root / "records" / key).is_dir() for root in (folder, folder / "smoke") for key in papers.names()):
        # such as those of the suite, with KDCORE_PAPERS: a report would empty its README
        raise KdcoreError(f"no record in {folder} is of {', '.join(papers.names())}: name another folder, or correct KDCORE_PAPERS")
    what = "smoke" if options.smoke else "site" if options.site else "report"
    if unchanged.unchanged(folder, what):
        print(f"nothing in {folder} has changed since the last report")
        return 0

    before = unchanged.state(folder, what)
    from kdcore import outputs

    for path in outputs.write(folder, budget="smoke" if options.smoke else None, site=options.site):
        print(path)
    unchanged.remember(folder, what, before)
    return 0


def check(options) -> int:
    from kdcore import checks

    validation.results(options.results)  # another checkout is refused once, and not for each of its papers
    # what is wrong with a paper is said whether it has records or not
    problems = checks.paper_problems() or checks.result_problems(_recorded(options, smoke_alone=False))
    for problem in problems:
        print(f"kdcore: {problem}", file=sys.stderr)
    print("everything is valid and up to date" if not problems else f"{len(problems)} problem{'s' if len(problems) > 1 else ''}")
    return 1 if problems else 0


def notebook(options) -> int:
    from kdcore import papers
    from kdcore.notebooks import cells

    for key in options.paper:
        changed = cells.write(paper := papers.get(key))
        print(f"{paper.notebook}: {', '.join(changed) or 'agrees with its sheet'}")
    return 0


def new(options) -> int:
    from kdcore import starting

    for path in starting.write(options.paper):
        print(path)
    return 0


def _all_papers() -> list[str]:
    """The keys of all papers. Raises KdcoreError if there are none, since doing nothing would count as success."""
    from kdcore import papers

    if not papers.names():
        raise KdcoreError(f"there is no paper in {papers.HERE}: create one with kdcore new KEY")
    return papers.names()


def _recorded(options, smoke_alone: bool) -> Path:
    """The results folder. Raises KdcoreError if it has no records, since checking nothing would count as success."""
    folder = validation.existing(validation.results(options.results))
    roots = [folder / "smoke"] if smoke_alone else [folder, folder / "smoke"]
    if not any(True for root in roots for _ in (root / "records").glob("*/*.json")):
        raise KdcoreError(f"there is no record in {roots[0] / 'records'}: correct the folder's name, or make records with kdcore run")
    return folder


if __name__ == "__main__":
    sys.exit(main())
