"""Bucila, Caruana & Niculescu-Mizil 2006, "Model compression".

A seed is a random split of a problem into training, hill-climbing and test cases. The teacher, the arm "PROBLEM: ensemble", fits
the library, selects the ensemble, generates pseudo data and labels them; it hands on the labelled cases. The nets that mimic it
train side by side as one stack, whatever their cases and widths.
"""

import time
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from kdcore.data import tabular
from kdcore.errors import KdcoreError
from kdcore.models import MLP, count_parameters
from kdcore.papers.model_compression import ensembles, munge
from kdcore.training import Context, Run, Stage, seed_of

VERSION = 1
METRICS = {
    "rmse": "of a mimic on the test cases, at the epoch with the lowest RMSE on the hill-climbing cases",
    "last_rmse": "of a mimic on the test cases, at the last epoch",
    "best_epoch": "of a mimic: the epoch with the lowest RMSE on the hill-climbing cases",
    "ratio": "the mimic's share of the ensemble's improvement over the best net; 1: as good as the ensemble",
    "ensemble_rmse": "of the ensemble on the test cases",
    "net_rmse": "on the test cases, of the library's net that is best on the hill-climbing cases",
    "single_rmse": "on the test cases, of the library's model that is best on the hill-climbing cases",
    "parameters": "of a mimic",
    "net_mb": "megabytes of a mimic's parameters, 4 bytes each",
    "net_seconds": "seconds for a mimic to predict 10,000 cases",
    "ensemble_hill_rmse": "of the ensemble on the hill-climbing cases",
    "ensemble_members": "number of different models in the ensemble",
    "ensemble_mb": "megabytes of the ensemble's models",
    "ensemble_seconds": "seconds for the ensemble to predict 10,000 cases",
    "models": "number of models in the library",
    "single": "text: the best single model",
    "net": "text: the best net",
    "best_of_kind_rmse": "dict: RMSE on the test cases of the best model of each kind",
    "kinds": "dict: the weight of each kind of model in the ensemble",
    "strongest": "list: the models with the largest weights",
}
TIMED = 10_000  # cases on which predictions are timed


def cohort(config: dict) -> tuple | None:
    """The same key for nets that differ only in cases or width: they train as one stack, as wide as the widest net."""
    if config["teacher"] is None:
        return None
    own = {"pseudo", "cases", "units"}
    return tuple(sorted((key, str(value)) for key, value in config.items() if key not in own)) + (config["units"] > 128,)


def prepare(trials: list, context: Context, teacher_weights: dict[str, Tensor] | None) -> Run:
    """The run of a split's ensemble (one trial), or of the nets that mimic it (one or more trials)."""
    problem = Problem(trials[0].config, context.seed)
    if trials[0].config["teacher"] is None:
        return ensemble(problem, trials[0].config, context)
    return mimics(problem, [trial.config for trial in trials], context, teacher_weights)


class Problem:
    """A split of a problem: cases as values [n, V] (``values``) and as inputs of a net (``inputs``), and labels 0 and 1.

    The parts are "train", "hill" (hill-climbing) and "test". Cases with missing values are left out.
    """

    def __init__(self, config: dict, seed: int):
        table = tabular.load(config["data"])
        whole = ~np.isnan(table.values).any(1)
        values, labels = table.values[whole], table.labels[whole]
        labels = np.isin(labels, [table.classes.index(word) for word in config["positive"]]).astype(np.int64)
        self.table, self.words = table, [len(levels) for levels in table.levels]
        order = np.random.default_rng(seed_of(seed, "split")).permutation(len(values))
        ends = np.cumsum([config["train"], config["hill"], config["test"]])
        if len(values) < ends[-1]:
            raise KdcoreError(f"{config['data']} has {len(values)} complete cases, but a split needs {ends[-1]}")
        cases = dict(zip(("train", "hill", "test"), np.split(order[: ends[-1]], ends[:-1]), strict=True))
        self.values = {part: values[own] for part, own in cases.items()}
        self.labels = {part: labels[own] for part, own in cases.items()}
        columns = self._columns(self.values["train"])
        deviation = columns.std(0)
        self.mean, self.deviation = columns.mean(0), np.where(deviation > 0, deviation, 1)

    def inputs(self, values: np.ndarray) -> np.ndarray:
        """values [n, V] -> float32 [n, inputs]: numbers and one-hot words, standardised on the training cases."""
        return (self._columns(values) - self.mean) / self.deviation

    def _columns(self, values: np.ndarray) -> np.ndarray:
        return tabular.columns(tabular.Tabular(self.table.name, values, np.empty(0), self.table.variables, self.table.levels, ())).x


def ensemble(problem: Problem, config: dict, context: Context) -> Run:
    """The library, the selected ensemble, pseudo data and their labels, saved part by part."""
    x, y = {part: problem.inputs(values) for part, values in problem.values.items()}, problem.labels
    library = ensembles.Library(x["train"], y["train"], x["hill"], y["hill"])
    families = list(ensembles.plan(config["library"]))
    starts = {name: range(0, settings["cases"], library.CHUNK) for name, settings in config["pseudo_data"].items()}
    total = len(families) + 1 + sum(map(len, starts.values()))

    def estimate() -> float:
        """Time every twelfth family; labelling takes about as long again."""
        started = time.monotonic()
        for family, settings in families[::12]:
            library.grow(family, settings, 0)
        return 2 * 12 * (time.monotonic() - started)

    def finish(history: list[dict]) -> list[dict]:
        numbers = count(1)

        def part(name: str, stage: str, make: Callable, loss: Callable) -> Any:
            """Make and save a part; ``loss`` gives the number that progress shows."""
            number = next(numbers)
            return context.keep(
                name, make, lambda made: {"stage": stage, "epoch": number, "loss": loss(made), "done": number, "total": total}
            )

        for number, (family, settings) in enumerate(families, 1):
            grow = partial(library.grow, family, settings, seed_of(context.seed, "library", number) % 2**32)
            library.add(part(f"family-{number}", family, grow, lambda grown: float(ensembles.rmse(grown.hill, y["hill"]).min())))
        select = partial(_selected, library, x, y, config, context.seed)
        measures, weights, train_labels = part("selection", "selection", select, lambda made: made[0]["ensemble_hill_rmse"])

        tensors = {f"rmse.{name}": torch.tensor(measures[f"{name}_rmse"]) for name in ("ensemble", "net", "single")}
        tensors["train.labels"] = torch.tensor(train_labels, dtype=torch.float32)
        values = {
            name: context.keep(f"{name}-values", partial(_made, problem, settings, context.seed, name))
            for name, settings in config["pseudo_data"].items()
        }
        for name, made in values.items():
            blocks = []
            for start in starts[name]:
                label = partial(_labelled, library, problem, made[start : start + library.CHUNK], weights)
                blocks.append(part(f"{name}-labels-{start}", f"labels for {name}", label, lambda _: measures["ensemble_rmse"]))
            labels = np.concatenate([block for block, _ in blocks]) if blocks else np.empty(0)
            measures["ensemble_seconds"] = sum(seconds for _, seconds in blocks) / max(len(labels), 1) * TIMED
            tensors[f"{name}.values"] = torch.tensor(made, dtype=torch.float32)
            tensors[f"{name}.labels"] = torch.tensor(labels, dtype=torch.float32)
        return [{"metrics": measures, "history": history, "weights": tensors}]

    return Run(finish, estimate=estimate)


def _selected(library: ensembles.Library, x: dict, y: dict, config: dict, seed: int) -> tuple[dict, np.ndarray, np.ndarray]:
    """(metrics, the models' weights, the ensemble's predictions for the training cases)."""
    weights = ensembles.select(library.hill, y["hill"], np.random.default_rng(seed_of(seed, "bags")), **config["selection"])
    measures = _library_metrics(library, x["test"], y["test"])
    measures["ensemble_rmse"] = float(ensembles.rmse(library.predict(x["test"], weights), y["test"]))
    measures["ensemble_hill_rmse"] = float(ensembles.rmse(library.hill @ weights, y["hill"]))
    measures["ensemble_members"] = int((weights > 0).sum())
    measures["ensemble_mb"] = library.size_mb(weights)
    strongest = np.argsort(-weights)[:10]
    measures["strongest"] = [[library.names[i], round(float(weights[i]), 4)] for i in strongest if weights[i]]
    measures["kinds"] = {kind: float(weights[np.array(library.kinds) == kind].sum()) for kind in dict.fromkeys(library.kinds)}
    return measures, weights, library.predict(x["train"], weights)


def _made(problem: Problem, settings: dict, seed: int, name: str) -> np.ndarray:
    return pseudo_data(problem, settings, np.random.default_rng(seed_of(seed, "pseudo", name)))


def _labelled(library: ensembles.Library, problem: Problem, made: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, float]:
    """The ensemble's predictions for pseudo cases, and the seconds that they took."""
    before = time.perf_counter()
    return library.predict(problem.inputs(made), weights), time.perf_counter() - before


def _library_metrics(library: ensembles.Library, test_x: np.ndarray, test_y: np.ndarray) -> dict:
    """Test RMSE of the models that are best on the hill-climbing cases, overall, among nets, and for each kind."""
    kinds, hill = np.array(library.kinds), ensembles.rmse(library.hill, library.hill_y)

    def test_rmse(best: int) -> float:
        return float(ensembles.rmse(library.predict(test_x, np.eye(len(kinds))[best]), test_y))

    best = {kind: int(np.flatnonzero(kinds == kind)[hill[kinds == kind].argmin()]) for kind in dict.fromkeys(library.kinds)}
    by_kind = {kind: test_rmse(model) for kind, model in best.items()}
    single = min(best.values(), key=lambda model: hill[model])
    return {
        "models": len(kinds),
        "single": library.names[single],
        "single_rmse": by_kind[library.kinds[single]],
        "net": library.names[best["nets"]],
        "net_rmse": by_kind["nets"],
        "best_of_kind_rmse": by_kind,
    }


def pseudo_data(problem: Problem, settings: dict, rng: np.random.Generator) -> np.ndarray:
    """Unlabelled cases [n, V] made from the training cases; settings: {method, cases, and for MUNGE p and s}."""
    train, words, cases = problem.values["train"], problem.words, settings["cases"]
    if settings["method"] == "munge":
        return munge.munge(train, words, cases, rng, settings["p"], settings["s"])
    if settings["method"] == "nbe":
        return munge.NaiveBayesMixture(train, words, rng).sample(cases, rng)
    return munge.random(train, cases, rng)


def mimics(problem: Problem, configs: list[dict], context: Context, teacher_weights: dict[str, Tensor] | None) -> Run:
    """The run of nets with one hidden layer that learn the ensemble's predictions for training and pseudo cases."""
    config, device = configs[0], context.device
    if context.rehearsal:
        teacher_weights = _shapes(problem, configs)
    elif teacher_weights is None:
        raise ValueError("a mimic needs its teacher_weights: the cases that its ensemble labelled")
    pool, labels, starts = _transfer_set(problem, configs, teacher_weights)
    pool, labels = pool.to(device), labels.to(device)
    parts = {part: torch.tensor(problem.inputs(problem.values[part]), device=device) for part in ("hill", "test")}
    targets = {part: torch.tensor(problem.labels[part], dtype=torch.float32, device=device) for part in ("hill", "test")}
    nets = [MLP((pool.shape[1], own["units"], 1)).reset([seed_of(context.seed, "net", own["units"])]) for own in configs]
    stack = _stacked(nets).to(device)

    # each member draws from the first cases of its own method
    first, counts = torch.tensor(starts)[:, None], torch.tensor([own["cases"] for own in configs])[:, None]
    train, epochs = len(problem.values["train"]), config["epochs"]

    def indices(generator: torch.Generator) -> Tensor:
        drawn = torch.rand(config["epoch_steps"], 1, config["batch_size"], generator=generator, dtype=torch.float64)
        own = (drawn * counts).long()  # [steps, members, batch], 0 ... count - 1
        return torch.where(own < train, own, own - train + first)

    def loss(x: Tensor, labels: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(stack(x).squeeze(-1).float(), labels, reduction="none").mean(-1)

    def evaluate() -> dict[str, Tensor]:
        return {f"{part}_rmse": (stack(x).squeeze(-1).sigmoid() - targets[part]).square().mean(-1).sqrt() for part, x in parts.items()}

    def finish(history: list[dict]) -> list[dict]:
        results = []
        for member, net in enumerate(nets):
            rows = [{key: value[member] if isinstance(value, list) else value for key, value in row.items()} for row in history]
            results.append({"metrics": _measures(net, rows, teacher_weights, parts["test"]), "history": rows})
        return results

    stage = Stage(
        "mimic",
        loss,
        epochs=epochs,
        indices=indices,
        batch=lambda index: (pool[index], labels[index]),
        schedule=lambda epoch: {"lr": config["lr"] * (1 - epoch / epochs)},
        optimiser={"momentum": config["momentum"]},
    )
    return Run(finish, stack, [stage], evaluate)


def _stacked(nets: list[MLP]) -> MLP:
    """One stack of nets with one hidden layer each. Narrower nets are padded with units whose weights are all 0, and so stay 0."""
    stack = MLP([max(sizes) for sizes in zip(*(net.sizes for net in nets), strict=True)], members=len(nets))
    with torch.no_grad():
        for member, net in enumerate(nets):
            for whole, own in zip((*stack.weights, *stack.biases), (*net.weights, *net.biases), strict=True):
                whole[member][tuple(slice(size) for size in own.shape[1:])].copy_(own[0])
    return stack


def _measures(net: MLP, history: list[dict], teacher_weights: dict[str, Tensor], test: Tensor) -> dict:
    """The metrics of a mimic; ``net`` has its size."""
    best = min(history, key=lambda row: row["hill_rmse"])  # early stopping
    measures = {"rmse": best["test_rmse"], "best_epoch": best["epoch"], "last_rmse": history[-1]["test_rmse"]}
    measures |= {f"{name}_rmse": float(teacher_weights[f"rmse.{name}"]) for name in ("ensemble", "net", "single")}
    measures["ratio"] = ratio(measures["rmse"], measures["ensemble_rmse"], measures["net_rmse"])
    parameters = count_parameters(net)
    return measures | {"parameters": parameters, "net_mb": 4 * parameters / 1e6, "net_seconds": _seconds(net, test)}


def ratio(mimic: float, ensemble: float, net: float) -> float:
    """The mimic's share of the ensemble's improvement over the best net (table 2); 0 if there is none."""
    return (net - mimic) / (net - ensemble) if net != ensemble else 0.0


def _needed(problem: Problem, configs: list[dict]) -> dict[str, int]:
    """The number of pseudo cases of each method that the nets learn from."""
    needed: dict[str, int] = {}
    for config in configs:
        needed[config["pseudo"]] = max(needed.get(config["pseudo"], 0), config["cases"] - len(problem.values["train"]))
    return needed


def _shapes(problem: Problem, configs: list[dict]) -> dict[str, Tensor]:
    """Zeros with the shapes of what an ensemble hands on, for a rehearsal."""
    cases, variables = problem.values["train"].shape
    tensors = {"train.labels": torch.zeros(cases)}
    for name, wanted in _needed(problem, configs).items():
        tensors |= {f"{name}.values": torch.zeros(wanted, variables), f"{name}.labels": torch.zeros(wanted)}
    return tensors


def _transfer_set(problem: Problem, configs: list[dict], teacher_weights: dict[str, Tensor]) -> tuple[Tensor, Tensor, list[int]]:
    """(inputs [N, d], the ensemble's probabilities [N], for each net the index of its method's first case).

    The training cases come first, then those of each method that a net uses.
    """
    values, labels, first = [problem.values["train"]], [teacher_weights["train.labels"]], {}
    for name, wanted in _needed(problem, configs).items():
        first[name] = sum(map(len, values))
        values.append(teacher_weights[f"{name}.values"][:wanted].numpy())
        labels.append(teacher_weights[f"{name}.labels"][:wanted])
    inputs = torch.cat([torch.from_numpy(problem.inputs(part)) for part in values])
    return inputs, torch.cat(labels), [first[config["pseudo"]] for config in configs]


def _seconds(net: MLP, cases: Tensor) -> float:
    """Seconds that a single net takes for ``TIMED`` cases."""
    cases = cases[:TIMED]
    net = net.to(cases.device).eval()
    with torch.no_grad():
        net(cases)
        before = time.perf_counter()
        net(cases).sigmoid().sum().item()
    return (time.perf_counter() - before) / len(cases) * TIMED


def work(config: dict) -> float:
    return config["epochs"] * config["epoch_steps"] * config["batch_size"] * (config["units"] or 1)
