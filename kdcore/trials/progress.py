"""Progress of a run: a live table on a terminal; in a log, one line per trial, and one per minute while it trains."""

import time

from kdcore.trials.plan import Job, Plan

SECONDS_BETWEEN_LINES = 60  # for each trial, in a log


class Progress:
    """A ``watch`` for engine.run that shows trial, seed, stage, epoch, loss, error and ETA of every running job."""

    def __init__(self, planned: Plan, quiet: bool = False):
        self.quiet, self.total, self.ended = quiet, len(planned.jobs), 0
        self.several = len({trial.paper for trial in planned.trials}) > 1  # papers: each line then names its own
        self.rows: dict[Job, dict] = {}
        self.console = self.live = None
        try:
            from rich.console import Console
            from rich.live import Live
        except ImportError:  # a bare GPU machine: print lines, as in a log
            return
        self.console = Console()
        if self.console.is_terminal and not quiet:
            self.live = Live(console=self.console, get_renderable=self._table, refresh_per_second=4)

    def __enter__(self) -> "Progress":
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_) -> None:
        if self.live:
            self.live.stop()

    def __call__(self, job: Job, event: dict) -> None:
        if event["event"] == "started":
            self.rows[job] = {"started": time.monotonic(), "epochs": 0, "said": time.monotonic()}
        elif event["event"] == "epoch":
            row = self.rows[job]
            row["last"], row["epochs"] = event, row["epochs"] + 1
            if not (self.quiet or self.live) and time.monotonic() >= row["said"] + SECONDS_BETWEEN_LINES:
                row["said"] = time.monotonic()
                stage, epoch, loss, error, left = _cells(row)
                self._say(f"{self._name(job)}: {stage} {epoch}, loss {loss}, {error} % error, {left} left")
        elif event["event"] == "said":
            self._say(f"{self._name(job)}: {event['message']}")
        elif event["event"] == "ended" and event["status"] != "busy":
            now = time.monotonic()
            seconds = now - self.rows.pop(job, {"started": now})["started"]  # it never started if another runner recorded it
            self.ended += event["status"] not in ("paused", "killed")
            if not self.quiet:
                words = f": {event['message'].splitlines()[0]}" if event["message"] else ""
                self._say(f"{self.ended}/{self.total} {self._name(job)} {event['status']} in {seconds:.0f} s{words}")

    def _name(self, job: Job, seed: bool = True) -> str:
        return (f"{job.cohort.trials[0].paper}: " if self.several else "") + name(job, seed)

    def _say(self, line: str) -> None:
        if self.live is None:  # rich would end this thread silently if the output is closed
            print(line, flush=True)
        else:
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _table(self):
        from rich.table import Table

        table = Table(expand=False)
        for column in ("trial", "seed", "stage", "epoch", "loss", "% error", "ETA"):
            table.add_column(column, justify="left" if column in ("trial", "stage") else "right")
        for job, row in list(self.rows.items()):
            if not row["epochs"]:
                continue  # no loss to show yet
            table.add_row(self._name(job, seed=False), str(job.cohort.trials[0].seed), *_cells(row))
        table.caption = f"{self.ended} of {self.total} done"
        return table


def name(job: Job, seed: bool = True) -> str:
    """A short name of a job: its arm, and how many others train beside it."""
    trials = job.cohort.trials
    words = trials[0].arm if len(trials) == 1 else f"{trials[0].arm} and {len(trials) - 1} beside it"
    return f"{words}, seed {trials[0].seed}" if seed else words


def _cells(row: dict) -> tuple[str, str, str, str, str]:
    """Stage, epoch, loss, test error and time left of a running trial, as text."""
    last = row["last"]
    left = (time.monotonic() - row["started"]) / row["epochs"] * (last["total"] - last["done"])
    error = f"{_mean(last['test_error_percent']):.2f}" if "test_error_percent" in last else "-"  # not every stage measures it
    return last["stage"], f"{last['done']}/{last['total']}", f"{_mean(last['loss']):.4g}", error, f"{left / 60:.1f} min"


def _mean(value) -> float:
    return sum(value) / len(value) if isinstance(value, list) else value
