"""A plan: which trials, seeds and shards it has, what it refuses, how long it will take."""

import numpy as np
import pytest
from tiny import PAPER

from kdcore import cli, papers
from kdcore.errors import KdcoreError
from kdcore.trials import child, environment, forecast, plan
from kdcore.trials.record import record
from kdcore.trials.store import Store


def test_shards_are_the_whole_grid_without_overlap(tmp_path):
    store = Store(tmp_path)
    everything = {trial for job in plan.make(PAPER, "smoke", store=store).jobs for trial in job.ids}
    parts = [{trial for job in plan.make(PAPER, "smoke", store=store, shard=(i, 3)).jobs for trial in job.ids} for i in (1, 2, 3)]
    assert set.union(*parts) == everything
    teachers = {trial.teacher for trial in papers.get(PAPER).trials("smoke")}
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert parts[a] & parts[b] <= teachers, "only a teacher may be wanted by two parts"


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (("fsq", "smoke"), "unknown paper 'fsq': choose one of"),
        ((PAPER, "huge"), "has no budget 'huge': choose one of smoke, laptop, fast, paper"),
        ((PAPER, "smoke", ["smal"]), "has no arm 'smal': choose one of"),
        ((PAPER, "laptop", ["30 units, T=4"]), "leaves out"),
    ],
)
def test_bad_words_are_one_sentence(arguments, complaint, tmp_path):
    with pytest.raises(KdcoreError, match=complaint) as caught:
        plan.make(*arguments, store=Store(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("device, complaint", [("cuda:9", "there is no device 'cuda:9'"), ("tpu", "unknown device 'tpu'")])
def test_a_device_that_is_not_there(device, complaint):
    with pytest.raises(KdcoreError, match=complaint):
        environment.devices(device)


@pytest.fixture
def timed(inside, monkeypatch):
    """The arms whose trials a child was asked to time: each takes 7 s, it says."""
    arms = []
    monkeypatch.setattr(child, "measure", lambda cohort, *_: arms.append(cohort.trials[0].arm) or 7.0)
    return arms


def test_forecast_times_each_kind_once(tmp_path, timed):
    planned = plan.make(PAPER, "smoke", ["small", "30 units, T=4"], [0, 1], Store(tmp_path))
    assert len(planned.jobs) == 2 * 3, "and their teacher"
    assert forecast.seconds(planned, "cpu") == {job.cohort.id: 7.0 for job in planned.jobs}
    assert sorted(timed) == ["30 units, T=4", "cumbersome", "small"]


def test_a_forecast_leaves_no_record(tmp_path, tiny, inside):
    planned = plan.make(PAPER, "smoke", ["small"], [0], Store(tmp_path))
    (seconds,) = forecast.seconds(planned, "cpu").values()
    assert seconds > 0 and not list(tmp_path.rglob("*.json"))


def test_forecast_from_records_of_this_device(tmp_path, timed):
    """CPU seconds where a record has them; records from before precision was written down were made in float32."""
    (trial,) = papers.get(PAPER).trials("smoke", ["small"], [0])

    def of_small(precision="float32", without=(), **cost):
        """Seconds of another seed, once one of so many seconds is recorded, and whether it had to be timed."""
        store = Store(tmp_path)
        own = record(trial, "done", {"metrics": {"test_errors": 3}, "history": []}, cost | {"peak_memory_mb": 1.0}, "float32")
        own["environment"] = {key: value for key, value in own["environment"].items() if key not in without}
        store.put(own)
        planned = plan.make(PAPER, "smoke", ["small", "30 units, T=4"], [0, 1], store)
        timed.clear()
        by_arm = forecast.seconds(planned, "cpu", precision)
        seconds = {job.cohort.trials[0].arm: by_arm[job.cohort.id] for job in planned.jobs}
        assert seconds["30 units, T=4"] == 7.0, "timed where there is no record"
        return seconds["small"], "small" in timed

    here = {"device": environment.device_name("cpu")}
    assert of_small(seconds=9999.0, cpu_seconds=1234.5, **here) == (1234.5, False)
    assert of_small(seconds=1234.5, **here) == (1234.5, False)
    assert of_small(seconds=1234.5, device="another processor") == (7.0, True)
    assert of_small("bfloat16", seconds=1234.5, **here) == (7.0, True)
    assert of_small(without=["precision"], seconds=1234.5, **here) == (1234.5, False)
    assert of_small("bfloat16", without=["precision"], seconds=1234.5, **here) == (7.0, True)


def test_a_seed_given_twice_counts_once(tmp_path, capsys):
    assert cli.seeds("0,3,0") == [0, 3]
    store = Store(tmp_path)
    planned = plan.make("hinton_mnist", "smoke", ["small"], [1, 1], store)
    assert [trial.seed for trial in planned.trials] == [1] and len(planned.jobs) == 1


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        *(({"seeds": bad}, "seeds must be") for bad in (True, 1.0, "0", {0}, b"1")),
        *(({"seeds": [bad]}, "a seed must be a whole number") for bad in (True, 1.5, "0", [0], None, -1, 10**5000, np.float64(1))),
        *(({"seeds": bad}, "the number of seeds must be") for bad in (-1, 10_001, 10**5000)),
        ({"seeds": []}, "the list of seeds is empty"),
        ({"seeds": range(10**30)}, "more than 10,000 seeds"),
        *(({"arms": bad}, "arms must be a list of at least one name") for bad in ("small", [], [None], [["small"]], 1)),
        ({"arms": ["small", "small"]}, "arm 'small' is named twice"),
        ({"arms": ["smal"]}, r"has no arm 'smal': choose .* \(did you mean 'small'\?\)"),
        *(({"shard": bad}, "shard") for bad in (2, (1,), (0, 2), (3, 2), (1.0, 2), ("1", "2"), (True, 2), None)),
        *(({"budget": bad}, "has no budget") for bad in (None, ["smoke"], "", "smok")),
        *(({"paper": bad}, "unknown paper") for bad in (None, ["fsp"], "", 3)),
    ],
)
def test_a_plan_refuses_what_no_grid_can_be_made_of(arguments, complaint, tmp_path):
    values = {"paper": "hinton_mnist", "budget": "smoke", "store": Store(tmp_path)} | arguments
    with pytest.raises(KdcoreError, match=complaint) as caught:
        plan.make(**values)
    assert len(str(caught.value)) < 1000 and "\n" not in str(caught.value)


def test_numpy_integers_are_integers(tmp_path):
    planned = plan.make("hinton_mnist", "smoke", ["small"], [np.int64(2)], Store(tmp_path))
    assert planned.trials[0].id == papers.get("hinton_mnist").trial("smoke", "small", 2).id


def test_a_plan_takes_the_teachers_of_teachers_along(tmp_path):
    planned = plan.make("born_again_networks", "laptop", ["wrn_16_1 on cifar10: BAN-3"], [0], Store(tmp_path))
    assert {job.cohort.trials[0].arm.split(": ")[1] for job in planned.jobs} == {"teacher", "BAN-1", "BAN-2", "BAN-3"}
