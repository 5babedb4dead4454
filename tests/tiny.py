"""Trials of a second: hinton_mnist at smoke with nets of twenty units, run by an engine whose child is a thread or a process."""

import json
import sys
from pathlib import Path

from kdcore.trials import child, engine, plan, process
from kdcore.trials.store import Store

PAPER = "hinton_mnist"
VOLATILE = ("cost", "environment", "digest")

# The nets, here and in a command's own process: ``python -c TINY run ...``
TINY = """
import sys
from kdcore import cli, papers
paper = papers.get("hinton_mnist")
budget = paper.budgets["smoke"]
budget["config"] |= {"epochs": 8, "batch_size": 250}
budget["arms"]["cumbersome"]["layers"] = [784, 20, 20, 10]
budget["arms"]["small*"]["layers"] = [784, 10, 10, 10]
paper._configs.clear()
paper._trials.clear()
if __name__ == "__main__":
    sys.exit(cli.main(sys.argv[1:]))
"""
# Epochs that are long enough for somebody else to see them pass.
SLOW = TINY.replace("[784, 10, 10, 10]", "[784, 500, 500, 10]").replace('"epochs": 8, "batch_size": 250', '"epochs": 20')


def command(results, *more, program=TINY) -> list[str]:
    return [sys.executable, "-c", program, "run", PAPER, "--arm", "small", "--seed", "0", "--jobs", "1", "--results", str(results), *more]


class Inside(process.Child):
    """A child that is a call: what it would say on its pipe, it says to the function that listens."""

    def __init__(self, store, device, precision, deadline):
        self.about, self.ended = (store, device, precision, deadline), False

    def ask(self, work, on_event, timeout=None):
        events = []

        def send(event, **fields):
            events.append(json.loads(json.dumps({"event": event, **fields})))
            if event not in ("ended", "measured"):
                on_event(events[-1])

        child.answer(json.loads(json.dumps(work)), *self.about, send)
        return events[-1]

    def signal(self, number):
        pass

    def close(self):
        pass


def run(results, arms, seeds=(0,), jobs=1, retry_failed=False, **options) -> engine.Outcome:
    store = Store(results)
    return engine.run(plan.make(PAPER, "smoke", list(arms), list(seeds), store, retry_failed), store, jobs=jobs, **options)


def recorded(results: Path) -> dict[str, dict]:
    """Records by id, without what differs from run to run by its nature."""
    records = {path.stem: json.loads(path.read_text()) for path in results.rglob("*.json")}
    return {name: {key: value for key, value in record.items() if key not in VOLATILE} for name, record in records.items()}
