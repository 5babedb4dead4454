"""Yim, Joo, Bae & Kim 2017, "A gift from knowledge distillation".

An arm is a method: "plain", "kd", "fitnets" or "fsp". All lengths are steps (the paper's iterations), times ``scale``.
"""

import copy

import torch
from torch import Tensor, nn

from kdcore import losses, methods, metrics
from kdcore.papers import images
from kdcore.papers.images import IMAGE_METRICS, ImageTrial, piecewise, spread
from kdcore.training import Context, Run, Stage

VERSION = 1
METRICS = IMAGE_METRICS | {
    "ensemble_test_error_percent": "% of the test images, by the mean of the nets' probabilities",
    "ensemble_test_accuracy_percent": "100 minus ensemble_test_error_percent",
    "fsp_distance_after_stage_1": "eq. 2 with all lambda = 1, on test images, at the end of the first stage",
    "fsp_matrices": "dict: the mean FSP matrices of teacher and student at four moments, for the figure",
}
SECTIONS = ("group1", "group2", "group3")
PAIRS = [(f"{section}.first", section) for section in SECTIONS]  # the first and the last layer of each section
MATRICES = ("teacher", "student before", "student after stage 1", "student at the end")
WATCHED = 500  # test images on which the FSP matrices are computed


class Trial(ImageTrial):
    ending = ""  # suffix of the names of its stages, if several nets train in one trial

    def make_student(self) -> nn.Module:
        return self.network(self.config["network"], self.config["init"])

    def make_method(self) -> methods.Method:
        config, student, teacher = self.config, self.student, self.teacher
        if config["method"] == "kd":  # the control: FitNets' second stage alone
            return methods.labels_and_soft_targets(student, teacher, temperature=config["temperature"])
        if config["method"] == "fitnets":
            hint = config["hint"]
            return methods.fitnets(student, teacher, hint=hint, guided=hint, temperature=config["temperature"], weight=1.0)
        if config["method"] == "fsp":
            return methods.fsp(student, teacher, pairs=PAIRS, weights=[config["fsp_weight"]] * len(PAIRS))
        return methods.plain(student)

    def make_stages(self) -> list[Stage]:
        self.targets = self.sections(self.teacher) if self.config["method"] == "fsp" else []
        self.before = self.matrices(self.student) if self.config["keep_matrices"] else None
        return super().make_stages()

    def recipe(self, stage: Stage) -> dict:
        """The schedule of ``train`` for the last stage, that of ``pretrain`` for a first one."""
        config, last, shown = self.config, stage is self.method.stages[-1], len(self.test_labels)
        lengths = config["train"] if last else config["pretrain"]
        rate, steps = piecewise(lengths["lr"], lengths["until"], config["scale"])

        def schedule(step: int) -> dict[str, float]:
            start, end = config["soft_weight"]
            return rate(step) | {"soft_weight": start + (end - start) * step / steps}

        return {
            "name": stage.name + self.ending,
            "schedule": schedule if stage.knobs else rate,
            "steps": steps,
            "optimiser": {"momentum": config["momentum"], "weight_decay": config["weight_decay"]},
            "watch": self.evaluate if last or not config["keep_matrices"] else self.evaluate_with_matrices,
            "measured": (shown + (len(spread(shown, WATCHED)) if self.targets else 0), 0),
        }

    def watch(self) -> dict:
        """For FSP, the loss of the first stage (eq. 2 with all lambda = 1) on test images."""
        if not self.targets:
            return {}
        pairs = zip(self.sections(self.student), self.targets, strict=True)
        return {"fsp_distance": sum((own - target).square().sum((1, 2)).mean() for own, target in pairs)}

    def evaluate_with_matrices(self) -> dict:
        return self.evaluate() | {"fsp_matrices": self.matrices(self.student)}

    def extras(self, history: list[dict]) -> dict:
        if self.config["method"] != "fsp":
            return {}
        end = [row for row in history if row["stage"] == "fsp" + self.ending][-1]
        measures = {"fsp_distance_after_stage_1": end["fsp_distance"]}
        if self.config["keep_matrices"]:
            kept = (self.matrices(self.teacher), self.before, end["fsp_matrices"], self.matrices(self.student))
            measures["fsp_matrices"] = dict(zip(MATRICES, kept, strict=True))
            for row in history:
                row.pop("fsp_matrices", None)
        return measures

    def sections(self, net: nn.Module) -> list[Tensor]:
        """FSP matrices [N, C1, C2] of the three sections on test images of every class."""
        numbers = spread(len(self.test_labels), WATCHED, self.context.device)
        net.eval()
        with torch.no_grad():
            _, taps = net.features(self.test_views(self.test_views.plain(numbers)))
            return [losses.fsp_matrix(taps[first], taps[last]) for first, last in PAIRS]

    def matrices(self, net: nn.Module) -> list:
        """The mean FSP matrix of each section, rounded to three digits for the figure."""
        return [[[float(f"{value:.3g}") for value in row] for row in matrix.mean(0).tolist()] for matrix in self.sections(net)]


def prepare(trials: list, context: Context, teacher_weights: dict[str, Tensor] | None) -> Run:
    """A list of ``init`` trains one net for each, one after another: metrics are their means, and those of their ensemble."""
    (trial,) = trials
    first = Trial(trial.config, context, teacher_weights)
    if not isinstance(trial.config["init"], list):
        return first.run()
    members, runs = [copy.copy(first) for _ in trial.config["init"]], []
    for number, (member, init) in enumerate(zip(members, trial.config["init"], strict=True), 1):
        member.config, member.ending = trial.config | {"init": init}, f", net {number}"
        runs.append(member.run())

    def finish(history: list[dict]) -> list[dict]:
        results = [member.finish([row for row in history if row["stage"].endswith(member.ending)]) for member in members]
        return [{"history": history, "metrics": _together(members, [result["metrics"] for (result,) in results])}]

    return Run(finish, nn.ModuleList(run.model for run in runs), [stage for run in runs for stage in run.stages])


def _together(members: list[Trial], measures: list[dict]) -> dict:
    """Means of the nets' metrics, and the error of their ensemble (mean of probabilities)."""
    probabilities = sum(member.logits(member.student, member.test_views).softmax(-1) for member in members)
    error = 100 * metrics.wrong(probabilities, members[0].test_labels).double().mean().item()
    means = {name: sum(each[name] for each in measures) / len(measures) for name in measures[0]}
    return means | {"ensemble_test_error_percent": error, "ensemble_test_accuracy_percent": 100 - error}


def work(config: dict) -> float:
    steps = sum(lengths["until"][-1] for lengths in (config["pretrain"], config["train"]) if lengths)
    nets = len(config["init"]) if isinstance(config["init"], list) else 1
    return images.work(config, config["scale"] * steps * config["batch_size"] * nets)
