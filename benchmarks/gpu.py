"""Make the most of an hour of GPU, or less: ``make gpu OUT=folder MINUTES=10``, or ``python -m benchmarks.gpu --out folder --minutes 10``.

It runs four parts in sequence, each in its own process with its share of the time; a part that fails does not stop the next. They are
the checks that need a GPU, the numerics gate, the speed rows, and the missing trials, ordered by value for time. Records, rows, a log
and whatever helps a later session (teachers' weights, checkpoints) are packed into tar files of less than 16 MiB each, repeatedly while
the trials run, so an interruption, including SIGTERM, costs only what has not been packed yet.

It needs torch, torchvision, numpy, scikit-learn, pandas, safetensors, rich and PyYAML, but neither Jupyter nor pytest. README.md in
this folder explains how to get data to a machine without a network.
"""

import argparse
import contextlib
import fnmatch
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARTS = {"checks": 0.12, "numerics": 0.12, "speed": 0.25, "trials": 1.0}  # largest share of the time left when the part begins
RESERVE = 20.0  # seconds for the last packing and the summary; a tenth of the time if that is less
GRACE = 15.0  # seconds that a part has after SIGTERM, since a trial pauses at the end of its epoch
PACKED_EVERY = 60.0
TAR = 15 * 2**20  # most bytes of files in a tar
TARS = 5  # of 16 MiB; no more come back from a lent machine beside log and summary
# What runs first: protocols whose tables have many numbers that a GPU fills in minutes. All others follow.
FIRST = (
    ("hinton_mnist", ["*"]),
    ("fsp", ["teacher 26", "student 8", "FitNet 8", "FSP 8", "KD 8"]),  # table 3
    ("activation_boundaries", ["*"]),
    ("born_again_networks", ["wrn_28_[12] *"]),
)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="Checks, numerics, speed and missing trials on a GPU.")
    parser.add_argument("--out", type=Path, required=True, help="folder for log, summary and tar files")
    parser.add_argument("--minutes", type=float, default=10.0, help="time for all parts together (default: %(default)s)")
    parser.add_argument("--device", default="cuda", help="cuda (default), or cpu for a rehearsal")
    parser.add_argument("--budget", default="paper", help="budget of the trials (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="trials at a time (default: %(default)s)")
    parser.add_argument("--parts", default=",".join(PARTS), help="which parts, in this order (default: %(default)s)")
    parser.add_argument("--work", type=Path, help="folder for results and cache (default: one in the system's temporary folder)")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    unknown = [part for part in options.parts.split(",") if part not in PARTS]
    if unknown or not options.minutes > 0:
        parser.error(f"unknown part '{unknown[0]}': choose from {', '.join(PARTS)}" if unknown else "--minutes must be above 0")
    if options.part:
        return globals()[options.part](options)
    return Session(options).run()


class Session:
    """Runs the parts in sequence and keeps their results."""

    def __init__(self, options):
        self.options, self.started = options, time.monotonic()
        self.deadline = self.started + 60 * options.minutes - min(RESERVE, 6 * options.minutes)
        self.work = options.work or Path(tempfile.gettempdir()) / "kdcore-gpu"
        self.rows: list[tuple[str, str, float, str]] = []
        self.child: subprocess.Popen | None = None
        self.stopped = False

    def run(self) -> int:
        self.options.out.mkdir(parents=True, exist_ok=True)
        _copy_records(self.work / "results")
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        with (self.options.out / "log.txt").open("w", encoding="utf-8") as self.log:
            for part in self.options.parts.split(","):
                self._part(part)
            self._pack()
            summary = self._summary()
            self._say(summary)
        (self.options.out / "summary.txt").write_text(summary, encoding="utf-8")
        return 0 if all(status != "failed" for _, status, *_ in self.rows) else 1

    def _stop(self, *_) -> None:
        self.stopped, self.deadline = True, 0.0
        if self.child is not None:
            self.child.terminate()

    def _say(self, text: str) -> None:
        print(text, flush=True)
        self.log.write(text + "\n")
        self.log.flush()

    def _part(self, part: str) -> None:
        left = self.deadline - time.monotonic()
        if left < 1:
            self.rows.append((part, "skipped", 0.0, "no time left"))
            return
        seconds = PARTS[part] * left
        self._say(f"== {part}, at most {seconds:.0f} s")
        start = time.monotonic()
        command = [sys.executable, "-m", "benchmarks.gpu", "--part", part, "--seconds", f"{seconds:.1f}", "--work", str(self.work)]
        command += ["--out", str(self.options.out), "--device", self.options.device, "--budget", self.options.budget]
        command += ["--jobs", str(self.options.jobs), "--minutes", str(self.options.minutes)]
        environment = os.environ | {
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.getenv("PYTHONPATH")])),
        }
        environment["KDCORE_DATA"] = str(_data())
        environment["KDCORE_CACHE"] = str(self.work / "cache")
        output, self.copied = self.work / f"{part}.txt", 0
        with output.open("w", encoding="utf-8") as written:
            # a new session: a signal to the process group reaches only this process, which asks the part to stop
            self.child = subprocess.Popen(
                command, cwd=ROOT, stdout=written, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
            late = self._wait(start + seconds, output)
        self._copy(output)
        code = self.child.returncode
        self.child = None
        lines = [line for line in output.read_text(encoding="utf-8").splitlines() if line.strip()]
        status = "done" if code == 0 else "stopped" if self.stopped else "time was up" if late or code == 3 else "failed"
        self.rows.append((part, status, time.monotonic() - start, lines[-1] if lines else ""))

    def _wait(self, end: float, output: Path) -> bool:
        """Wait until the part ends, and copy its output to the log and its work into tars. Whether it ran out of time."""
        late, packed = False, time.monotonic()
        while self.child.poll() is None:
            now = time.monotonic()
            if now > min(end, self.deadline) and not late:
                late = True
                self.child.terminate()
            if now > min(end, self.deadline) + GRACE:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.child.pid, signal.SIGKILL)
            if now > packed + PACKED_EVERY:
                self._pack()
                packed = time.monotonic()
            self._copy(output)
            time.sleep(0.2)
        return late

    def _copy(self, output: Path) -> None:
        """Copy what the part has written since the last call to the terminal and the log."""
        with output.open(encoding="utf-8", errors="replace") as file:
            file.seek(self.copied)
            text = file.read()
            self.copied = file.tell()
        if text:
            print(text, end="", flush=True)
            self.log.write(text)
            self.log.flush()

    def _pack(self) -> None:
        pack(self.work, self.options.out)

    def _summary(self) -> str:
        lines = [f"{'part':10} {'outcome':12} {'seconds':>8}  last line"]
        lines += [f"{part:10} {status:12} {seconds:8.0f}  {last[:120]}" for part, status, seconds, last in self.rows]
        made = Counter(path.parent.name for path in new_records(self.work / "results"))
        lines.append("new records: " + (", ".join(f"{count} of {paper}" for paper, count in sorted(made.items())) or "none"))
        tars = sorted(self.options.out.glob("pack-*.tar"))
        lines.append(f"in {self.options.out}: {', '.join(path.name for path in tars) or 'no tar'}, log.txt, summary.txt")
        return "\n".join(lines) + "\n"


def _data() -> Path:
    from kdcore import paths

    return paths.data().absolute()


def _copy_records(results: Path) -> None:
    """Copy the committed records, so that only missing trials run; records of an earlier session on this machine stay."""
    shutil.copytree(ROOT / "results" / "records", results / "records", dirs_exist_ok=True)


def new_records(results: Path) -> list[Path]:
    """Records that the checkout does not have, and all smoke records, which no checkout contains."""
    made = [path for path in (results / "records").glob("*/*.json") if not (ROOT / "results" / path.relative_to(results)).exists()]
    found = [*made, *(results / "smoke" / "records").glob("*/*.json")]
    return sorted(path for path in found if not path.name.startswith("."))  # leaves out files that are still being written


def pack(work: Path, out: Path) -> list[Path]:
    """Write tar files of what is new, the most valuable first; each replaces the old one once it is complete.

    Records, rows and the parts' output come first, then weights, then checkpoints, as far as they fit into ``TARS`` files. A file too
    large for one tar is left out.
    """
    results, cache = work / "results", work / "cache"
    files = [*new_records(results), *work.glob("*.jsonl"), *work.glob("*.txt")]
    for folder in ("weights", "checkpoints"):
        files += sorted((path for path in (cache / folder).rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    tars, size = [[]], 0
    for path in files:
        with contextlib.suppress(OSError):  # a checkpoint may be gone
            own = path.stat().st_size + 2048  # header and padding
            if own > TAR or path.name.startswith(".tmp-") or path.suffix == ".lease":
                continue
            if size + own > TAR:
                tars.append([])
                size = 0
            tars[-1].append(path)
            size += own
    written = []
    for number, chosen in enumerate(tars[:TARS], 1):
        target = out / f"pack-{number}.tar"
        with tempfile.NamedTemporaryFile(dir=work, delete=False) as temporary, tarfile.open(fileobj=temporary, mode="w") as tar:
            for path in chosen:
                with contextlib.suppress(OSError):
                    tar.add(path, path.relative_to(work))
        os.chmod(temporary.name, 0o644)
        shutil.move(temporary.name, target)
        written.append(target)
    return written


# ---------------------------------------------------------------- the parts, each a process of its own


def checks(options) -> int:
    """The checks of tests/test_cuda.py."""
    from benchmarks.gpu_checks import CHECKS

    if not options.device.startswith("cuda"):
        print(f"{len(CHECKS)} checks need a GPU")
        return 0
    failed = 0
    for name, check in CHECKS.items():
        start = time.monotonic()
        try:
            check()
        except Exception:
            failed += 1
            print(f"FAILED  {name}\n{traceback.format_exc()}")
        else:
            print(f"passed  {name} ({time.monotonic() - start:.1f} s)")
    print(f"{len(CHECKS) - failed} of {len(CHECKS)} checks passed")
    return 1 if failed else 0


TOLERANCES = {"CPU": 1e-4, "eager": 1e-5, "bfloat16": 3e-2}  # of a loss, relative to that of the graph in float32
COMPARED_STEPS = 10


def numerics(options) -> int:
    """The first losses of a distilled MLP and of three methods on convolutional nets: a float32 CUDA graph against the CPU, eager
    steps and bfloat16."""
    import torch

    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
    failed, row = 0, "{:<24} {:<10} {:>12} {:>12}  {}"
    print(row.format("net", "against", "difference", "allowed", ""))
    for name, losses_of in (("MLP, KD", _mlp_losses), ("WRN-16-1, three methods", _net_losses)):
        graph = losses_of(options.device, "float32", False)
        others = {
            "CPU": losses_of("cpu", "float32", True),
            "eager": losses_of(options.device, "float32", True),
            "bfloat16": losses_of(options.device, "bfloat16", False),
        }
        for what, found in others.items():
            difference = ((found - graph).abs() / graph.abs()).max().item()
            right = difference <= TOLERANCES[what]  # false for nan, too
            failed += not right
            print(row.format(name, what, f"{difference:.2e}", f"{TOLERANCES[what]:.0e}", "" if right else "FAILED"))
    print("numerics agree" if not failed else f"{failed} comparisons failed")
    return 1 if failed else 0


def _losses(net, stage, device: str, precision: str, eager: bool):
    """The losses of ``COMPARED_STEPS`` steps, float64 [steps, ...], on the CPU."""
    import torch

    from kdcore.training import Step

    step = Step(net.train(), stage, device, precision)
    step.eager = step.eager or eager
    step.set(stage.schedule(0))
    rows = stage.indices(torch.Generator().manual_seed(0))[:COMPARED_STEPS].to(device)
    return torch.stack([step(row).double().cpu() for row in rows])


def _mlp_losses(device: str, precision: str, eager: bool):
    import torch

    from benchmarks import mlp

    task = mlp.Task(cases=COMPARED_STEPS * mlp.BATCH)
    table = torch.from_numpy(mlp.teacher_table(task)).to(device)
    return _losses(*mlp.engine(task, table, None, device), device, precision, eager)


def _net_losses(device: str, precision: str, eager: bool):
    from dataclasses import replace

    import torch

    from benchmarks import cifar

    task = replace(cifar.CHECKED, cases=COMPARED_STEPS * 32)
    torch.manual_seed(0)  # for the connectors
    cohort, stage = cifar.engine(task, cifar.THREE, device=device, rate=cifar.CHECKED_RATE, batch=32)
    return _losses(cohort, stage, device, precision, eager)


def speed(options) -> int:
    """The rows of ``python -m benchmarks`` for this device, as many as time allows, each saved once measured."""
    from benchmarks import __main__ as table
    from benchmarks import suite

    table.RESULTS = options.work / "results.jsonl"
    end, code = time.monotonic() + options.seconds, 0
    quick = options.device == "cpu"
    names = ["mlp_step"] if quick else [name for name in ("mlp_step", "wrn_step", *suite.ON_GPU) if name in suite.ON_GPU]
    for name in dict.fromkeys(names):
        start = time.monotonic()
        words = [name, "--device", options.device.partition(":")[0], *(["--quick", "--rounds", "1"] if quick else ["--save"])]
        code = max(code, table.main(words))
        if time.monotonic() + (time.monotonic() - start) > end:
            print(f"no time for more after {name}")
            return code
    print("all speed rows measured" if not code else "a benchmark failed: see above")
    return code


def trials(options) -> int:
    """The missing trials of ``FIRST``, then of all papers, each group ordered by value for time, in one run with one time limit."""
    from kdcore import papers
    from kdcore.errors import KdcoreError
    from kdcore.trials import engine, order, plan
    from kdcore.trials.progress import Progress
    from kdcore.trials.store import Store

    store, whole = Store(options.work / "results"), plan.Plan([], {}, [])
    seen: set[str] = set()
    for key, patterns in (*FIRST, *((key, ["*"]) for key in papers.names())):
        try:
            arms = [arm for arm in papers.get(key).budget_arms(options.budget) if any(fnmatch.fnmatchcase(arm, p) for p in patterns)]
            planned = plan.make(key, options.budget, arms, None, store) if arms else plan.Plan([], {}, [])
        except KdcoreError as error:
            print(f"{key}: {error}")
            continue
        group = order.merged([planned], "value", options.device)
        known = {trial.id for trial in whole.trials}
        whole.trials += [trial for trial in group.trials if trial.id not in known]
        whole.records |= group.records
        whole.jobs += [job for job in group.jobs if not seen & set(job.ids)]
        seen |= {id for job in group.jobs for id in job.ids}
    print(f"{len(whole.jobs)} jobs are missing; the first: {', '.join(str(job.cohort.trials[0]) for job in whole.jobs[:3])}")
    limit = max(1.0, options.seconds - GRACE / 2)
    with Progress(whole) as progress:
        outcome = engine.run(whole, store, device=options.device, jobs=options.jobs, time_limit=limit, watch=progress)
    for sentence in outcome.problems:
        print(sentence)
    made = len(new_records(options.work / "results"))
    print(f"{made} new records, {len(outcome.problems)} problems, {len(outcome.paused)} trials left")
    return outcome.exit_code


if __name__ == "__main__":
    sys.exit(main())
