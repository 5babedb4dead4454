"""The engine: resume after kill -9, two engines on one store, failures, time limits, lost weights, a full disk.

Nets are tiny. What a child does is done by a thread of this process (``inside``) where no death or signal of it is at stake.
"""

import dataclasses
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import bare
import pytest
from tiny import PAPER, SLOW, TINY, Inside, command, recorded, run

from kdcore import papers, paths
from kdcore.errors import KdcoreError
from kdcore.papers.spec import Cohort
from kdcore.training import loop
from kdcore.trials import child, engine, plan, process
from kdcore.trials.child import checkpoint_folder
from kdcore.trials.progress import Progress
from kdcore.trials.record import record
from kdcore.trials.store import Store, lease, read
from kdcore.trials.weights import weights_path

pytestmark = pytest.mark.usefixtures("tiny")


def nothing_left(results: Path, cache: Path) -> bool:
    strays = [p for folder in (results, cache) for pattern in (".tmp-*", "*.lease") for p in folder.rglob(pattern)]
    return not strays and not list((cache / "checkpoints").glob("*"))


@pytest.fixture
def quick(monkeypatch):
    """Checkpoints after every epoch, in the children too."""
    monkeypatch.setenv("KDCORE_CHECKPOINT_SECONDS", "0")
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0)


def whole_run(folder, arms, monkeypatch) -> dict[str, dict]:
    """Records of arms that nothing disturbs."""
    with monkeypatch.context() as patch:
        patch.setattr(engine, "Child", Inside)
        assert run(folder, arms).exit_code == 0
    return recorded(folder)


def test_a_run_trains_the_teacher_first_and_only_once(tmp_path, own_cache, inside):
    outcome = run(tmp_path, ["small with KD"], seeds=[0])
    assert outcome.exit_code == 0
    store = Store(tmp_path)
    arms = {record["arm"]: record for record in store.records(PAPER)}
    assert set(arms) == {"cumbersome", "small with KD"}
    assert arms["small with KD"]["teacher"] == arms["cumbersome"]["id"]
    assert weights_path(arms["cumbersome"]["id"]).exists()
    assert nothing_left(tmp_path, own_cache)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    again = run(tmp_path, ["small with KD", "cumbersome"], seeds=[0])
    assert again.exit_code == 0 and len(again.done) == 2
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}, "a record is written once"


def test_lost_weights_are_made_again_and_the_record_stays(tmp_path, inside):
    run(tmp_path, ["cumbersome"])
    teacher = papers.get(PAPER).trial("smoke", "cumbersome", 0)
    record = Store(tmp_path).path(teacher)
    content = record.read_bytes()
    weights_path(teacher.id).unlink()
    assert run(tmp_path, ["small with KD"]).exit_code == 0
    assert weights_path(teacher.id).exists()
    assert record.read_bytes() == content


def test_damaged_weights_are_made_again_in_the_same_run(tmp_path, own_cache, capsys, inside):
    assert run(tmp_path, ["small with KD"]).exit_code == 0
    store, whole = Store(tmp_path), recorded(tmp_path)
    teacher, pupil = (papers.get(PAPER).trial("smoke", arm, 0) for arm in ("cumbersome", "small with KD"))
    path = weights_path(teacher.id)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    store.path(pupil).unlink()
    planned = plan.make(PAPER, "smoke", ["small with KD"], [0], store)
    with Progress(planned, quiet=True) as progress:
        assert engine.run(planned, store, watch=progress, jobs=1).exit_code == 0
    assert recorded(tmp_path) == whole
    assert f"{path} is damaged" in (said := capsys.readouterr().out) and "the teacher is trained again" in said
    assert path.with_name(path.name + ".damaged").read_bytes() == content


def test_a_failed_teacher_is_not_run_again_unasked(tmp_path, inside):
    store, teacher = Store(tmp_path), papers.get(PAPER).trial("smoke", "cumbersome", 0)
    cost = {"seconds": 1.0, "peak_memory_mb": 1.0, "device": "cpu"}
    store.put(record(teacher, "nan", {"metrics": {"message": "the loss is not finite"}, "history": []}, cost, "float32"))
    outcome = run(tmp_path, ["small with KD"])
    assert outcome.exit_code == 1
    assert "its teacher has no weights: run the teacher's arm with --retry-failed" in next(iter(outcome.failed.values()))
    assert store.get(teacher)["status"] == "nan"
    assert run(tmp_path, ["small with KD"], retry_failed=True).exit_code == 0
    assert store.get(teacher)["status"] == "done"


KILLS = int(os.environ.get("KDCORE_KILLS", "3"))  # ``make kill`` takes 20


def test_kill_9_at_random_moments(tmp_path, own_cache, quick, monkeypatch):
    """The engine and its child are killed together: at a random moment of a random epoch, or of the start; what is resumed in the
    end equals what never stopped."""
    whole = whole_run(tmp_path / "whole", ["small"], monkeypatch)
    results, moments, kills, resumed = tmp_path / "killed", random.Random(0), 0, 0
    (job,) = plan.make(PAPER, "smoke", ["small"], [0], Store(results)).jobs
    state = checkpoint_folder(job.cohort, papers.get(PAPER).precision("cpu")) / "state.safetensors"
    for number in range(KILLS):
        process = subprocess.Popen(command(results, program=SLOW), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
        resumed += state.exists()
        epochs = moments.randint(1, 3) if number % 4 != 3 else 0
        seen, end = written(state), time.monotonic() + (60 if epochs else moments.uniform(0, 4))
        while epochs and process.poll() is None and time.monotonic() < end:
            time.sleep(0.002)
            if written(state) > seen:
                epochs, seen = epochs - 1, written(state)
        time.sleep(moments.uniform(0, 0.03) if number % 4 != 3 else max(0, end - time.monotonic()))
        kills += process.poll() is None
        for pid in children(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.kill()
        process.communicate()
        for path in results.rglob("*.json"):
            read(path)  # never torn
            path.unlink()  # so that there is something to kill the next time; the checkpoint may or may not be there
    assert kills >= KILLS / 2 and resumed
    with monkeypatch.context() as patch:
        patch.setattr(engine, "Child", Inside)
        assert run(results, ["small"]).exit_code == 0
    assert recorded(results) == whole
    assert nothing_left(results, own_cache)


def written(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def children(pid: int) -> list[int]:
    """Process ids of the direct children (they have sessions of their own)."""
    pids = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            pids.append(int(entry.parent.name))
    return pids


def test_a_dead_child_is_replaced_and_resumes(tmp_path, own_cache, quick, monkeypatch):
    whole = whole_run(tmp_path / "whole", ["small"], monkeypatch)
    killed = []

    def kill_once(job, event):
        if event["event"] == "epoch" and event["epoch"] == 5 and not killed:
            killed.extend(children(os.getpid()))
            for child in killed:
                os.kill(child, signal.SIGKILL)

    outcome = run(tmp_path / "killed", ["small"], watch=kill_once, jobs=1)
    assert killed and outcome.exit_code == 0
    assert recorded(tmp_path / "killed") == whole
    assert nothing_left(tmp_path / "killed", own_cache)


@pytest.fixture
def dying(tmp_path, monkeypatch):
    """dying(code): every child is that, in Python without torch, in place of ours; ``work`` is what it was asked, ``send`` answers."""

    python = sys.executable

    def choose(code):
        program = tmp_path / "child"
        start = "import json, os, signal, sys, time\nwork = json.loads(sys.stdin.readline())\n"
        start += "send = lambda **event: print(json.dumps(event), flush=True)\n"
        program.write_text(f"#!{python}\n{start}{code}\n")
        program.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(program))

    return choose


def test_a_child_that_dies_again_and_again_becomes_a_failure(tmp_path, monkeypatch, dying):
    starts = []
    with monkeypatch.context():
        dying("send(event='started'); os.kill(os.getpid(), signal.SIGKILL)")
        outcome = run(tmp_path, ["small"], watch=lambda job, event: starts.append(1) if event["event"] == "started" else None)
        assert outcome.exit_code == 1 and len(starts) == engine.DEATHS
        assert "killed by SIGKILL; out of memory is the usual reason" in next(iter(outcome.failed.values()))
        (record,) = Store(tmp_path).records(PAPER)
        assert record["status"] == "killed"
    monkeypatch.setattr(engine, "Child", Inside)
    # never counted as a result, and run again only when asked
    assert run(tmp_path, ["small"]).exit_code == 1
    assert run(tmp_path, ["small"], retry_failed=True).exit_code == 0
    assert Store(tmp_path).records(PAPER)[0]["status"] == "done"


def test_a_child_that_always_dies_in_the_same_epoch_is_given_up(tmp_path, dying):
    """To come as far as before is no progress."""
    starts = []
    dying("send(event='started'); [send(event='epoch', done=n, total=9) for n in (1, 2)]; os.abort()")
    outcome = run(tmp_path, ["small"], watch=lambda job, event: starts.append(1) if event["event"] == "started" else None)
    assert outcome.exit_code == 1 and len(starts) == 1 + engine.DEATHS - 1
    # one that comes an epoch further each time is not
    starts.clear()
    dying(
        f"log = open({str(tmp_path / 'seen')!r}, 'a'); n = log.tell(); log.write('x'); log.close()\n"
        "send(event='started'); send(event='epoch', done=n + 1, total=9)\n"
        "if n < 7: os.abort()\n"
        "send(event='ended', status='done', message='')"
    )
    outcome = run(tmp_path / "further", ["small"], watch=lambda job, event: starts.append(1) if event["event"] == "started" else None)
    assert outcome.exit_code == 0 and len(starts) == 8


@pytest.mark.parametrize("name", ["SIGABRT", "SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGTERM", "SIGHUP"])
def test_a_signal_is_called_by_its_name_with_the_childs_last_words(tmp_path, dying, name):
    dying(f"print('free(): invalid pointer', file=sys.stderr, flush=True); os.kill(os.getpid(), signal.{name}); time.sleep(9)")
    outcome = run(tmp_path, ["small"])
    (sentence,) = outcome.failed.values()
    assert sentence.endswith(f"killed (killed by {name}: free(): invalid pointer)") and "memory is" not in sentence
    (record,) = Store(tmp_path).records(PAPER)
    assert record["metrics"]["message"].startswith(f"killed by {name}: free(): invalid pointer\n")
    if name in ("SIGABRT", "SIGSEGV"):
        assert "most recent call first" in record["metrics"]["message"], "faulthandler says where"


def test_a_child_that_dies_in_the_middle_of_a_line(tmp_path, dying):
    dying('print(\'{"event": "ended", "stat\', end=\'\', flush=True); os.kill(os.getpid(), 9)')
    assert "killed by SIGKILL" in next(iter(run(tmp_path, ["small"]).failed.values()))


def test_a_reader_of_the_log_that_has_gone_ends_the_run_and_pauses_what_trains(tmp_path, dying):
    """The other child would go on unseen, to the end of its trial."""
    dying(
        "signal.signal(signal.SIGTERM, lambda *_: (send(event='ended', status='paused', message=''), os._exit(0)))\n"
        "send(event='started'); seed = json.loads(work['cohort'])[0]['seed']\n"
        "time.sleep(0.3 if seed else 30); send(event='ended', status='done', message='')"
    )

    def watch(job, event):
        if event["event"] == "ended" and event["status"] == "done":
            raise BrokenPipeError

    start = time.monotonic()
    with pytest.raises(BrokenPipeError):
        run(tmp_path, ["small"], seeds=(0, 1), jobs=2, watch=watch)
    assert time.monotonic() - start < 20


def test_a_signal_without_a_name_and_without_words(tmp_path, dying):
    dying("os.kill(os.getpid(), signal.SIGRTMIN + 3)")
    assert f"killed by signal {signal.SIGRTMIN + 3}" in next(iter(run(tmp_path, ["small"]).failed.values()))


HUNG = "send(event='started'); signal.signal(signal.SIGTERM, signal.SIG_IGN); send(event='epoch', done=1, total=9); "


@pytest.mark.parametrize("how", ["time.sleep(60)", "os.kill(os.getpid(), signal.SIGSTOP)"])
@pytest.mark.parametrize("stop", ["time limit", "Ctrl-C", "twice"])
def test_a_child_that_hangs_is_ended_after_the_grace_period(tmp_path, dying, monkeypatch, stop, how):
    monkeypatch.setattr(engine, "GRACE_SECONDS", 0.3 if stop != "twice" else 60)
    dying(HUNG + how)
    said, started = [], time.monotonic()

    def watch(job, event):
        if event["event"] == "epoch" and stop != "time limit":
            os.kill(os.getpid(), signal.SIGINT)
            if stop == "twice":
                time.sleep(0.5)
                os.kill(os.getpid(), signal.SIGINT)
        said.append(event.get("message", ""))

    outcome = run(tmp_path, ["small"], watch=watch, time_limit=0.5 if stop == "time limit" else None)
    assert time.monotonic() - started < 15
    assert outcome.exit_code == 3 and not outcome.failed and len(outcome.paused) == 1
    assert not list(tmp_path.rglob("*.json")), "no failure of its own"
    told = [words for words in said if "did not stop within 0.3 s and was killed" in words]
    assert len(told) == (stop != "twice")


def test_a_child_that_stops_in_time_is_not_ended(tmp_path, dying, monkeypatch):
    monkeypatch.setattr(engine, "GRACE_SECONDS", 30)
    dying("send(event='started'); time.sleep(1); send(event='ended', status='paused', message='saved')")
    outcome = run(tmp_path, ["small"], time_limit=0.2)
    assert outcome.exit_code == 3 and not outcome.failed


def test_the_same_trial_twice_is_one(tmp_path, inside):
    store = Store(tmp_path)
    planned = plan.make(PAPER, "smoke", ["small"], [0, 0], store)
    assert len(planned.trials) == 1 and [job.ids for job in planned.jobs] == [[planned.trials[0].id]]
    twice = plan.Plan(planned.trials * 2, {}, planned.jobs * 2)
    started = []
    outcome = engine.run(twice, store, jobs=1, watch=lambda job, event: started.append(1) if event["event"] == "started" else None)
    assert outcome.exit_code == 0 and len(started) == 1
    with pytest.raises(ValueError, match="a trial stands twice in one cohort"):
        Cohort(planned.trials[0:1] * 2)


def test_a_trial_that_another_store_trains_with_this_cache_waits(tmp_path, inside):
    """Two checkouts with one cache: the second has no record, so that it trains as well, but not at the same time."""
    (trial,) = plan.make(PAPER, "smoke", ["small"], [0], Store(tmp_path / "here")).trials
    cohort, ends = Cohort((trial,)), []
    with lease(paths.cache() / "leases" / f"{trial.id}.lease", "elsewhere"):
        child.answer(
            {"cohort": cohort.to_json(), "redo": []}, Store(tmp_path / "here"), "cpu", "auto", math.inf, lambda *_, **end: ends.append(end)
        )
    assert ends[-1]["status"] == "busy" and not list(tmp_path.rglob("*.json"))
    assert run(tmp_path / "there", ["small"]).exit_code == 0
    assert run(tmp_path / "here", ["small"]).exit_code == 0
    assert recorded(tmp_path / "here") == recorded(tmp_path / "there")


def test_a_bare_machine_runs_trials(tmp_path):
    """The engine and its child, with nothing else to import; the record is then valid where there is pydantic."""
    done = subprocess.run(command(tmp_path / "results"), capture_output=True, text=True, env=bare.environment(tmp_path / "site"))
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert "1/1 small, seed 0 done in" in done.stdout
    assert [record["status"] for record in Store(tmp_path / "results").records(PAPER)] == ["done"]


def test_two_engines_on_one_store_never_run_a_trial_twice(tmp_path, own_cache):
    words = [sys.executable, "-c", TINY, "run", PAPER, "--seeds", "0,1", "--jobs", "1", "--results", str(tmp_path)]
    words += ["--arm", "small", "--arm", "small with KD", "--arm", "cumbersome"]
    engines = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=300) for process in engines]
    assert [process.returncode for process in engines] == [0, 0], outputs
    records = Store(tmp_path).records(PAPER)
    assert len(records) == 6
    trained = sum(output.count(" done in ") for output, _ in outputs)
    assert trained >= 6
    # a line says so where the other engine had recorded the trial
    assert trained - sum(output.count("recorded by another runner") for output, _ in outputs) == 6
    assert nothing_left(tmp_path, own_cache)


def test_timeout_is_a_recorded_failure(tmp_path, dying):
    dying("send(event='started'); time.sleep(60)")
    outcome = run(tmp_path, ["small"], timeout=0.3)
    (sentence,) = outcome.failed.values()
    assert outcome.exit_code == 1 and sentence.endswith("timeout (ended after 0 s: raise --timeout)")
    assert Store(tmp_path).records(PAPER)[0]["status"] == "timeout"


def test_time_limit_pauses_and_the_same_command_goes_on(tmp_path, inside, quick):
    assert run(tmp_path / "whole", ["small"]).exit_code == 0
    pauses = 0
    while (outcome := run(tmp_path / "paused", ["small"], time_limit=0.02)).exit_code == 3:
        assert not list((tmp_path / "paused").rglob("*.json")) and len(outcome.paused) == 1
        pauses += 1
    assert pauses and outcome.exit_code == 0, "an epoch is trained however short the limit"
    assert recorded(tmp_path / "paused") == recorded(tmp_path / "whole")


def test_ctrl_c_pauses(tmp_path, own_cache, quick):
    words = [sys.executable, "-c", TINY, "run", PAPER, "--arm", "cumbersome", "--seeds", "40", "--jobs", "1", "--results", str(tmp_path)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 60
    while not list((own_cache / "checkpoints").glob("*/state.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 3
    assert "trials left; the same command resumes from here" in errors
    assert not list(tmp_path.rglob("*.lease"))


def test_an_error_of_a_child_while_it_is_stopped_is_told(tmp_path, own_cache, monkeypatch):
    def fail(child, work, tell, timeout):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.5)  # the main thread sees the signal
        raise process.ChildDied("error", "ValueError: of its own")

    monkeypatch.setattr(process.Child, "ask", fail)
    outcome = run(tmp_path, ["small"], jobs=1)
    assert outcome.exit_code == 1 and "ValueError: of its own" in next(iter(outcome.failed.values()))


def test_a_stop_that_ends_a_child_outside_its_epochs_is_a_pause(tmp_path, own_cache, dying, monkeypatch):
    """Before the first epoch and after the last no loop listens to the signal: it ends the child."""
    dying("send(event='started'); time.sleep(60)")
    ends = []

    def stop_at_once(job, event):
        if event["event"] == "started":
            os.kill(os.getpid(), signal.SIGINT)
        elif event["event"] == "ended":
            ends.append((event["status"], event["message"]))

    outcome = run(tmp_path, ["small"], watch=stop_at_once)
    assert outcome.exit_code == 3 and not outcome.failed
    assert ends == [("paused", "stopped: the same command resumes from the last checkpoint")]
    assert not list(tmp_path.rglob("*.json"))
    whole_run(tmp_path, ["small"], monkeypatch)
    assert nothing_left(tmp_path, own_cache)


def test_a_damaged_checkpoint_is_told_moved_aside_and_the_trial_starts_over(tmp_path, own_cache, capsys, inside):
    assert run(tmp_path / "whole", ["small"]).exit_code == 0
    store = Store(tmp_path / "damaged")
    planned = plan.make(PAPER, "smoke", ["small"], [0], store)
    folder = checkpoint_folder(planned.jobs[0].cohort, papers.get(PAPER).precision("cpu"))
    folder.mkdir(parents=True)
    (folder / "state.safetensors").write_bytes(b"torn")
    with Progress(planned, quiet=True) as progress:
        outcome = engine.run(planned, store, jobs=1, watch=progress)
    assert outcome.exit_code == 0 and recorded(tmp_path / "damaged") == recorded(tmp_path / "whole")
    said = capsys.readouterr().out
    assert f"{folder}/state.safetensors is damaged" in said and "moved to state.safetensors.damaged: the trial starts over" in said
    assert [path.read_bytes() for path in folder.iterdir()] == [b"torn"], "neither used nor deleted"


def test_a_diverging_trial_is_a_record_of_failure(tmp_path):
    trial = papers.get(PAPER).trial("smoke", "small", 0)
    trial = dataclasses.replace(trial, config=trial.config | {"lr": 1e30})
    store = Store(tmp_path)
    status, message = child.run(Cohort((trial,)), store, "cpu", "auto", math.inf, lambda *_, **__: None, set())
    assert status == "nan" and "lower the learning rate" in message
    record = store.get(trial)
    assert record["status"] == "nan" and record["metrics"] == {"message": message} and record["cost"]["seconds"] > 0
    assert nothing_left(tmp_path, Path(os.environ["KDCORE_CACHE"]))


def test_missing_data_stop_nobody_else(tmp_path, monkeypatch, inside):
    """No MNIST and no network: its trials are left out with one sentence, those on other data run."""
    monkeypatch.setenv("KDCORE_DATA", str(tmp_path / "nothing"))
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    store = Store(tmp_path / "results")
    missing = plan.make(PAPER, "fast", ["small", "cumbersome", "small with KD"], [0, 1], store)
    there = plan.make(PAPER, "smoke", ["small"], [0], store)
    both = plan.Plan(missing.trials + there.trials, {}, missing.jobs + there.jobs)
    outcome = engine.run(both, store, jobs=1)
    assert [sentence.startswith("mnist is not in") for sentence in outcome.problems] == [True]
    assert outcome.exit_code == 1 and list(outcome.no_data) == ["mnist"] and not outcome.refused and not outcome.paused
    assert outcome.done == [there.trials[0].id] == [path.stem for path in store.results.rglob("*.json")]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting a file system needs root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("full", ["cache", "results"])
def test_a_disk_that_fills_up_in_a_run_loses_nothing(tmp_path, small_disk, monkeypatch, inside, full):
    """Checkpoints, or records, meet a full disk: one sentence and a non-zero exit; with room again, the same records."""
    assert run(tmp_path / "whole", ["cumbersome", "small with KD"]).exit_code == 0
    whole = recorded(tmp_path / "whole")
    results, cache = (small_disk if name == full else tmp_path / f"other_{name}" for name in ("results", "cache"))
    monkeypatch.setenv("KDCORE_CACHE", str(cache))
    ballast = small_disk / "ballast"
    with open(ballast, "wb", buffering=0) as file:
        for size in (2**16, 2**8, 1):  # down to the last byte
            while True:
                try:
                    file.write(bytes(size))
                except OSError:
                    break
    outcome = run(results, ["cumbersome", "small with KD"])
    assert outcome.exit_code == 1
    assert outcome.refused and all("free some disk space and run the same command again" in sentence for sentence in outcome.refused)
    ballast.unlink()
    assert run(results, ["cumbersome", "small with KD"]).exit_code == 0
    assert recorded(results) == whole
    assert nothing_left(results, cache)


@pytest.mark.parametrize(
    "limits, complaint",
    [
        ({"jobs": 1.5}, "the number of jobs"),
        ({"jobs": 0}, "the number of jobs"),
        ({"timeout": float("inf")}, "the timeout"),
        ({"timeout": 1e11}, "the timeout"),
        ({"time_limit": float("nan")}, "the time limit"),
        ({"precision": "half"}, "precision"),
    ],
)
def test_a_run_refuses_limits_before_anything_trains(limits, complaint, tmp_path):
    planned = plan.make(PAPER, "smoke", ["small"], [0], Store(tmp_path / "results"))
    with pytest.raises(KdcoreError, match=complaint):
        engine.run(planned, Store(tmp_path / "results"), **limits)
    assert not (tmp_path / "results").exists()
