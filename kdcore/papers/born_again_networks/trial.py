"""Furlanello et al. 2018, "Born-Again Neural Networks".

A trial trains one generation: a new network of the teacher's architecture, with its own initial weights and batch order
(``init``). A teacher hands on its weights and the test logits of all generations so far, so that the error of an ensemble of
generations is a metric of the last one. Lengths are epochs over the training cases, times ``scale``.

The exception is Kimura's re-implementation (github.com/nocotan/born_again_neuralnet, and his slides of 2018) "as coded": its
generations are one network that is never reinitialised, and so form one trial.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from kdcore import losses, methods, metrics
from kdcore.methods import Method
from kdcore.papers import images
from kdcore.papers.born_again_networks.generations import Chosen, ensembles
from kdcore.papers.born_again_networks.importance import importance
from kdcore.papers.images import IMAGE_METRICS, ImageTrial, parts, piecewise, spread
from kdcore.teacher import LogitTable
from kdcore.training import Context, Stage, seed_of

VERSION = 1
METRICS = (
    IMAGE_METRICS
    | {
        "best_generation_test_error_percent": "% of the test images: the best generation so far, including the teacher",
        "importance": "dict: weights of the training cases by the teacher's confidence, for the figure",
    }
    | {f"ensemble_{k}_test_error_percent": f"% of the test images: ensemble of the last {k} generations" for k in (2, 3, 4)}
    | {f"ensemble_{k}_test_accuracy_percent": f"100 minus ensemble_{k}_test_error_percent" for k in (2, 3, 4)}
    | {f"generation_{g}_test_error_percent": f"% of the test images: generation {g} of a trial of several" for g in (1, 2)}
    | {f"generation_{g}_test_accuracy_percent": f"100 minus generation_{g}_test_error_percent" for g in (1, 2)}
    | {
        "generation_2_ensemble_2_test_error_percent": "% of the test images: ensemble of generations 1 and 2 of such a trial",
        "generation_2_ensemble_2_test_accuracy_percent": "100 minus generation_2_ensemble_2_test_error_percent",
    }
)
LOGITS = "generations.test_logits"  # [generations, N, C], beside a teacher's weights
RULES = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
WATCHED = 500  # training and test images on which gradients and divergences are measured


class Trial(ImageTrial):
    def __init__(self, config: Mapping, context: Context, teacher_weights: Mapping[str, Tensor] | None = None):
        weights = dict(teacher_weights or {})
        self.earlier = weights.pop(LOGITS, None)
        super().__init__(config, context, weights or None)

    def make_student(self) -> nn.Module:
        options = {key: self.config[key] for key in ("dropout", "recompute") if self.config[key]}
        return self.network(self.config["network"], self.config["init"], **options)

    def make_teacher(self) -> nn.Module | None:
        """The previous generation, without dropout; the student itself if all generations are one object."""
        if self.config["same_object"]:
            return self.student
        return None if self.config["teacher"] is None else self.frozen(self.config["network"], self.teacher_weights)

    def make_method(self) -> Method:
        config = self.config
        make = {
            "labels": methods.plain,
            "BAN": methods.ban,
            "BAN+L": partial(methods.ban, label_weight=1.0),
            "CWTM": methods.cwtm,
            "DKPP": methods.dkpp,
            "DKPP, fixed": methods.ban,  # given permuted logits
            "KD": partial(methods.kd, temperature=config["temperature"], soft_weight=config["soft_weight"]),
        }[config["objective"]]
        method = self.as_coded() if config["same_object"] else make(self.student, self.teacher)
        if config["chosen_on"]:  # part of the method, and so of its checkpoint
            method.chosen = Chosen(self.student, config["generations"], len(self.test_labels), self.classes)
        return method

    def as_coded(self) -> Method:
        """KD with teacher and student as one object; two knobs weight its terms, since the first generation learns from labels alone."""
        terms = [term for _, term in methods.soft_targets(self.config["temperature"], self.config["soft_weight"])]
        knobs = {name: torch.zeros((), device=self.context.device) for name in ("hard_weight", "soft_weight")}
        weighted = list(zip(knobs.values(), terms, strict=True))
        return Method(self.student, [methods.stage("train", self.student, self.student, weighted, knobs=knobs, live_teacher=True)])

    def make_stages(self) -> list[Stage]:
        config, context = self.config, self.context
        count = len(self.train_labels)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed_of(context.seed, "holdout")))
        held = round(config["holdout"] * count)
        # numbers of the training cases to train on, and of those held out to choose the epoch
        self.seen, self.held_out = order[held:].sort().values, order[:held].to(context.device)
        self.importance = {}
        if config["objective"] == "CWTM" and not context.rehearsal:  # for the initial student
            said = self.logits(self.student, self.views), self.logits(self.teacher, self.views)
            self.importance = {"importance": importance(*said, self.train_labels)}
        self.show()
        return super().make_stages()

    def show(self) -> None:
        """Choose the images on which student and teacher are compared, and compute a fixed teacher's logits once."""
        if self.teacher is None:
            return
        tests, trains = (spread(len(labels), WATCHED, self.context.device) for labels in (self.test_labels, self.train_labels))
        self.test_x, self.train_x = self.test_views(self.test_views.plain(tests)), self.views(self.views.plain(trains))
        self.train_y = self.train_labels[trains]
        if not self.config["same_object"]:
            with torch.no_grad():
                self.test_targets, self.train_targets = self.teacher(self.test_x), self.teacher(self.train_x)

    def recipe(self, stage: Stage) -> dict:
        """An epoch is a pass over the training cases, or ``every`` steps if that is set; all ``generations`` follow one another in
        one stage, with one optimiser."""
        config = self.config
        steps = len(self.seen) // config["batch_size"]  # per pass
        self.every = min(config["every"] or steps, steps)
        rate, passes = piecewise(config["rates"]["lr"], config["rates"]["until"], config["scale"])
        self.epochs = passes * steps // self.every  # per generation

        def schedule(epoch: int) -> dict[str, float]:
            values = rate(epoch % self.epochs * self.every // steps)
            if stage.knobs:
                soft = 0.0 if epoch < self.epochs else config["soft_weight"]
                values |= {"hard_weight": 1 - soft, "soft_weight": soft}
            return values

        momentum = {key: config[key] for key in ("momentum", "nesterov") if config["rule"] == "sgd"}
        watched = (len(self.test_x) if self.teacher is not None else 0) + (len(self.train_x) if config["objective"] == "BAN" else 0)
        return {
            "schedule": schedule,
            "epochs": self.epochs * config["generations"],
            "rule": RULES[config["rule"]],
            "optimiser": momentum | {"weight_decay": config["weight_decay"]},
            "table": self.table(),
            "cases": self.seen,
            "batches": self.batches,
            # if the epoch with the lowest loss is chosen, every epoch is a candidate, whatever the cost: this is the protocol
            "measured": (0 if config["chosen_on"] else len(self.test_labels) + watched, 0),
        }

    def batches(self, generator: torch.Generator) -> Tensor:
        """``indices`` with a generation's own seed, so that its batch order is its own, too."""
        own = torch.Generator().manual_seed(seed_of(self.config["init"], generator.initial_seed()))
        return self.indices(own, self.seen)[: self.every]

    def table(self) -> Callable[[Tensor, Tensor], Tensor] | None:
        """What replaces the teacher: its logits under fixed permutations, or a table if an image has a single view."""
        if self.teacher is None or self.config["same_object"]:
            return None
        if self.config["objective"] == "DKPP, fixed":
            generator = torch.Generator().manual_seed(seed_of(self.context.seed, "permutations"))
            draws = torch.rand(len(self.train_labels), self.classes, generator=generator).to(self.context.device)

            def permuted(index: Tensor, x: Tensor) -> Tensor:
                with torch.no_grad():
                    return losses.permuted_predictions(self.teacher(x), draws[index[:, 0]])

            return permuted
        if self.views.count > 1 or self.context.rehearsal:
            return None
        table = LogitTable(self.teacher, self.views, self.classes)
        table.fill()
        return table

    def watch(self) -> dict:
        """The divergence of the student's test predictions from its teacher's, and the parts of BAN's gradient."""
        if self.teacher is None:
            return {}
        targets = self.teacher(self.test_x) if self.config["same_object"] else self.test_targets
        row = {"divergence_from_teacher": losses.kd(self.student(self.test_x), targets, 1.0)}
        if self.config["objective"] == "BAN":
            row |= metrics.gradient_parts(self.student(self.train_x), self.train_targets, self.train_y)
        return row

    def evaluate(self) -> dict:
        """Measures for the history. If a generation's epoch with the lowest loss is chosen, also tracks it, and restores it at the
        generation's end."""
        if not self.config["chosen_on"]:
            return super().evaluate()
        chosen = self.method.chosen
        if self.config["chosen_on"] == "test":
            row = self.watch() | self.drifting()
            chosen.offer(row["test_loss"])
        else:
            row = super().evaluate() | {"held_out_loss": self.held_out_loss()}
            chosen.offer(row["held_out_loss"])
        over, left = divmod(int(chosen.epochs), self.epochs)
        if not left:
            chosen.restore()
            chosen.logits[over - 1] = self.logits(self.student, self.test_views)
        return row

    def drifting(self) -> dict[str, Tensor]:
        """Loss and error on the test set as in Kimura's code: in train mode, so that each batch is normalised by its own statistics
        and the running statistics drift to the test set's. The loss is the mean over batches."""
        # CIFAR is sorted by class here, unlike as published: consecutive images would have the statistics of one class
        order = torch.Generator().manual_seed(seed_of(self.context.seed, "test order"))
        numbers = torch.randperm(len(self.test_labels), generator=order).to(self.context.device)
        values, missed = [], 0
        self.student.train()
        for part in numbers.split(self.config["batch_size"]):
            logits, labels = self.student(self.test_views(self.test_views.plain(part))), self.test_labels[part]
            values.append(losses.cross_entropy(logits, labels))
            missed = missed + metrics.wrong(logits, labels).sum()
        self.student.eval()
        return {"test_loss": torch.stack(values).mean(), "test_error_percent": 100 * missed.double() / len(numbers)}

    def held_out_loss(self) -> Tensor:
        """Mean cross-entropy on the held-out training images, in eval mode."""
        values = [
            losses.cross_entropy(self.student(self.views(self.views.plain(part))), self.train_labels[part], reduction="none")
            for part in parts(self.held_out)
        ]
        return torch.cat(values).mean()

    def finish(self, history: list[dict]) -> list[dict]:
        chosen = self.config["chosen_on"]
        own = self.method.chosen.logits if chosen else self.logits(self.student, self.test_views).unsqueeze(0)
        self.generations = own if self.earlier is None else torch.cat([self.earlier.to(own.device), own])
        return super().finish(history)

    def extras(self, history: list[dict]) -> dict:
        together = ensembles(self.generations, self.config["generations"], self.test_labels, self.config["ensemble_of"])
        return together | self.importance

    def handed_on(self) -> dict[str, Tensor]:
        return super().handed_on() | {LOGITS: self.generations.cpu()}


prepare = Trial.prepare


def work(config: dict) -> float:
    passes = config["scale"] * config["rates"]["until"][-1] * config["generations"]
    return images.work(config, passes * images.count_of(config))
