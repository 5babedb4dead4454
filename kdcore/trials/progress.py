"""What a run looks like while it runs: a live table on a terminal, a line an event in a log."""

import time

from kdcore.trials.runner import Job, Plan


class Progress:
    """A ``watch`` for runner.run: trial, seed, stage, epoch, loss, error and ETA of every running job."""

    def __init__(self, planned: Plan, quiet: bool = False):
        from rich.console import Console
        from rich.live import Live

        self.quiet, self.total, self.ended = quiet, len(planned.jobs), 0
        self.console = Console()
        self.rows: dict[Job, dict] = {}
        live = self.console.is_terminal and not quiet
        self.live = Live(console=self.console, get_renderable=self._table, refresh_per_second=4) if live else None

    def __enter__(self) -> "Progress":
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_) -> None:
        if self.live:
            self.live.stop()

    def __call__(self, job: Job, event: dict) -> None:
        if event["event"] == "started":
            self.rows[job] = {"started": time.monotonic(), "epochs": 0}
        elif event["event"] == "epoch":
            row = self.rows[job]
            row |= event
            row["epochs"] += 1
        elif event["event"] == "ended" and event["status"] != "busy":
            now = time.monotonic()
            seconds = now - self.rows.pop(job, {"started": now})["started"]  # no start: another runner had recorded it
            self.ended += event["status"] not in ("paused", "killed")
            if not self.quiet:
                words = f": {event['message']}" if event["message"] else ""
                self.console.print(
                    f"{self.ended}/{self.total} {name(job)} {event['status']} in {seconds:.0f} s{words}", highlight=False, soft_wrap=True
                )

    def _table(self):
        from rich.table import Table

        table = Table(expand=False)
        for column in ("trial", "seed", "stage", "epoch", "loss", "% error", "ETA"):
            table.add_column(column, justify="left" if column in ("trial", "stage") else "right")
        for job, row in list(self.rows.items()):
            if not row["epochs"]:
                continue  # no loss to show yet
            left = (time.monotonic() - row["started"]) / row["epochs"] * (row["total"] - row["done"])
            table.add_row(
                name(job, seed=False), str(job.cohort.trials[0].seed), row["stage"], f"{row['done']}/{row['total']}",
                f"{_mean(row['loss']):.4g}", f"{_mean(row.get('test_error_percent', float('nan'))):.2f}", f"{left / 60:.1f} min",
            )  # fmt: skip
        table.caption = f"{self.ended} of {self.total} done"
        return table


def name(job: Job, seed: bool = True) -> str:
    """A job in a few words: its arm, or how many train side by side."""
    trials = job.cohort.trials
    words = trials[0].arm if len(trials) == 1 else f"{trials[0].arm} and {len(trials) - 1} beside it"
    return f"{words}, seed {trials[0].seed}" if seed else words


def _mean(value) -> float:
    return sum(value) / len(value) if isinstance(value, list) else value
