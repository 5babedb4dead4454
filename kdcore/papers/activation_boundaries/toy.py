"""The toy experiment of Heo et al. 2019: nets with two inputs, whose boundaries can be drawn."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from kdcore import data, losses
from kdcore.models import MLP
from kdcore.training import Context, Run, Stage, seed_of

DIGITS = (0, 2, 4, 6)  # well separated in the plane of their first two principal components
TEACHER, STUDENT = (2, 24, 24, 4), (2, 8, 24, 4)
TAP = "hidden2.pre"
WEIGHT = 0.1  # of the boundary loss, a sum over neurons: with weight 1, some students diverge in the first steps
GRID = 101


def prepare(config: dict, context: Context) -> Run:
    """A teacher learns to classify points of a plane. Two students learn its second hidden layer, one from the mean squared error
    after the ReLU, one from the activation boundaries; then their last layer learns the labels."""
    points, labels = (tensor.to(context.device) for tensor in plane(config["data"]))
    seed = seed_of(context.seed, "toy")
    teacher = MLP(TEACHER).reset([seed_of(seed, "teacher")])
    nets = nn.ModuleDict({"teacher": teacher} | {name: MLP(STUDENT).reset([seed]) for name in ("mse", "boundary")}).to(context.device)

    def task(name: str, index: Tensor) -> Tensor:
        return losses.cross_entropy(nets[name](points[index]), labels[index])

    def transfer(name: str, index: Tensor) -> Tensor:
        with torch.no_grad():
            target = nets["teacher"].features(points[index])[1][TAP]
        own = nets[name].features(points[index])[1][TAP]
        return losses.hint(own.relu(), target.relu()) if name == "mse" else WEIGHT * losses.activation_boundary(own, target)

    def stage(name: str, loss: Callable[[Tensor], Tensor], parameters: list, epochs: int) -> Stage:
        count, size = len(points), config["batch_size"]
        return Stage(
            name,
            loss,
            parameters,
            epochs=epochs,
            indices=lambda generator: torch.randperm(count, generator=generator)[: count // size * size].view(-1, size),
            schedule=lambda epoch: {"lr": config["lr"] * (1 - epoch / epochs)},
            optimiser={"momentum": config["momentum"]},
        )

    before, last = map(int, config["epochs"].split("+"))
    stages = [stage("teacher", partial(task, "teacher"), list(nets["teacher"].parameters()), before)]
    for name in ("mse", "boundary"):
        net = nets[name]
        hidden, head = [*net.weights[:-1], *net.biases[:-1]], [net.weights[-1], net.biases[-1]]
        stages += [
            stage(name, partial(transfer, name), hidden, before),
            stage(f"{name}, labels", partial(task, name), head, last),
        ]
    return Run(lambda history: [{"history": history, "metrics": _compared(nets, points)}], nets, stages)


@torch.no_grad()
def _compared(nets: nn.ModuleDict, points: Tensor) -> dict:
    """The weights of the nets, and how much the students differ from the teacher on a grid over the plane."""
    grid = torch.stack(torch.meshgrid(*_axes(points.cpu()), indexing="xy"), -1).flatten(0, 1).to(points.device)
    layers = {name: zip(net.weights, net.biases, strict=True) for name, net in nets.items()}
    measures: dict = {"toy": {name: [[_rounded(w[0]), _rounded(b[0])] for w, b in pairs] for name, pairs in layers.items()}}
    target, target_taps = nets["teacher"].features(grid)
    for name in ("mse", "boundary"):
        logits, taps = nets[name].features(grid)
        measures[f"{name}_other_side_percent"] = other_side(taps[TAP], target_taps[TAP]).item()
        measures[f"{name}_other_decision_percent"] = 100 * (logits.argmax(1) != target.argmax(1)).double().mean().item()
    return measures


def other_side(student: Tensor, teacher: Tensor) -> Tensor:
    """Percentage of the neurons [B, ...] on the opposite side to the teacher's: the paper's original loss as a share."""
    return 100 * losses.activation_boundary_count(student, teacher) / teacher[0].numel()


def plane(name: str) -> tuple[Tensor, Tensor]:
    """Points [N, 2] and labels int64 [N]: images of four digits, projected on their first two principal components."""
    images = data.load(name)
    chosen = torch.isin(images.train_labels, torch.tensor(DIGITS))
    pixels = images.train_images[chosen].double().flatten(1) / 255
    pixels -= pixels.mean(0)
    axes = torch.linalg.svd(pixels, full_matrices=False)[2][:2]
    axes *= axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()  # fix the sign, which is arbitrary
    points = pixels @ axes.T
    return (points / points.std(0)).float(), torch.searchsorted(torch.tensor(DIGITS), images.train_labels[chosen])


def _axes(points: Tensor) -> list[Tensor]:
    """Coordinates of a grid over the plane, slightly larger than the range of the points."""
    return [torch.linspace(low - 0.3, high + 0.3, GRID) for low, high in zip(points.amin(0), points.amax(0), strict=True)]


def _rounded(values: Tensor) -> list | float:
    """Nested numbers, rounded to five digits for the figure."""
    return [_rounded(row) for row in values] if values.dim() else float(f"{values.item():.5g}")
