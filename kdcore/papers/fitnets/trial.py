"""Romero et al. 2015, "FitNets: Hints for Thin Deep Nets".

An arm is a method: "plain" (labels alone), "kd" (labels and soft targets) or "fitnets" (hints first, then as "kd"). The
hint stage may run twice: on part of the training set until the hint loss on the rest stops falling ("hint search"), then,
from the same initial weights, on the whole set for the best number of epochs.
"""

import time
from functools import partial
from statistics import median

import torch
from torch import Tensor, nn

from kdcore import methods
from kdcore.data.augment import Views
from kdcore.models.maxout import Layer, MaxoutConv, uniform
from kdcore.papers import images
from kdcore.papers.fitnets.schedule import ramp
from kdcore.papers.images import IMAGE_METRICS, ImageTrial, parts, spread
from kdcore.teacher import LogitTable
from kdcore.training import Stage, Step, seed_of

VERSION = 1
METRICS = IMAGE_METRICS | {
    "parameters": "weights without biases, as counted in the paper",
    "multiply_adds": "for one image",
    "hint_epochs": "epochs of the hint stage",
    "speed_up": "time of the teacher's forward pass divided by the student's, on this machine",
}
SEARCH, HELD_OUT = "hint search", "held_out_hint_loss"
# pylearn2's RMSProp: decay 0.9, no gradient is scaled up by more than 1e5
RULES = {"sgd": (torch.optim.SGD, {}), "rmsprop": (torch.optim.RMSprop, {"alpha": 0.9, "eps": 1e-5})}
REGRESSOR_RANGE, REGRESSOR_LIMIT = 0.05, 0.9
WATCHED = 1000  # test images on which the hint loss is measured
TIMED_BATCH, TIMED_ROUNDS = 32, 7


class Trial(ImageTrial):
    def make_student(self) -> nn.Module:
        return self.network(self.config["network"], **{key: self.config[key] for key in ("irange", "input_dropout", "hidden_dropout")})

    def make_method(self) -> methods.Method:
        """The arm's method; "kd" is FitNets without its first stage."""
        config, student, teacher = self.config, self.student, self.teacher
        if config["method"] == "plain":
            return methods.plain(student)
        softened = {"temperature": config["temperature"], "variant": config["variant"]}
        if config["method"] == "kd":
            return methods.labels_and_soft_targets(student, teacher, **softened)
        hint, guided = config["hint"]
        return methods.fitnets(student, teacher, hint=hint, guided=guided, regressor=self.regressor(hint, guided), weight=1.0, **softened)

    def regressor(self, hint: str, guided: str) -> MaxoutConv:
        """A maxout convolution like the teacher's layer, from the guided layer's maps to the hint's."""
        own, target = self.student.taps[guided], self.teacher.taps[hint]
        pieces = self.teacher.convs[int(hint.removeprefix("conv")) - 1].layer.pieces
        regressor = MaxoutConv(own.channels, Layer(target.channels, own.size - target.size + 1, 0, pieces=pieces, limit=REGRESSOR_LIMIT))
        uniform(regressor, REGRESSOR_RANGE, torch.Generator().manual_seed(seed_of(self.context.seed, "regressor")))
        return regressor

    def make_stages(self) -> list[Stage]:
        *first, last = self.method.stages
        return [*(self.hint_stages(*first) if first else ()), self.stage(last, table=self.table(), **self.recipe(last))]

    def hint_stages(self, first: Stage) -> list[Stage]:
        """The hint stage, preceded by the search for its length if images are held out."""
        tested, holdout = spread(len(self.test_labels), WATCHED), self.config["holdout"]
        hint = partial(self.stage, first, measured=(len(tested), len(tested)), **self.recipe(first))
        watch = partial(self.hint_loss, "test_hint_loss", self.test_views, self.test_labels, tested)
        if not holdout:
            return [hint(watch=watch)]
        order = torch.randperm(len(self.train_labels), generator=torch.Generator().manual_seed(seed_of(self.context.seed, "holdout")))
        initial = {key: value.clone() for key, value in self.method.state_dict().items()}

        def start_anew(step: Step, epoch: int) -> None:
            if epoch == 0:
                self.method.load_state_dict(initial)

        search = partial(self.hint_loss, HELD_OUT, self.views, self.train_labels, order[:holdout])
        return [
            hint(name=SEARCH, cases=order[holdout:], watch=search, stop=partial(_stale, self.config["patience"])),
            hint(before_epoch=start_anew, watch=watch, stop=_as_long),
        ]

    def recipe(self, stage: Stage) -> dict:
        """The arm's optimiser, a separate learning rate for convolutions, and norm limits."""
        config = self.config
        epochs = config["epochs" if stage is self.method.stages[-1] else "hint_epochs"]
        rule, settings = RULES[config["rule"]]
        moving = ("lr", "momentum") if config["rule"] == "sgd" else ("lr",)
        convolutions = {id(parameter) for parameter in self.student.convs.parameters()}

        def schedule(epoch: int) -> dict[str, float]:
            return {key: ramp(config[key], epoch / epochs) for key in (*moving, *stage.knobs)}

        def limit_norms() -> None:
            for net in (self.student, *self.method.connectors):
                net.limit_norms()

        return {
            "schedule": schedule,
            "epochs": epochs,
            "rule": rule,
            "optimiser": settings | ({"momentum": ramp(config["momentum"], 0)} if "momentum" in moving else {}),
            "rate_factors": [config["conv_rate"] if id(parameter) in convolutions else 1.0 for parameter in stage.parameters],
            "after_step": limit_norms,
        }

    def table(self) -> LogitTable | None:
        """A table of the teacher's logits, if an image has fewer views than there are epochs. A rehearsal uses the teacher itself."""
        if self.teacher is None or self.context.rehearsal or self.views.count >= self.config["epochs"]:
            return None
        table = LogitTable(self.teacher, self.views, self.classes)
        table.fill()  # at once: a logit's last bits depend on the batch in which it was computed
        return table

    def hint_loss(self, name: str, views: Views, labels: Tensor, cases: Tensor) -> dict[str, Tensor]:
        """For the history: the mean hint loss over some images, without augmentation."""
        loss, total = self.method.stages[0].loss, 0.0
        for part in parts(cases.to(labels.device)):
            total = total + len(part) * loss(views(views.plain(part)), labels[part]).double()
        return {name: total / len(cases)}

    def extras(self, history: list[dict]) -> dict:
        student = self.student
        measures = {
            "parameters": sum(parameter.numel() for parameter in student.parameters() if parameter.dim() > 1),  # no biases
            "multiply_adds": student.multiply_adds,
        }
        if self.config["method"] == "fitnets":
            measures["hint_epochs"] = sum(row["stage"] == "hint" for row in history)
        if self.config["time_nets"]:
            measures["speed_up"] = self.speed_up()
        return measures

    @torch.no_grad()
    def speed_up(self) -> float:
        """How many times faster the student computes the logits of a batch than the teacher: the median ratio over alternating rounds."""
        first = torch.arange(min(TIMED_BATCH, len(self.test_labels)), device=self.context.device)
        x = self.test_views(self.test_views.plain(first))

        def seconds(net: nn.Module) -> float:
            start = time.perf_counter()
            net(x).sum().item()  # waits for the device
            return time.perf_counter() - start

        ratios = [seconds(self.teacher) / seconds(self.student) for _ in range(TIMED_ROUNDS + 1)]
        return median(ratios[1:])  # the first round pays for allocation


prepare = Trial.prepare


def _best_epoch(history: list[dict]) -> int:
    """The epoch of the search, from 1, with the lowest held-out loss."""
    losses = [row[HELD_OUT] for row in history if row["stage"] == SEARCH]
    return 1 + losses.index(min(losses))


def _stale(patience: int, history: list[dict]) -> bool:
    """Whether ``patience`` epochs of the search have passed without a lower held-out loss."""
    return sum(row["stage"] == SEARCH for row in history) - _best_epoch(history) >= patience


def _as_long(history: list[dict]) -> bool:
    """Whether the hint stage has run for the number of epochs that the search found best."""
    return sum(row["stage"] == "hint" for row in history) >= _best_epoch(history)


def work(config: dict) -> float:
    passes = config["epochs"] + (config["hint_epochs"] if config["hint"] else 0)
    return images.work(config, passes * images.count_of(config))
