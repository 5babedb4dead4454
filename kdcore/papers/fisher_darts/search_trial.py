"""A trial that searches for an architecture; its result is the genotype."""

import torch
from torch import Tensor, nn

from kdcore import metrics, models
from kdcore.models.darts import MixedDarts
from kdcore.papers.fisher_darts.rates import rates
from kdcore.papers.fisher_darts.search import Search
from kdcore.papers.images import ImageTrial, cadence, parts
from kdcore.training import Stage, seed_of


class SearchTrial(ImageTrial):
    """An architecture search: weights are trained on one half of the training set, the architecture on the other."""

    def make_student(self) -> nn.Module:
        asked = self.config["search"]
        return MixedDarts(asked["cells"], asked["channels"], classes=self.classes).reset(seed_of(self.context.seed, "net"))

    def make_method(self) -> Search:
        asked = self.config["search"]
        return Search(self.student, asked["order"], lr=asked["lr"], betas=asked["betas"], weight_decay=asked["weight_decay"])

    def make_stages(self) -> list[Stage]:
        config, search = self.config, self.method
        order = torch.randperm(len(self.train_labels), generator=torch.Generator().manual_seed(seed_of(self.context.seed, "halves")))
        halves = order[: len(order) // 2 * 2].view(2, -1)
        self.held_out = halves[1].to(self.context.device)

        def batch(index: Tensor) -> tuple:
            return tuple((self.views(part), self.train_labels[part[:, 0]]) for part in index)

        def schedule(epoch: int) -> dict[str, float]:
            lr = rates(config, epoch)["lr"]
            return {"lr": lr, "rate": lr}

        size = min(config["batch_size"], len(self.held_out))
        shown = config["epochs"] * (len(self.held_out) // size) * size  # of each half
        stage = Stage(
            "search",
            search.loss,
            list(self.student.parameters()),
            {"rate": search.rate},
            epochs=config["epochs"],
            indices=lambda generator: torch.stack([self.indices(generator, half) for half in halves], 1),
            batch=batch,
            schedule=schedule,
            optimiser={"momentum": config["momentum"], "weight_decay": config["weight_decay"]},
            clip=config["clip"],
            # each step updates the weights and the architecture, each on its half
            measured=cadence(config["epochs"], (2 * 3 * shown, 0), (len(self.held_out), 0), config["evaluate_every"]),
        )
        return [stage]

    def evaluate(self) -> dict[str, Tensor]:
        """Error on the architecture's half of the training images, without augmentation, in percent."""
        missed = [metrics.wrong(self.student(self.views(self.views.plain(part))), self.train_labels[part]) for part in parts(self.held_out)]
        return {"held_out_error_percent": 100 * torch.cat(missed).double().mean()}

    def measure(self, net: nn.Module, history: list[dict], top: int | None = None) -> dict:
        return {
            "test_error_percent": self.test_error(net)["test_error_percent"].item(),
            "parameters": models.count_parameters(net),
            "genotype": {kind: [list(edge) for edge in edges] for kind, edges in net.genotype()._asdict().items()},
        }
