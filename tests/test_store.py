"""Records: keys, ids, atomic writes, damage, leases."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from kdcore import papers, paths
from kdcore.errors import KdcoreError
from kdcore.trials import store as stores
from kdcore.trials.spec import Cohort, Trial
from kdcore.trials.store import Busy, Store
from kdcore.trials.worker import record

COST = {"seconds": 1.0, "peak_memory_mb": 1.0, "device": "cpu"}


def a_trial(seed=0, budget="fast") -> Trial:
    return papers.get("hinton_mnist").trial(budget, "small", seed)


def a_record(trial: Trial, **metrics) -> dict:
    return record(trial, "done", {"metrics": {"test_errors": 150} | metrics, "history": []}, COST, "float32")


def test_the_id_is_sha256_of_canonical_json_and_depends_on_each_field():
    import hashlib
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
    assert " ".join(written) == contract, "in this order, so that records read alike"
    assert {"seconds", "peak_memory_mb", "device"} <= set(written["cost"])
    assert {"python", "torch", "commit", "gpu", "processor"} <= set(written["environment"])
    assert store.get(trial) == written


def test_smoke_records_lie_apart(tmp_path):
    store = Store(tmp_path)
    store.put(a_record(a_trial(budget="smoke")))
    assert [path.parts[-4:-1] for path in tmp_path.rglob("*.json")] == [("smoke", "records", "hinton_mnist")]
    assert store.records("hinton_mnist", "fast") == []
    assert len(store.records("hinton_mnist")) == 1


@pytest.mark.parametrize(
    "damage, complaint",
    [
        (lambda text: text[: len(text) // 2], "is damaged"),
        (lambda text: text.replace('"status": "done"', '"status": "fine"'), "status 'fine'"),
        (lambda text: text.replace('"seed": 0', '"seed": 1'), "its contents have the id"),
        (lambda text: text.replace('"epochs": ', '"epochs": 1'), "its contents have the id"),
        (lambda text: text.replace('"test_errors": 150', '"test_errors": Infinity'), "not finite"),
        (lambda text: text.replace('"peak_memory_mb"', '"memory"'), "cost lacks"),
        (lambda text: "[]", "keys must be exactly"),
    ],
)
def test_a_damaged_record_is_named(tmp_path, damage, complaint):
    store, trial = Store(tmp_path), a_trial()
    store.put(a_record(trial))
    path = store.path(trial)
    path.write_text(damage(path.read_text()))
    with pytest.raises(KdcoreError, match=complaint) as caught:
        store.get(trial)
    assert str(path) in str(caught.value) and "restore it from git, or delete it" in str(caught.value)


def test_not_a_number_is_never_written(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(KdcoreError, match="not finite"):
        store.put(a_record(a_trial(), test_errors=float("nan")))
    assert not list(tmp_path.rglob("*.json"))


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
    with pytest.raises(KdcoreError, match="cannot write .*results"):
        Store(tmp_path / "results").put(a_record(a_trial()))
    with pytest.raises(KdcoreError, match="cannot write"), Store(tmp_path / "results").lease(a_trial()):
        pass


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
    assert stores.dumps(store.records("hinton_mnist")[0]).count("\n") == len(stores.KEYS) + 2


def test_a_record_names_its_precision():
    trial = a_trial()
    assert record(trial, "done", {"metrics": {}, "history": []}, COST, "bfloat16")["environment"]["precision"] == "bfloat16"
    paper = papers.get("hinton_mnist")
    assert paper.precision("cpu", "float32") == "float32" and paper.precision("cpu", "bfloat16") == "bfloat16"
    assert papers.get("fsp").precision("cpu") == "float32", "no equivalence was shown: auto is float32 on every machine"
