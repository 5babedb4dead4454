"""Whettam 2020, "Finding the right teacher for a difficult student".

An arm is a method: "plain" (labels alone), "attention" (attention transfer from a teacher) or "search" (DARTS). An arm with
``grow`` first grows its network, from the weights of its "teacher" if it has one, then trains it from scratch.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from kdcore import data, losses, methods, models
from kdcore.models.darts import Darts, MixedDarts, auxiliary_head
from kdcore.papers import images
from kdcore.papers.fisher_darts import growing, maps
from kdcore.papers.fisher_darts.rates import rates
from kdcore.papers.fisher_darts.search_trial import SearchTrial
from kdcore.papers.images import IMAGE_METRICS, ImageTrial
from kdcore.teacher import freeze
from kdcore.training import Context, Run, Stage, seed_of

VERSION = 1
METRICS = IMAGE_METRICS | {
    "top5_error_percent": "% of the test images whose label is not among the five largest logits",
    "parameters": "of the network without its auxiliary head",
    "published_parameters": "with the auxiliary head, as papers on DARTS count",
    "map_similarity": "mean cosine between the attention maps of student and teacher, on test images",
    "maps": "list: attention maps of some test images, for the figure",
    "growth": "dict: each step of the growth of a teacher, for the figure",
    "genotype": "dict: the cells that a search found",
}
CALIBRATED = 30  # batches that give an untrained teacher its BatchNorm statistics


class Trial(ImageTrial):
    def __init__(self, config: Mapping, context: Context, teacher_weights: Mapping[str, Tensor] | None = None):
        weights = dict(teacher_weights or {})
        groups = weights.pop("groups", None)  # of a DARTS teacher's cells, which may have grown
        self.teacher_options = {} if groups is None else {"groups": groups.tolist()}
        super().__init__(config, context, weights or None)

    def make_student(self) -> nn.Module:
        config, options, self.growth = self.config, {}, {}
        if config["grow"] is not None:
            options["groups"], self.growth["growth"] = self.grow()
        if config["auxiliary_weight"]:
            options["auxiliary"] = True
        net = self.network(config["network"], **options)
        if isinstance(net, Darts) and not config["drop_path"]:
            net.drop_path = None
        return net

    def grow(self) -> tuple[list[int], dict[str, list[dict]]]:
        """Grow the network: the final groups of each cell, and the path of growth for the record.

        Runs on the CPU, so that a resumed run on another device grows the same network.
        """
        config, seed = self.config, self.context.seed
        torch.manual_seed(seed_of(seed, "growth noise"))  # drop path
        draws = torch.Generator().manual_seed(seed_of(seed, "growth"))

        def start() -> Darts:
            net = models.create(config["network"], self.classes).reset(seed_of(seed, "net"))
            if self.teacher_weights is not None:
                net.load_state_dict(self.teacher_weights)
            net.train().drop_path.fill_(config["drop_path"])
            return net

        def per_case(net: Darts) -> Tensor:
            cases = torch.randint(len(self.train_labels), (config["grow_batch"],), generator=draws)
            index = self.views.draw(cases, draws).to(self.context.device)
            return losses.cross_entropy(net(self.views(index).cpu()), self.train_labels[index[:, 0]].cpu(), reduction="none")

        asked = None if self.context.rehearsal else per_case
        return growing.grow(config["grow"], start, asked, target=config["grow_target"], generator=draws, variant=config["variant"])

    def make_teacher(self) -> nn.Module | None:
        """The frozen teacher with the groups that it grew and its trained weights, or random ones if it is ``untrained``.

        ``untrained`` is false, true (with BatchNorm's initial statistics, 0 and 1) or "calibrated" (with statistics of the data).
        """
        config, seed = self.config, self.context.seed
        if config["method"] != "attention":
            return None
        if not config["untrained"]:
            return self.frozen(config["teacher_network"], self.teacher_weights, **self.teacher_options)
        net = models.create(config["teacher_network"], self.classes, **self.teacher_options).reset(seed_of(seed, "untrained"))
        net = self.placed(net)
        if config["untrained"] == "calibrated":
            draws = torch.Generator().manual_seed(seed_of(seed, "calibration"))
            calibrate(net, (self.views(index) for index in self.indices(draws)[:CALIBRATED].to(self.context.device)))
        return freeze(net)

    def make_method(self) -> methods.Method:
        config, task = self.config, methods.hard_labels()
        if config["auxiliary_weight"]:
            task.append((config["auxiliary_weight"], _auxiliary))
        if self.teacher is None:
            return methods.plain(self.student, task=task)
        taps = list(zip(maps.attended(self.student), maps.attended(self.teacher), strict=True))
        return methods.attention_transfer(self.student, self.teacher, taps=taps, beta=config["beta"], task=task)

    def recipe(self, stage: Stage) -> dict:
        config = self.config
        knobs = {"drop_path": self.student.drop_path} if isinstance(self.student, Darts) and config["drop_path"] else {}
        return {
            "schedule": lambda epoch: {key: value for key, value in rates(config, epoch).items() if key == "lr" or key in knobs},
            "knobs": knobs,
            "epochs": config["epochs"],
            "every": config["evaluate_every"],
            "optimiser": {"momentum": config["momentum"], "weight_decay": config["weight_decay"]},
            "clip": config["clip"],
        }

    def measure(self, net: nn.Module, history: list[dict], top: int | None = 5) -> dict:
        return super().measure(net, history, top)

    def extras(self, history: list[dict]) -> dict:
        net = self.student
        measures = {"parameters": models.count_parameters(net)} | self.growth
        if isinstance(net, Darts):
            measures["published_parameters"] = measures["parameters"] + (_head_size(net) if net.auxiliary is None else 0)
        if self.teacher is not None:
            measures["map_similarity"] = maps.similarity(net, self.teacher, self.test_views)
        if self.config["keep_maps"]:
            measures["maps"] = maps.shown(net, self.test_views, data.load(self.config["data"]).test_images)
        return measures

    def handed_on(self) -> dict[str, Tensor]:
        groups = {"groups": torch.tensor(self.student.groups)} if isinstance(self.student, Darts) else {}
        return super().handed_on() | groups


def prepare(trials: list, context: Context, teacher_weights: dict[str, Tensor] | None) -> Run:
    return (SearchTrial if trials[0].config["method"] == "search" else Trial).prepare(trials, context, teacher_weights)


def work(config: dict) -> float:
    shown = config["epochs"] * images.count_of(config)
    if config["method"] != "search":
        return images.work(config, shown)
    with torch.device("meta"):
        net = MixedDarts(config["search"]["cells"], config["search"]["channels"])
    return shown * images.PLACES * models.count_parameters(net)


@torch.no_grad()
def calibrate(net: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the BatchNorm statistics of a network to their mean over these batches [B, 3, H, W]; its weights do not change.

    The author's untrained teacher has statistics of the data, since each step of its growth passes a batch through it in train
    mode. Its attention maps are then flatter than with the initial 0 and 1.
    """
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
    net.train()
    for x in batches:
        net(x)
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum


def _auxiliary(batch: methods.Batch) -> Tensor:
    return losses.cross_entropy(batch.taps["auxiliary"], batch.labels)


def _head_size(net: Darts) -> int:
    with torch.device("meta"):
        return models.count_parameters(auxiliary_head(net.taps[f"cell{net.head_at}"].channels, net.linear.out_features))
