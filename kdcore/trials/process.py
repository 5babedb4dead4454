"""A child process as seen by the engine: JSON lines in, JSON lines out."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from kdcore.trials.store import Store


class ChildDied(Exception):
    """The child died during a job. The first line of the message says how; the others are the child's last output."""

    def __init__(self, status: str, message: str):
        super().__init__(message)
        self.status = status


class Child:
    """One child process: JSON lines in, JSON lines out."""

    def __init__(self, store: Store, device: str, precision: str, deadline: float):
        self.log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (closed with the child)
        self.ended = False
        package = str(Path(__file__).resolve().parents[2])
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))}
        environment["PYTHONFAULTHANDLER"] = "1"  # shows where a fatal signal hit
        if device == "cpu":
            environment["OMP_NUM_THREADS"] = "1"
        command = [
            sys.executable,
            "-m",
            "kdcore.trials.child",
            "--results",
            str(store.results),
            "--device",
            device,
            "--precision",
            precision,
            "--deadline",
            str(deadline),
        ]
        # in its own session, so that Ctrl-C reaches only the runner, which asks its children to pause
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, env=environment, start_new_session=True
        )

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, kind, *_) -> None:
        if kind is not None:
            self.signal(signal.SIGKILL)
        self.close()

    def ask(self, work: dict, on_event: Callable[[dict], None], timeout: float | None = None) -> dict:
        """Send one job and read events until it ends; return the last one. Raises ChildDied."""
        timer, late = None, threading.Event()
        if timeout is not None:
            timer = threading.Timer(timeout, lambda: (late.set(), self.signal(signal.SIGKILL)))
            timer.start()
        try:
            self.process.stdin.write(json.dumps(work) + "\n")
            self.process.stdin.flush()
            for line in self.process.stdout:
                if not line.endswith("\n"):  # the child died in the middle of a line
                    break
                event = json.loads(line)
                if event["event"] in ("ended", "measured"):
                    return event
                on_event(event)
        except BrokenPipeError:
            pass
        finally:
            if timer is not None:
                timer.cancel()
        code = self.process.wait()
        if late.is_set():
            raise ChildDied("timeout", f"ended after {timeout:.0f} s: raise --timeout")
        words, trace = self._last_words()
        if code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
            why = "; out of memory is the usual reason" if name == "SIGKILL" else f": {words[-1]}" if words else ""
            raise ChildDied("killed", "\n".join([f"killed by {name}{why}", *words, *trace]))
        raise ChildDied("error", "\n".join([words[-1] if words else f"exit code {code}", *words]))

    def _last_words(self, count: int = 12) -> tuple[list[str], list[str]]:
        """The last lines of the child's standard error, and the first of faulthandler's trace: the signal and the innermost frames."""
        self.log.seek(0)
        words, mark, trace = self.log.read().partition("Fatal Python error: ")
        return [line for line in words.splitlines() if line.strip()][-count:], (mark + trace).splitlines()[:count]

    def end(self) -> None:
        """Kill the child, which did not stop in time."""
        self.ended = True
        self.signal(signal.SIGKILL)

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.process.stdin.close()  # the child ends when its input does
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.log.close()
