"""The benchmarks judge rightly: the numerics gate, the ratios, the verdicts. (Speed itself is not tested here.)"""

import pytest
import torch

from benchmarks import cifar, mlp, schedule
from benchmarks.__main__ import main
from benchmarks.measure import BenchmarkError, Spread, interleave, speedups
from benchmarks.suite import Row, Settings
from kdcore import data
from kdcore.papers.hinton_mnist.trial import Nets

SMALL = mlp.Task(seed=3, cases=mlp.CHECKED_STEPS * mlp.BATCH, student=(784, 40, 40, 10), teacher=(784, 60, 60, 10))
SMALL_NETS = cifar.Task(seed=3, cases=mlp.CHECKED_STEPS * 8, student="wrn_10_1", teacher="wrn_10_1")


def row(baseline, ours, **bounds) -> Row:
    return Row("B0", "toy", "img/s", baseline, ours, memory_mb=0, baseline_memory_mb=0, **bounds)


def test_gate_passes_where_both_loops_compute_the_same():
    mlp.check_numerics(SMALL)


def test_gate_refuses_a_perturbed_weight():
    def perturb(net):
        with torch.no_grad():
            net.weights[1][0, 0, 0] += 0.1

    with pytest.raises(BenchmarkError, match="no speed is reported.*step 1"):
        mlp.check_numerics(SMALL, tamper=perturb)


def test_gate_refuses_a_loss_that_is_not_a_number():
    with pytest.raises(BenchmarkError, match="step 2"):
        mlp.compare([1.0, float("nan")], [1.0, 1.0])


def test_gate_allows_what_rounding_does():
    mlp.compare([1.000009, 1.0001], [1.0, 1.0])
    with pytest.raises(BenchmarkError, match="step 1: .* allowed 1e-05"):
        mlp.compare([1.0001, 1.0], [1.0, 1.0])
    with pytest.raises(BenchmarkError, match="step 2: .* allowed 0.0003"):
        mlp.compare([1.0, 1.0005], [1.0, 1.0])


def test_gate_sees_a_rate_that_is_off_by_a_hundredth(monkeypatch):
    right = mlp.plain_losses
    monkeypatch.setattr(mlp, "plain_losses", lambda student, teacher, batches: right(student, teacher, batches, 1.01 * mlp.RATE))
    with pytest.raises(BenchmarkError, match="no speed is reported"):
        mlp.check_numerics(SMALL)


def test_gate_refuses_a_table_of_another_teacher():
    def table(seed: int) -> torch.Tensor:
        return torch.from_numpy(mlp.teacher_table(SMALL, mlp.MLP(SMALL.teacher).reset([seed])))

    live, images = mlp._copied(mlp.MLP(SMALL.teacher).reset([5]), 0), mlp.inputs(SMALL)
    mlp.compare_table(table(5), live, images)
    with pytest.raises(BenchmarkError, match="not the teacher"):
        mlp.compare_table(table(6), live, images)


def test_gate_passes_where_both_convolutional_loops_compute_the_same():
    cifar.check_numerics(SMALL_NETS)


def test_gate_refuses_a_perturbed_convolution():
    def perturb(cohort):
        with torch.no_grad():
            weight = next(p for p in cohort[0].student.parameters() if p.shape[2:] == (3, 3))
            weight[0, 0, 0, 0] += 0.1

    with pytest.raises(BenchmarkError, match="no speed is reported.*step 1"):
        cifar.check_numerics(SMALL_NETS, tamper=perturb)


def test_gate_refuses_other_views(monkeypatch):
    right = cifar.pil_views
    monkeypatch.setattr(cifar, "pil_views", lambda task, index: right(task, index * torch.tensor([1, 1, 1, 0])))
    with pytest.raises(BenchmarkError, match="step 1"):
        cifar.check_numerics(SMALL_NETS)


def test_gate_sees_the_optimiser_at_its_small_rate(monkeypatch):
    monkeypatch.setattr(cifar, "MOMENTUM", 0.5)
    with pytest.raises(BenchmarkError, match=r"step [3-9]:"):  # weights show a momentum from the third step on
        cifar.check_numerics(SMALL_NETS)


def test_a_failed_gate_prints_no_speed(monkeypatch, capsys):
    def fail(*_):
        raise BenchmarkError("no speed is reported: for this reason")

    monkeypatch.setattr(mlp, "check_numerics", fail)
    assert main(["mlp_step"]) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and "for this reason" in printed.err


def test_ratio_is_taken_round_by_round():
    # by hand: 300/100, 400/200, 1000/400; the ratio of the medians would be 2.0
    ratios = speedups([100, 200, 400], [300, 400, 1000])
    assert ratios == [3.0, 2.0, 2.5]
    assert Spread.of(ratios) == Spread(median=2.5, low=2.0, high=3.0)
    assert speedups([6.0, 4.0], [3.0, 4.0], lower_is_better=True) == [2.0, 1.0]


def test_verdicts():
    assert row([100], [279], floor=2.8, target=3.5).verdict() == "below floor"
    assert row([100], [280], floor=2.8, target=3.5).verdict() == "pass"
    assert row([100], [350], floor=2.8, target=3.5).verdict() == "target met"
    assert row([100], [350]).verdict() == "-"
    seconds = {"floor": 6.0, "target": 5.0, "judged": "ours", "lower_is_better": True}
    assert [row([9], [own], **seconds).verdict() for own in (6.1, 6.0, 5.0)] == ["below floor", "pass", "target met"]


def test_rounds_alternate_in_direction():
    order = []
    result = interleave({name: lambda name=name: order.append(name) or len(order) for name in "ab"}, rounds=3)
    assert "".join(order) == "abbaab"
    assert result == {"a": [1, 4, 5], "b": [2, 3, 6]}


def test_train_operations():
    # 2-3-4: forward 6 + 12 products, weight gradients the same, the gradient of the hidden layer 12: 48 in all
    assert mlp.train_operations((2, 3, 4)) == 2 * 48
    assert mlp.train_operations(mlp.STUDENT) == pytest.approx(6.4e6, rel=0.01)


def test_operations_of_a_convolutional_net():
    # WRN-10-1 by hand, multiplications: stem, group 1, then group 2 and 3 with a 1x1 convolution each, linear
    stem, size = 27 * 16 * 32**2, [32**2, 16**2, 8**2]
    group1 = 2 * 9 * 16 * 16 * size[0]
    others = sum(inputs * 2 * inputs * (9 + 2 * 9 + 1) * size[g] for g, inputs in ((1, 16), (2, 32)))
    forward = 2 * (stem + group1 + others + 64 * 10)
    assert cifar.operations("wrn_10_1", training=False) == forward
    # backward: the weights' gradients, and those of all inputs but the images
    assert cifar.operations("wrn_10_1", training=True) == 3 * forward - 2 * stem


def test_cohort_learns_what_separate_students_learn():
    task = cifar.Task(cases=16, student="wrn_10_1", teacher="wrn_10_2")
    cohort, stage = cifar.engine(task, cifar.FOUR, batch=8)
    (row,) = stage.indices(torch.Generator().manual_seed(0))[:1]
    together = stage.loss(row)
    for name, method, loss in zip(cifar.FOUR, cohort, together, strict=True):
        alone, own_stage = cifar.engine(task, [name], batch=8)
        alone[0].load_state_dict(method.state_dict())
        assert own_stage.loss(row).item() == pytest.approx(loss.item(), rel=1e-6)


def test_epoch_is_extrapolated_from_its_share(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(cifar.time, "perf_counter", lambda: now[0])
    for kind, students in ((cifar.PeerEpoch, 1), (cifar.EngineEpoch, 4)):
        loop = object.__new__(kind)
        loop.students = students
        loop.step = lambda: now.__setitem__(0, now[0] + 0.256)
        loop._evaluate = lambda cases: {256: 0.0005}[cases]
        # 0.256 s a batch of 128, so 2 ms an image: 50,000 of them, and 10,000 at 0.5 ms
        amount, seconds = loop.run(2)
        assert amount == students and seconds == pytest.approx(100 + 5)


def test_cases_are_those_of_the_benchmark():
    settings = Settings(task=mlp.Task(cases=7), images=cifar.Task(cases=9))
    assert [settings.cases(name) for name in ("table", "cold_start", "feed", "wrn_table")] == [7, 7, 9, 9]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["mlp_stepp"], "unknown benchmark 'mlp_stepp': choose from feed, mlp_step, wrn_step, darts_step, kd_step, wrn_kd,"),
        (["--rounds", "0"], "--rounds must be at least 1"),
        (["--save", "--quick"], "--save takes only full runs"),
    ],
)
def test_wrong_use_is_one_sentence_and_status_2(arguments, sentence, capsys):
    assert main(arguments) == 2
    printed = capsys.readouterr().err
    assert sentence in printed and printed.count("\n") == 1


def test_schedule_counts_errors_on_images_that_neither_teacher_nor_student_trained_on(tmp_path, monkeypatch, capsys):
    rows, seen, whole, init = [], [], data.load("digits"), Nets.__init__
    monkeypatch.setenv("KDCORE_CACHE", str(tmp_path))
    monkeypatch.setattr(schedule, "save", rows.append)
    monkeypatch.setattr(Nets, "__init__", lambda self, *about: init(self, *about) or seen.append(self))
    command = "hinton_mnist|--arm|small with KD|--epochs|1|2|--teacher-epochs|1|--budget|smoke|--held-out|300|--save"
    assert schedule.main(command.split("|")) == 0
    (row,) = rows
    assert row["paper"] == "hinton_mnist" and set(row["errors"]) == {1, 2} and all(0 < count <= 300 for count in row["errors"].values())
    assert "of 300 held-out images wrong" in capsys.readouterr().out
    held = [nets.images.test_images for nets in seen]
    assert len(seen) == 4 and all(torch.equal(each, held[0]) for each in held) and held[0].shape == (300, *whole.train_images.shape[1:])
    for nets in seen:  # every training image is on one side, none of the test set on either
        both = torch.cat([nets.images.train_images, nets.images.test_images]).flatten(1)
        assert torch.equal(both.double().sum(0), whole.train_images.flatten(1).double().sum(0)) and len(both) == len(whole.train_images)
    assert data.load("digits") is whole


def test_schedule_of_a_student_needs_its_teacher_s_length(capsys):
    assert schedule.main(["hinton_mnist", "--arm", "small with KD", "--epochs", "1", "--budget", "smoke"]) == 1
    assert "--teacher-epochs" in capsys.readouterr().err
