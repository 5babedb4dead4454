"""Records: keys, ids, atomic writes, damage, leases."""

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch

from kdcore import papers, paths, training
from kdcore.data import images, tabular
from kdcore.errors import KdcoreError
from kdcore.papers.spec import Cohort, Trial
from kdcore.trials import child, weights
from kdcore.trials import store as stores
from kdcore.trials.record import record
from kdcore.trials.store import Busy, Store

COST = {"seconds": 1.0, "peak_memory_mb": 1.0, "device": "cpu"}


def a_trial(seed=0, budget="fast") -> Trial:
    return papers.get("hinton_mnist").trial(budget, "small", seed)


def a_record(trial: Trial, **metrics) -> dict:
    return record(trial, "done", {"metrics": {"test_errors": 150} | metrics, "history": []}, COST, "float32")


def test_the_id_is_sha256_of_canonical_json_and_depends_on_each_field():
    from dataclasses import asdict, replace

    trial = Trial("p", "a", "smoke", 0, {"b": 1, "a": [2, 0.5]}, "f", None, 1)
    text = '{"arm":"a","budget":"smoke","config":{"a":[2,0.5],"b":1},"data":"f","paper":"p","seed":0,"teacher":null,"version":1}'
    assert trial.id == hashlib.sha256(text.encode()).hexdigest()[:12]
    changes = {"paper": "q", "arm": "b", "budget": "fast", "seed": 1, "config": {"b": 1}, "data": "g", "teacher": "t", "version": 2}
    assert set(changes) == set(asdict(trial))
    assert len({replace(trial, **{key: value}).id for key, value in changes.items()} | {trial.id}) == 9
    assert Cohort.from_json(Cohort((trial,)).to_json()).trials == (trial,)


def test_record_keys_are_the_contract(tmp_path):
    store, trial = Store(tmp_path), a_trial()
    store.put(a_record(trial))
    written = json.loads((tmp_path / "records" / "hinton_mnist" / f"{trial.id}.json").read_text())
    contract = "id paper arm budget seed status config metrics history cost environment data teacher version"
    assert written.pop("digest") and " ".join(written) == contract, "in this order, so that records read alike"
    assert {"seconds", "peak_memory_mb", "device"} <= set(written["cost"])
    assert {"python", "torch", "commit", "gpu", "processor"} <= set(written["environment"])
    assert store.get(trial) == written


def test_smoke_records_lie_apart(tmp_path):
    store = Store(tmp_path)
    store.put(a_record(a_trial(budget="smoke")))
    assert [path.parts[-4:-1] for path in tmp_path.rglob("*.json")] == [("smoke", "records", "hinton_mnist")]
    assert store.records("hinton_mnist", "fast") == []
    assert len(store.records("hinton_mnist")) == 1


def sealed(text: str) -> bytes:
    """A record's file with the digest that its contents have, whatever they are."""
    body = text[: text.rindex('"digest"')].encode()
    return body + b'"digest": "%s"\n}\n' % hashlib.sha256(body).hexdigest().encode()


def test_the_last_line_is_the_digest_of_all_before_it(tmp_path):
    store, trial = Store(tmp_path), a_trial()
    store.put(a_record(trial))
    text = store.path(trial).read_text()
    assert text.endswith('"\n}\n') and sealed(text) == text.encode()


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: text.replace("150", "151"),
        lambda text: text.replace('"history": []', '"history": [{}]'),
        lambda text: text + "\n",
        lambda text: text[: text.rindex(',\n"digest"')] + "\n}\n",  # as records were before they had one
        lambda text: text.replace("\n", "\r\n"),
    ],
)
def test_a_damaged_record_is_named(tmp_path, damage):
    store, trial = Store(tmp_path), a_trial()
    store.put(a_record(trial))
    path = store.path(trial)
    path.write_bytes(damage(path.read_text()).encode())
    with pytest.raises(KdcoreError, match="is damaged .*: restore it from git, or delete it and run its trial again") as caught:
        store.get(trial)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "wrong, complaint",
    [
        (('"status": "done"', '"status": "fine"'), "status: input should be 'done', 'nan', .* not 'fine'"),
        (('"seed": 0', '"seed": 1'), "its contents have the id"),
        (('"seed": 0', '"seed": -1'), "seed: input should be greater than or equal to 0"),
        (('"seed": 0', '"seed": 0.5'), "seed: input should be a valid integer"),
        (('"epochs": ', '"epochs": 1'), "its contents have the id"),
        (('"peak_memory_mb"', '"memory"'), "cost.peak_memory_mb: field required"),
        (('"seconds": 1.0', '"seconds": "1.0"'), "cost.seconds: input should be a valid number, not '1.0'"),
        (('"seconds": 1.0', '"seconds": -1.0'), "cost.seconds: input should be greater than or equal to 0"),
        (('"precision": "float32"', '"precision": "float16"'), "environment.precision"),
        (('"history": []', '"history": {}'), "history: input should be a valid list"),
        (('"history": []', '"history": [1]'), "history.0: input should be a valid dictionary"),
        (('"test_errors": 150', '"test_errors": "150"'), "a trial that is done must have a number among its metrics"),
        (('"status": "done"', '"status": "nan"'), "a failed trial must have a text"),
        (('"paper": "hinton_mnist"', '"paper": "../hinton_mnist"'), "paper: string should match pattern"),
        (('"data": {', '"data": [], "data": {'), "the key 'data' occurs twice"),
        (('"version"', '"verse"'), "its keys must be exactly"),
        (("150", "Infinity"), "metrics.test_errors is not a finite number"),
        (("150", '[1, {"a": NaN}]'), "metrics.test_errors.1.a is not a finite number"),
        (("150", "1e999"), "metrics.test_errors is not a finite number"),
        (("150", "1" * 30), "metrics.test_errors is an integer of more than 64 bits"),
        (("150", "1" * 5000), "4300 digits"),
        (("150", "[" * 100 + "]" * 100), "nested too deep"),
        (("150", "[" * 100_000 + "]" * 100_000), "recursion"),
        (("150", r'"\ud800"'), "metrics.test_errors is not Unicode"),
        (("test_errors", r"test_\ud800"), "surrogates not allowed"),
        (("150", "15 0"), "delimiter"),
        (("150", "\x00"), "Expecting value"),
    ],
)
def test_a_record_that_no_reader_could_use_is_refused_with_the_place(tmp_path, wrong, complaint):
    """Its digest is right: somebody made it so."""
    store, trial = Store(tmp_path), a_trial()
    store.put(a_record(trial))
    path = store.path(trial)
    text = path.read_text()
    assert wrong[0] in text
    path.write_bytes(sealed(text.replace(*wrong, 1)))
    with pytest.raises(KdcoreError, match=f"{trial.id}.json is not valid .*{complaint}"):
        store.get(trial)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    store, trial = Store(tmp_path), a_trial()
    store.put(a_record(trial))
    path = store.path(trial)
    body = path.read_bytes()[: -stores.SEAL].replace(b"150", b'"\xff"')
    path.write_bytes(body + stores._seal(body))
    with pytest.raises(KdcoreError, match="can't decode byte 0xff"):
        store.get(trial)


@pytest.mark.parametrize("reader", ["record", "weights", "checkpoint", "images", "table"])
def test_a_pipe_in_a_files_place_is_told_and_not_waited_for(tmp_path, own_cache, reader):
    trial = a_trial()
    path, read = {
        "record": (Store(tmp_path).path(trial), lambda: Store(tmp_path).get(trial)),
        "weights": (weights.weights_path("0" * 12), lambda: weights.load_weights("0" * 12)),
        "checkpoint": (own_cache / "state.safetensors", lambda: training.Checkpoint(own_cache).load(torch.nn.Linear(2, 2))),
        "images": (own_cache / "data" / "mnist.safetensors", lambda: images.load("mnist")),
        "table": (own_cache / "data" / "glass.csv", lambda: tabular.load("glass")),
    }[reader]
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.alarm(10)  # a reader of a pipe waits until somebody writes
    try:
        with pytest.raises(KdcoreError, match=f"{path} .*it is a pipe, a socket or a device, not a file"):
            read()
    finally:
        signal.alarm(0)


@pytest.mark.parametrize(
    "row", [{"loss": "0.5"}, {"test_error_percent": [1.0, None]}, {"lr": True}, {"stage": 3}, {"epoch": {}}, {"loss": [[1.0]]}], ids=str
)
def test_a_history_holds_numbers(tmp_path, row):
    with pytest.raises(KdcoreError, match=f"history.0.{next(iter(row))}"):
        Store(tmp_path).put(a_record(a_trial()) | {"history": [row]})
    Store(tmp_path).put(a_record(a_trial()) | {"history": [{"stage": "train", "epoch": 1, "loss": [0.5, 1], "lr": 0.1}]})


def test_a_folder_or_file_of_this_machine_that_fails_is_a_refusal(tmp_path, monkeypatch):
    def denied(self, trial):
        raise PermissionError(errno.EACCES, "Permission denied", "/some/where")

    monkeypatch.setattr(Store, "get", denied)
    ended = child.run(Cohort((a_trial(),)), Store(tmp_path), "cpu", "auto", float("inf"), lambda event, **fields: None, set())
    assert ended == ("refused", "'/some/where' cannot be used (Permission denied): make the folder writable and run the same command again")


def test_a_record_under_another_name_is_refused(tmp_path):
    store, trial = Store(tmp_path), a_trial()
    store.put(a_record(trial))
    os.rename(store.path(trial), store.path(a_trial(1)))
    with pytest.raises(KdcoreError, match=f"has the id {trial.id}"):
        store.get(a_trial(1))


def test_not_a_number_is_never_written(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(KdcoreError, match="metrics.test_errors is not a finite number"):
        store.put(a_record(a_trial(), test_errors=float("nan")))
    with pytest.raises(KdcoreError, match="its keys must be exactly"):
        store.put({"id": "0" * 12})
    assert not list(tmp_path.rglob("*.json"))


def test_without_pydantic_digest_keys_numbers_and_id_are_checked_all_the_same(tmp_path, monkeypatch):
    store, trial = Store(tmp_path), a_trial()
    store.put(a_record(trial))
    text = store.path(trial).read_text()
    monkeypatch.setattr(stores, "_schema", lambda: None)
    assert store.get(trial) == a_record(trial)
    for wrong in (
        ("150", "NaN"),
        ('"seed": 0', '"seed": 1'),
        ('"data": {', '"date": {'),
        ('"fingerprint"', '"print"'),
        ('"seed": 0', '"seed": []'),
    ):
        store.path(trial).write_bytes(sealed(text.replace(*wrong, 1)))
        with pytest.raises(KdcoreError, match="is not valid"):
            store.get(trial)


def test_a_failed_write_leaves_the_old_file_and_no_temporary(tmp_path):
    path = tmp_path / "record.json"
    path.write_text("old")

    def fail(temporary):
        with open(temporary, "w") as file:
            file.write("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(KdcoreError, match="No space left on device.*free some disk space and run the same command again"):
        paths.write_atomically(path, fail)
    assert [p.name for p in tmp_path.iterdir()] == ["record.json"] and path.read_text() == "old"


def test_a_real_full_disk_is_one_sentence(tmp_path):
    """/dev/full answers every write with ENOSPC, as a full disk does."""
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full on this system")

    def to_full(_):
        with open("/dev/full", "w") as file:
            file.write("x" * 10_000)

    with pytest.raises(KdcoreError, match="free some disk space"):
        paths.write_atomically(tmp_path / "record.json", to_full)
    assert not list(tmp_path.iterdir())


def test_results_that_cannot_be_written(tmp_path):
    (tmp_path / "results").write_text("a file where the folder should be")
    with pytest.raises(KdcoreError, match="cannot write .*results.*move away what is in the place of the folder"):
        Store(tmp_path / "results").put(a_record(a_trial()))
    with (
        pytest.raises(KdcoreError, match="cannot write .*results.*move away what is in the place"),
        Store(tmp_path / "results").lease(a_trial()),
    ):
        pass


@pytest.mark.parametrize(
    "number, advice",
    [
        (errno.ENOLCK, "does not support locks.* on a local disk"),
        (errno.EOPNOTSUPP, "does not support locks"),
        (errno.EACCES, "make the folder writable"),
        (errno.ENOSPC, "free some disk space"),
        (errno.EMFILE, "ulimit -n"),
    ],
)
def test_a_lock_that_cannot_be_had_is_told_with_what_to_do(tmp_path, monkeypatch, number, advice):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(stores.fcntl, "flock", fail)
    with pytest.raises(KdcoreError, match=f"cannot write .*lease.*{advice}"), Store(tmp_path).lease(a_trial()):
        pass


@pytest.mark.parametrize("mask, mode", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_umask_is_respected(tmp_path, mask, mode):
    old = os.umask(mask)
    try:
        paths.write_text(tmp_path / "a.json", "{}")
        weights.save_weights("0" * 12, {"w": torch.zeros(3)})
    finally:
        os.umask(old)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "a.json", weights.weights_path("0" * 12))} == {mode}


def test_temporaries_of_dead_processes_are_swept_and_no_others(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    gone = [tmp_path / f".tmp-{dead.pid}-{paths.HOST}-0a1b.json", tmp_path / ".tmp-old"]
    kept = [tmp_path / f".tmp-{os.getpid()}-{paths.HOST}-0a1b.json", tmp_path / f".tmp-{dead.pid}-elsewhere-0a1b", tmp_path / ".tmp-new"]
    for path in gone + kept:
        path.touch()
    os.utime(gone[1], (0, 0))
    paths.write_text(tmp_path / "a.json", "{}")
    assert set(tmp_path.iterdir()) == {tmp_path / "a.json", *kept}


def test_an_interrupted_write_leaves_no_temporary(tmp_path):
    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        paths.write_atomically(tmp_path / "a.json", interrupt)
    assert not list(tmp_path.iterdir())


HOLDER = """
    import sys, time
    from pathlib import Path
    from kdcore import papers
    from kdcore.trials.store import Store
    trial = papers.get("hinton_mnist").trial("fast", "small", 0)
    with Store(sys.argv[1]).lease(trial):
        print("held", flush=True)
        time.sleep(60)
"""


def test_a_lease_keeps_others_off_and_ends_with_its_process(tmp_path):
    store, trial = Store(tmp_path), a_trial()
    holder = subprocess.Popen([sys.executable, "-c", textwrap.dedent(HOLDER), str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Busy), store.lease(trial):
            pass
        with store.lease(a_trial(seed=1)):
            pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    with store.lease(trial):  # a killed holder leaves its file, not its lock
        pass
    assert not list(tmp_path.rglob("*.lease")), "a lease in order takes its file away"


def test_reading_many_records(tmp_path):
    store = Store(tmp_path)
    for seed in (2, 0, 1):
        store.put(a_record(a_trial(seed)))
    assert [r["seed"] for r in store.records("hinton_mnist", "fast")] == [0, 1, 2]
    assert stores.dumps(store.records("hinton_mnist")[0]).count("\n") == len(stores.KEYS) + 3


def test_a_record_names_its_precision():
    trial = a_trial()
    assert record(trial, "done", {"metrics": {}, "history": []}, COST, "bfloat16")["environment"]["precision"] == "bfloat16"
    paper = papers.get("hinton_mnist")
    assert paper.precision("cpu", "float32") == "float32" and paper.precision("cpu", "bfloat16") == "bfloat16"
    assert papers.get("fsp").precision("cpu") == "float32", "no equivalence was shown: auto is float32 on every machine"
