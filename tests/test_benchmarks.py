"""The benchmarks judge rightly: the numerics gate, the ratios, the verdicts. (Speed itself is not tested here.)"""

import pytest
import torch

from benchmarks import mlp
from benchmarks.__main__ import main
from benchmarks.measure import BenchmarkError, Spread, interleave, speedups
from benchmarks.suite import Row

SMALL = mlp.Task(seed=3, cases=mlp.CHECKED_STEPS * mlp.BATCH, student=(784, 40, 40, 10), teacher=(784, 60, 60, 10))


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


def test_gate_refuses_a_table_of_another_teacher():
    def table(seed: int) -> torch.Tensor:
        return torch.from_numpy(mlp.teacher_table(SMALL, mlp.MLP(SMALL.teacher).reset([seed])))

    live, images = mlp._copied(mlp.MLP(SMALL.teacher).reset([5]), 0), mlp.inputs(SMALL)
    mlp.compare_table(table(5), live, images)
    with pytest.raises(BenchmarkError, match="not the teacher"):
        mlp.compare_table(table(6), live, images)


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
    found = interleave({name: lambda name=name: order.append(name) or len(order) for name in "ab"}, rounds=3)
    assert "".join(order) == "abbaab"
    assert found == {"a": [1, 4, 5], "b": [2, 3, 6]}


def test_train_operations():
    # 2-3-4: forward 6 + 12 products, weight gradients the same, the gradient of the hidden layer 12: 48 in all
    assert mlp.train_operations((2, 3, 4)) == 2 * 48
    assert mlp.train_operations(mlp.STUDENT) == pytest.approx(6.4e6, rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["mlp_stepp"], "unknown benchmark 'mlp_stepp': choose from mlp_step, kd_step, many_trials, cold_start, table"),
        (["--rounds", "0"], "--rounds must be at least 1"),
        (["--save", "--quick"], "--save keeps full runs only"),
    ],
)
def test_wrong_use_is_one_sentence_and_status_2(arguments, sentence, capsys):
    assert main(arguments) == 2
    printed = capsys.readouterr().err
    assert sentence in printed and printed.count("\n") == 1
