"""Heo, Lee, Yun & Choi 2019, "Knowledge transfer via distillation of activation boundaries".

An arm is a method, a number of epochs for each stage ("20+100"), a share of the training set and a pair of nets; or the toy
experiment: nets with two inputs, whose boundaries can be drawn.
"""

import copy

import torch
from torch import Tensor, nn

from kdcore import methods
from kdcore.papers import images
from kdcore.papers.activation_boundaries import toy
from kdcore.papers.activation_boundaries.toy import other_side
from kdcore.papers.images import IMAGE_METRICS, ImageTrial, spread
from kdcore.training import Context, Run, Stage, Step

VERSION = 1
METRICS = (
    IMAGE_METRICS
    | {
        "size_ratio_percent": "parameters of the student, as % of the teacher's",
        "teacher_error_percent": "% of the test images, for the teacher that did not drift",
        "drifted_teacher_error_percent": "% of the test images, for the teacher after stage 1, whose BatchNorm statistics have drifted",
        "mse_other_side_percent": "% of the toy's neurons and points on the opposite side to the teacher's, trained by squared error",
        "mse_other_decision_percent": "% of the toy's points classified otherwise than by the teacher, trained by squared error",
        "boundary_other_side_percent": "as mse_other_side_percent, trained by boundary transfer",
        "boundary_other_decision_percent": "as mse_other_decision_percent, trained by boundary transfer",
        "toy": "dict: weights and biases of the toy's nets, for the figure",
    }
    | {
        f"layer{layer}_same_side_{moment}": f"% of the neurons of layer {layer} on the teacher's side, on test images, {when}"
        for layer in (1, 2, 3)
        for moment, when in (("epoch_1", "after the first epoch"), ("stage_1", "after stage 1"), ("end", "at the end"))
    }
)
GROUPS = ("group1", "group2", "group3")
BOUNDARIES = [f"{group}.pre" for group in GROUPS]  # after BatchNorm, before the ReLU
WATCHED = 200  # test images on which the sides of the boundaries are measured


class Trial(ImageTrial):
    def make_student(self) -> nn.Module:
        return self.network(self.config["network"], self.config["init"])

    def make_method(self) -> methods.Method:
        config, student, teacher = self.config, self.student, self.teacher
        if config["method"] == "none":
            return methods.plain(student)
        temperature = config["temperature"]
        scale = 1.0 if config["square_temperature"] else temperature**-2
        task = [(scale * weight, term) for weight, term in methods.soft_targets(temperature, config["soft_weight"])]
        match config["method"]:
            case "KD":
                return methods.plain(student, teacher, task=task)
            case "FITNET + KD":
                hint = config["hint"]
                return methods.fitnets(student, teacher, hint=hint, guided=hint, weight=config["hint_weight"], task=task)
            case "FSP + KD":
                pairs = [(f"{group}.first", group) for group in GROUPS]
                return methods.fsp(student, teacher, pairs=pairs, weights=[config["fsp_weight"]] * len(pairs), task=task)
            case "AT + KD":
                taps = [f"{group}.sum" for group in GROUPS]
                return methods.attention_transfer(student, teacher, taps=taps, beta=config["attention_weight"], task=task)
            case "Jacobian + KD":
                return methods.jacobian(student, teacher, weight=config["jacobian_weight"], task=task)
            case "AB + KD":
                # as in 4ac7d04 of the authors' program, the teacher of stage 2 is one that has not drifted; in earlier commits, and
                # from b3cbc9b on, it is the drifted one
                return methods.activation_boundary(
                    student,
                    copy.deepcopy(teacher) if config["teacher_mode"] == "train" else teacher,
                    taps=BOUNDARIES,
                    weights=config["boundary_weights"],
                    margin=config["margin"],
                    batch_statistics=config["teacher_mode"] != "eval",
                    task=task,
                    task_teacher=teacher,
                )
        raise ValueError(f"there is no method '{config['method']}'")

    def recipe(self, stage: Stage) -> dict:
        """Schedules of both stages; a method without a first stage spends all epochs on classification."""
        config, tests = self.config, len(self.test_labels)
        before, last = map(int, config["epochs"].split("+"))
        *first, classification = self.method.stages
        watched = len(spread(tests, WATCHED)) if self.corresponding() else 0
        if stage is classification:
            epochs = last if first else before + last
            drops, factor = _after([30, 60, 80], epochs), config["drop"]
            how = {"every": config["evaluate_every"], "measured": (tests + watched, watched), "first": watched > 0 and not first}
        else:
            epochs, drops, factor = before, _after([75], before), config["first_drop"]
            how = {"watch": self.watch, "measured": (watched, watched), "first": True}  # the sides after the first epoch are a metric

        def schedule(epoch: int) -> dict[str, float]:
            return {"lr": config["lr"] * factor ** sum(drop <= epoch for drop in drops)}

        def forget(step: Step, epoch: int) -> None:
            if epoch in drops:
                step.forget()

        return how | {
            "schedule": schedule,
            "epochs": epochs,
            "optimiser": {"momentum": config["momentum"], "weight_decay": config["weight_decay"], "nesterov": True},
            "before_epoch": forget if config["fresh_optimiser"] else None,
        }

    def corresponding(self) -> bool:
        """Whether each neuron of the student corresponds to one of the teacher: through the connectors of "AB + KD", in other
        methods if the widths agree."""
        if self.teacher is None:
            return False
        return self.config["method"] == "AB + KD" or all(self.student.taps[tap] == self.teacher.taps[tap] for tap in BOUNDARIES)

    def watch(self) -> dict[str, Tensor]:
        """Percentage of neurons on the teacher's side of their boundary, on test images, for each of ``BOUNDARIES``."""
        if not self.corresponding():
            return {}
        x = self.test_views(self.test_views.plain(spread(len(self.test_labels), WATCHED, self.context.device)))
        own, target = (net.features(x, until=BOUNDARIES)[1] for net in (self.student, self.teacher))
        connectors = self.method.connectors if self.config["method"] == "AB + KD" else [nn.Identity()] * len(BOUNDARIES)
        pairs = [(connector(own[tap]), target[tap]) for tap, connector in zip(BOUNDARIES, connectors, strict=True)]
        return {"same_side_percent": torch.stack([100 - other_side(student, teacher) for student, teacher in pairs])}

    def extras(self, history: list[dict]) -> dict:
        config, measures = self.config, _sides(history)
        if self.teacher is not None:
            small, large = (sum(parameter.numel() for parameter in net.parameters()) for net in (self.student, self.teacher))
            measures["size_ratio_percent"] = 100 * small / large
        if config["method"] == "AB + KD":
            if config["teacher_mode"] != "drifting":  # in which no teacher without drift is left
                measures["teacher_error_percent"] = self.test_error(self.teacher)["test_error_percent"].item()
            drifted = self.method.stages[0].loss.teacher
            measures["drifted_teacher_error_percent"] = self.test_error(drifted)["test_error_percent"].item()
        return measures


def prepare(trials: list, context: Context, teacher_weights: dict[str, Tensor] | None) -> Run:
    (trial,) = trials
    if trial.config["method"] == "toy":
        return toy.prepare(trial.config, context)
    return Trial(trial.config | {"share": trial.config["percent"] / 100}, context, teacher_weights).run()


def _after(shares: list[int], epochs: int) -> list[int]:
    """The epochs, from 0, that start once these percentages of all epochs are over, rounded up."""
    return [-(-share * epochs // 100) for share in shares]


def _sides(history: list[dict]) -> dict[str, float]:
    """The sides after the first epoch, at the end of the first stage and at the end, for each layer."""
    rows = [row for row in history if "same_side_percent" in row]
    if not rows:
        return {}
    before = [row for row in rows if row["stage"] == rows[0]["stage"]]
    moments = {"epoch_1": rows[0], "stage_1": before[-1], "end": rows[-1]}
    return {
        f"layer{layer}_same_side_{moment}": value
        for moment, row in moments.items()
        for layer, value in enumerate(row["same_side_percent"], 1)
    }


def work(config: dict) -> float:
    if config["method"] == "toy":
        return 1.0
    passes = sum(map(int, config["epochs"].split("+")))
    return images.work(config, passes * images.count_of(config) * config["percent"] / 100)
