"""What a run says of itself while it goes on."""

import time

from kdcore.trials import order, plan
from kdcore.trials.progress import Progress
from kdcore.trials.store import Store


def test_a_log_says_where_a_trial_is_once_a_minute_and_how_long_it_took(tmp_path, monkeypatch, capsys):
    clock = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    planned = plan.make("hinton_mnist", "smoke", ["cumbersome"], [0], Store(tmp_path))
    (job,) = planned.jobs
    progress = Progress(planned)
    for at, event in (
        (100.0, {"event": "started"}),
        (130.0, {"event": "epoch", "stage": "train", "done": 1, "total": 4, "loss": 0.5}),  # or none: features and an SVM
        (160.0, {"event": "epoch", "stage": "train", "done": 2, "total": 4, "loss": [0.3, 0.2], "test_error_percent": [9.0, 8.0]}),
        (190.0, {"event": "epoch", "stage": "train", "done": 3, "total": 4, "loss": 0.1}),
        (220.0, {"event": "epoch", "stage": "train", "done": 4, "total": 4, "loss": 0.1}),
        (222.0, {"event": "ended", "status": "done", "message": ""}),
    ):
        clock = at
        progress(job, event)
    progress(job, {"event": "ended", "status": "done", "message": "recorded by another runner"})
    *minutes, whole, other = capsys.readouterr().out.splitlines()
    assert minutes == [  # one a minute
        "cumbersome, seed 0: train 2/4, loss 0.25, 8.50 % error, 1.0 min left",
        "cumbersome, seed 0: train 4/4, loss 0.1, - % error, 0.0 min left",
    ]
    assert whole == "1/1 cumbersome, seed 0 done in 122 s"
    assert other.endswith("done in 0 s: recorded by another runner")


def test_progress_says_of_which_paper_it_speaks(tmp_path, capsys):
    plans = [plan.make(key, "smoke", [arm], [0], Store(tmp_path)) for key, arm in (("fsp", "student 8"), ("born_again_trees", "glass"))]
    planned = order.merged(plans)
    with Progress(planned) as progress:
        for job in planned.jobs:
            progress(job, {"event": "ended", "status": "done", "message": ""})
    assert capsys.readouterr().out.splitlines() == [
        "1/2 fsp: student 8, seed 0 done in 0 s",
        "2/2 born_again_trees: glass, seed 0 done in 0 s",
    ]
