"""``kdcore plan | run | replicate | report | check | notebook | new``."""

import argparse
import contextlib
import importlib
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from kdcore import __version__, paths, validation
from kdcore.errors import KdcoreError, Stopped


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit code: 0 done, 1 failed or refused, 2 wrong usage, 3 paused."""
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
        print(end="", flush=True)  # here an output that cannot be written is told, and not while Python ends
        return code
    except (KeyboardInterrupt, Stopped) as error:
        print(f"kdcore: {str(error) or 'stopped'}; the same command goes on from here", file=sys.stderr)
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
            print("kdcore: nobody reads the output any more: run the same command again", file=sys.stderr)
            return 1
        return code or 0
    except OSError as error:  # a full disk, a folder that may not be read
        print(f"kdcore: {paths.trouble(error)}", file=sys.stderr)
        if not error.filename:
            _forget_output()
        return 1


def _forget_output() -> None:
    """What standard output still holds is not to be complained of when Python ends."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _let_sigterm_interrupt() -> None:
    """What ends this process politely is as Ctrl-C: nothing is left behind. (A run of trials listens to both by itself.)"""
    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def parser() -> argparse.ArgumentParser:
    from kdcore import papers
    from kdcore.trials import order

    top = argparse.ArgumentParser(
        prog="kdcore",
        description="The replication suite of knowledge distillation.",
        epilog="`kdcore COMMAND --help` explains a command. Exit codes: 0 done, 1 failed or refused, 2 wrong usage, 3 paused.",
    )
    top.add_argument("--version", action="version", version=f"kdcore {__version__}")
    top.set_defaults(command=None)
    commands = top.add_subparsers(metavar="COMMAND")

    def command(name: str, function, summary: str, results: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=summary, description=summary)
        sub.set_defaults(command=function)
        if results:
            sub.add_argument("--results", metavar="DIR", help="folder of the records; results of the checkout by default")
        return sub

    def grid(sub: argparse.ArgumentParser, named: bool) -> None:
        listed = ", ".join(papers.names())
        if named:
            sub.add_argument("paper", metavar="PAPER", nargs="+", action=Distinct, help=f"one or more of {listed}")
        else:
            sub.add_argument("paper", metavar="PAPER", nargs="*", action=Distinct, help=f"of {listed}; all by default")
        sub.add_argument("--budget", default="smoke", help="smoke (default), laptop, fast or paper")
        chosen = sub.add_mutually_exclusive_group()
        chosen.add_argument("--seeds", type=seeds, help="how many (5), or which (0,3,4); the budget's own number by default")
        if named:
            chosen.add_argument("--seed", type=_typed(validation.parsed_seed), action="append", help="only this seed (may be repeated)")
        sub.add_argument("--device", type=_typed(validation.device), default="cpu", help="cpu (default), cuda (every GPU) or cuda:N")

    def pace(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--precision",
            choices=validation.PRECISIONS,
            default="auto",
            help="of the products in training; auto (default): bfloat16 where it is fast and was found equivalent for the paper",
        )
        sub.add_argument(
            "--jobs", type=_typed(validation.parsed_jobs), metavar="N", help="trials at a time; one a core, or one a GPU, by default"
        )
        sub.add_argument("--arm", action=Distinct, help="only this arm (may be repeated)")

    minutes = {"type": _typed(validation.parsed_minutes), "metavar": "MINUTES"}
    sub = command("plan", plan, "Show the grid: what is done, what is missing, and how long the rest would take here.")
    grid(sub, named=False)
    pace(sub)
    sub.add_argument(
        "--no-forecast", action="store_true", help="do not time a few steps of each missing arm that has no record of this device"
    )

    sub = command("run", run, "Run the missing trials of papers; goes on where an earlier run stopped.")
    grid(sub, named=True)
    pace(sub)
    sub.add_argument(
        "--order",
        choices=order.ORDERS,
        default="sheet",
        help="sheet (default): paper by paper; value: what fills cells of tables at the paper's own scale first, the cheap before the dear",
    )
    sub.add_argument("--time-limit", **minutes, help="pause everything at a checkpoint after so long")
    sub.add_argument("--timeout", **minutes, help="end a trial that takes longer, and record the failure")
    sub.add_argument("--retry-failed", action="store_true", help="run trials again whose record is a failure")
    sub.add_argument("--shard", type=shard, default=(1, 1), metavar="I/N", help="the I-th of N parts of the grid, for array jobs")
    sub.add_argument("--quiet", action="store_true", help="no progress display")

    sub = command("replicate", replicate, "Execute the notebooks with papermill; each runs what is missing of its paper.")
    grid(sub, named=False)
    sub.add_argument("--engine", default="local", help="local (default)")

    sub = command("report", report, "Make tables, figures, the page and the README's scoreboard from the records.")
    sub.add_argument("--smoke", action="store_true", help="tables and figures of the smoke records instead, into DIR/smoke")
    command("check", check, "Check that every record, yaml and table is valid, and that README, tables and notebooks are up to date.")
    summary = "Bring the standard cells of notebooks in step with their sheets; all other cells stay as they are."
    sub = command("notebook", notebook, summary, results=False)
    sub.add_argument("paper", metavar="PAPER", nargs="+", action=Distinct, help="one or more keys")
    sub = command("new", new, "Write a paper to start from: its folder, notebook and test.", results=False)
    sub.add_argument("paper", metavar="KEY", help="of the paper: lower-case letters, digits and underscores")
    return top


class Distinct(argparse.Action):
    """Collects values like "append", or those of ``nargs="*"``, and refuses one that is there already."""

    def __call__(self, parser, namespace, values, option=None):
        found = list(getattr(namespace, self.dest) or []) + (values if isinstance(values, list) else [values])
        try:
            setattr(namespace, self.dest, validation.distinct(found, self.dest) if found else found)
        except KdcoreError as error:
            raise argparse.ArgumentError(self, str(error)) from None


def _typed(parse: Callable) -> Callable:
    """A function of kdcore.validation as the ``type`` of an argument: what it refuses is wrong usage."""

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
    validation.folder(paths.cache(), "set KDCORE_CACHE to a folder")
    for key in options.paper or _all_papers():
        planned = make_plan(key, options.budget, options.arm, options.seeds, store)
        seconds = {}
        if not options.no_forecast:
            device = environment.devices(options.device)[0]
            try:
                seconds = forecast.seconds(planned, device, options.precision)
            except KdcoreError as error:  # what is done and missing is shown all the same
                print(f"kdcore: {error}", file=sys.stderr)
                code = 1
        about = papers.get(key).budget(options.budget)["about"]
        table = Table(title=Text(f"{papers.get(key).sheet['short']}, budget {options.budget}: {about}"))
        for column in ("arm", "done", "missing", "failed", "hours"):
            table.add_column(column, justify="left" if column == "arm" else "right")
        done = {trial.id for trial in planned.done}
        share = {id: seconds[job.cohort.id] / len(job.ids) for job in planned.jobs for id in job.ids} if seconds else {}
        arms: dict[str, list[str]] = {}
        for trial in planned.trials:
            arms.setdefault(trial.arm, []).append(trial.id)
        for arm, ids in arms.items():
            ended, failed = sum(id in done for id in ids), sum(id in planned.records and id not in done for id in ids)
            missing = [share[id] for id in ids if id in share]
            table.add_row(Text(arm), str(ended), str(len(ids) - ended), str(failed), f"{sum(missing) / 3600:.2f}" if missing else "")
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
        print(f"kdcore: {len(outcome.paused)} trials left; the same command goes on from here", file=sys.stderr)
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
    for key in keys:  # what one of them lacks is told before hours go into the others
        papers.get(key).budget(options.budget)
    validation.engine(options.engine)
    environment.devices(options.device)
    results = str(validation.writable(validation.results(options.results)))
    for key in keys:
        batch.execute(key, budget=options.budget, seeds=options.seeds, device=options.device, engine=options.engine, results=results)
    return 0


def report(options) -> int:
    from kdcore import outputs

    for path in outputs.write(_recorded(options, smoke_alone=options.smoke), budget="smoke" if options.smoke else None):
        print(path)
    return 0


def check(options) -> int:
    from kdcore import checks

    problems = checks.all_problems(_recorded(options, smoke_alone=False))
    for problem in problems:
        print(f"kdcore: {problem}", file=sys.stderr)
    print("everything is valid and up to date" if not problems else f"{len(problems)} problems")
    return 1 if problems else 0


def notebook(options) -> int:
    from kdcore import papers
    from kdcore.notebooks import cells

    for key in options.paper:
        changed = cells.write(paper := papers.get(key))
        print(f"{paper.notebook}: {', '.join(changed) or 'in step with its sheet'}")
    return 0


def new(options) -> int:
    from kdcore import starting

    for path in starting.write(options.paper):
        print(path)
    return 0


def _all_papers() -> list[str]:
    """The keys of all papers. Raises KdcoreError where the folder of other papers has none: nothing would be done, with success."""
    from kdcore import papers

    if not papers.names():
        raise KdcoreError(f"there is no paper in {papers.HERE}: kdcore new KEY writes one")
    return papers.names()


def _recorded(options, smoke_alone: bool) -> Path:
    """The folder of the records. Raises KdcoreError where it has none: nothing would be found wrong with nothing."""
    folder = validation.existing(validation.results(options.results))
    roots = [folder / "smoke"] if smoke_alone else [folder, folder / "smoke"]
    if not any(True for root in roots for _ in (root / "records").glob("*/*.json")):
        raise KdcoreError(f"there is no record in {roots[0] / 'records'}: correct the folder's name, or make records with kdcore run")
    return folder


if __name__ == "__main__":
    sys.exit(main())
