"""Several papers in one run, in the order of their value for time."""

import pytest

from kdcore import cli, papers
from kdcore.papers import images
from kdcore.papers.spec import Cohort, Trial
from kdcore.trials import order, plan
from kdcore.trials.store import Store


def job(arm: str, *, seed: int = 0, teacher: plan.Job | None = None, paper: str = "fsp", budget: str = "paper") -> plan.Job:
    teacher_id = None if teacher is None else teacher.ids[0]
    return plan.Job(Cohort((Trial(paper, arm, budget, seed, {}, "", teacher_id, 1),)))


def test_cells_with_reported_numbers_come_first_and_the_cheap_before_the_dear():
    dear, cheap = job("teacher 26"), job("student 8")  # both have numbers in table 3
    control, small = job("KD 8"), job("FSP 8", budget="laptop")  # no number of the paper's; a number at another scale
    seconds = {dear: 50.0, cheap: 5.0, control: 1.0, small: 2.0}
    assert order.by_value([small, control, dear, cheap], seconds.get) == [cheap, dear, control, small]
    assert [order.worth(each) for each in (cheap, control, small, job("no such arm"))] == [0, 1, 1, 2]


def test_a_teacher_counts_with_the_students_that_need_it():
    """Alone it costs 12; four students share it, 3 each and 1 of their own: 4, which is less than the 5 of another cell.
    Of a teacher of two, 8 / 2 + 2 = 6, more than 5."""
    shared, lonely, other = job("teacher 26"), job("teacher 26", seed=1), job("student 8")
    four = [job("FSP 8", teacher=shared, seed=seed) for seed in range(4)]
    two = [job("FSP 8", teacher=lonely, seed=seed) for seed in (4, 5)]
    seconds = {shared: 12.0, lonely: 8.0, other: 5.0} | dict.fromkeys(four, 1.0) | dict.fromkeys(two, 2.0)
    ordered = order.by_value([other, *two, *four, lonely, shared], seconds.get)
    assert ordered == [shared, *four, other, lonely, *two]


def test_a_chain_of_teachers_stands_before_its_student():
    first = job("teacher 26")
    second = job("KD 8", teacher=first)
    third = job("FSP 8", teacher=second)
    assert order.by_value([third, second, first], lambda _: 1.0) == [first, second, third]


def test_a_record_of_this_device_says_how_long_a_trial_takes(monkeypatch):
    """9 passes over 1,000 cases of a net of 8 weights took 72 s: a rate of 1,000 a second for what has no record."""
    monkeypatch.setattr("kdcore.trials.environment.device_name", lambda device: f"the {device}")
    config = {"data": "digits", "layers": [4, 2], "epochs": 9, "members": 1}
    known = Trial("hinton_mnist", "small", "paper", 0, config, "", None, 1)
    other = Trial("hinton_mnist", "cumbersome", "paper", 0, config | {"epochs": 3}, "", None, 1)
    records = {
        device: {
            "paper": "hinton_mnist",
            "budget": "paper",
            "arm": "small",
            "status": "done",
            "config": config,
            "cost": {"device": device, "seconds": seconds},
        }
        for device, seconds in (("the cpu", 72.0), ("the cuda", 0.5))
    }
    cost = order.seconds(plan.Plan([], records, []), "cpu")
    assert cost(plan.Job(Cohort((known,)))) == 72.0
    assert cost(plan.Job(Cohort((other,)))) == pytest.approx(24.0)
    assert order.seconds(plan.Plan([], {}, []), "cpu")(plan.Job(Cohort((other,)))) == 24_000


@pytest.mark.parametrize(
    "key, arm, passes_cases_weights",
    [
        ("hinton_mnist", "small", 500 * 60_000 * (784 * 800 + 800 * 800 + 800 * 10)),
        ("fsp", "student 8", 64_000 * 128 * 75_290 * 100),  # steps; ResNet-8 has 75,290 parameters
        ("activation_boundaries", "none, 1 %", (20 + 100) * 500 * 691_674 * 100),  # WRN-16-2 has 691,674
        ("born_again_trees", "glass", 1),
    ],
)
def test_the_size_of_a_trial_is_read_from_its_sheet(key, arm, passes_cases_weights):
    assert papers.get(key).work(papers.get(key).config("paper", arm)) == pytest.approx(passes_cases_weights)


@pytest.mark.parametrize("key", papers.names())
def test_every_trial_has_a_size(key, monkeypatch):
    monkeypatch.setattr(images, "_parameters", lambda name: 1)
    paper = papers.get(key)
    for budget in paper.budgets:
        for arm in paper.budget_arms(budget):
            assert paper.work(paper.config(budget, arm)) > 0


def test_the_order_of_the_sheets_is_paper_by_paper(tmp_path):
    plans = [plan.make(key, "smoke", seeds=[0], store=Store(tmp_path)) for key in ("fsp", "hinton_mnist")]
    whole = order.merged(plans)
    assert whole.jobs == plans[0].jobs + plans[1].jobs and whole.trials == plans[0].trials + plans[1].trials
    ordered = order.merged(plans, "value").jobs
    assert ordered != whole.jobs and set(ordered) == set(whole.jobs)
    with pytest.raises(ValueError, match="the order is one of sheet, value, not 'random'"):
        order.merged(plans, "random")


def test_two_papers_share_a_run(tmp_path, capsys):
    words = ["run", "hinton_mnist", "born_again_trees", "--seed", "0", "--results", str(tmp_path), "--order", "value"]
    assert cli.main([*words, "--arm", "small"]) == 1, "an arm that a paper does not have"
    assert "born_again_trees has no arm 'small'" in capsys.readouterr().err
    assert cli.main([*words, "--time-limit", "0.001"]) == 3
    said = capsys.readouterr()
    assert "trials left; the same command resumes from here" in said.err
    assert "of hinton_mnist at smoke are recorded" in said.out and "0 of 3 trials of born_again_trees at smoke are recorded" in said.out
