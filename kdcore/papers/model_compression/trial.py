"""Bucila, Caruana & Niculescu-Mizil 2006, "Model compression": what one trial does.

A seed is a random split of a problem into training, hill-climbing and test cases. Its teacher is the arm "PROBLEM: ensemble": it
grows the library, selects the ensemble, makes the pseudo data and labels it; what it hands on are the labelled cases. The
nets that mimic it train side by side as one stack, whatever their cases and widths.
"""

import time
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from kdcore.data import tabular
from kdcore.errors import KdcoreError
from kdcore.models import MLP, count_parameters
from kdcore.papers.model_compression import ensembles, munge
from kdcore.training import Context, Measured, Stage, seed_of

VERSION = 1
METRICS = {
    "rmse": "of a mimic on the test cases, at the epoch of the least RMSE on the hill-climbing cases",
    "last_rmse": "of a mimic on the test cases, at the last epoch",
    "best_epoch": "of a mimic: the epoch of the least RMSE on the hill-climbing cases",
    "ratio": "how much of the way from the best net to the ensemble the mimic has gone; 1 at the ensemble",
    "ensemble_rmse": "of the ensemble on the test cases",
    "net_rmse": "on the test cases, of the net of the library that is best on the hill-climbing cases",
    "single_rmse": "on the test cases, of the model of the library that is best on the hill-climbing cases",
    "parameters": "of a mimic",
    "net_mb": "megabytes of a mimic's parameters, 4 bytes each",
    "net_seconds": "for a mimic to predict 10,000 cases",
    "ensemble_hill_rmse": "of the ensemble on the hill-climbing cases",
    "ensemble_members": "different models in the ensemble",
    "ensemble_mb": "megabytes of the ensemble's models",
    "ensemble_seconds": "for the ensemble to predict 10,000 cases",
    "models": "in the library",
    "single": "text: the best single model",
    "net": "text: the best net",
    "best_of_kind_rmse": "dict: RMSE on the test cases of the best model of each kind",
    "kinds": "dict: the weight of each kind of model in the ensemble",
    "strongest": "list: the models with the largest weights",
}
TIMED = 10_000  # cases that predictions are timed on


def cohort(config: dict) -> tuple | None:
    """Nets that differ in cases or width alone train as one stack, with the width of its widest net."""
    if config["teacher"] is None:
        return None
    own = {"pseudo", "cases", "units"}
    return tuple(sorted((key, str(value)) for key, value in config.items() if key not in own)) + (config["units"] > 128,)


def run(trials: list, context: Context, teacher: dict[str, Tensor] | None) -> list[dict]:
    """The ensemble of a split (one trial), or the nets that mimic it (one or many)."""
    problem = Problem(trials[0].config, context.seed)
    if trials[0].config["teacher"] is None:
        return [_ensemble(problem, trials[0].config, context)]
    return _mimics(problem, [trial.config for trial in trials], context, teacher)


class Problem:
    """One split of a problem: cases as values [n, V] (``values``) and as a net's inputs (``inputs``), and labels 0 and 1.

    The parts are "train", "hill" (hill-climbing) and "test". Cases with a missing value are left out.
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
            raise KdcoreError(f"{config['data']} has {len(values)} complete cases, not the {ends[-1]} that a split takes")
        cases = dict(zip(("train", "hill", "test"), np.split(order[: ends[-1]], ends[:-1]), strict=True))
        self.values = {part: values[own] for part, own in cases.items()}
        self.labels = {part: labels[own] for part, own in cases.items()}
        columns = self._columns(self.values["train"])
        deviation = columns.std(0)
        self.mean, self.deviation = columns.mean(0), np.where(deviation > 0, deviation, 1)

    def inputs(self, values: np.ndarray) -> np.ndarray:
        """values [n, V] -> float32 [n, inputs]: numbers, and a column for each word, with mean 0 and deviation 1 in training."""
        return (self._columns(values) - self.mean) / self.deviation

    def _columns(self, values: np.ndarray) -> np.ndarray:
        return tabular.columns(tabular.Tabular(self.table.name, values, np.empty(0), self.table.variables, self.table.levels, ())).x


def _ensemble(problem: Problem, config: dict, context: Context) -> dict:
    """Library, selection, pseudo data and its labels, saved part by part."""
    x = {part: problem.inputs(values) for part, values in problem.values.items()}
    y = problem.labels
    library = ensembles.Library(x["train"], y["train"], x["hill"], y["hill"])
    families = list(ensembles.plan(config["library"]))
    started = time.monotonic()
    if context.probe:  # every twelfth family; to label takes about as long again
        for family, settings in families[::12]:
            library.grow(family, settings, 0)
        raise Measured(2 * 12 * (time.monotonic() - started))
    blocks = [
        (name, slice(first, first + library.CHUNK))
        for name, settings in config["pseudo_data"].items()
        for first in range(0, settings["cases"], library.CHUNK)
    ]
    total = len(families) + 1 + len(blocks)

    def row(stage: str, done: int, loss: float) -> dict:
        return {"stage": stage, "epoch": done, "loss": loss, "done": done, "total": total}

    for number, (family, settings) in enumerate(families, 1):
        grow = partial(library.grow, family, settings, seed_of(context.seed, "library", number) % 2**32)
        best = partial(
            lambda family, number, grown: row(family, number, float(ensembles.rmse(grown.hill, y["hill"]).min())), family, number
        )
        library.add(context.keep(f"family-{number}", grow, best))
    found, weights, train_labels = context.keep(
        "selection",
        lambda: _selected(library, x, y, config, context.seed),
        lambda made: row("selection", len(families) + 1, made[0]["ensemble_hill_rmse"]),
    )

    tensors = {f"rmse.{name}": torch.tensor(found[f"{name}_rmse"]) for name in ("ensemble", "net", "single")}
    tensors["train.labels"] = torch.tensor(train_labels, dtype=torch.float32)
    made = {
        name: context.keep(f"{name}-values", partial(_made, problem, settings, context.seed, name))
        for name, settings in config["pseudo_data"].items()
    }
    labels: dict[str, list] = {name: [] for name in made}
    for number, (name, block) in enumerate(blocks, len(families) + 2):
        label = partial(_labelled, library, problem, made[name][block], weights)
        told = partial(lambda name, number, _: row(f"labels for {name}", number, found["ensemble_rmse"]), name, number)
        labels[name].append(context.keep(f"{name}-labels-{block.start}", label, told))
    for name, parts in labels.items():
        whole = np.concatenate([part for part, _ in parts]) if parts else np.empty(0)
        found["ensemble_seconds"] = sum(seconds for _, seconds in parts) / max(len(whole), 1) * TIMED
        values = torch.tensor(made[name], dtype=torch.float32)
        tensors |= {f"{name}.values": values, f"{name}.labels": torch.tensor(whole, dtype=torch.float32)}
    return {"metrics": found, "history": [], "weights": tensors}


def _selected(library: ensembles.Library, x: dict, y: dict, config: dict, seed: int) -> tuple[dict, np.ndarray, np.ndarray]:
    """(what was measured, the models' weights, what the ensemble says of the training cases)."""
    weights = ensembles.select(library.hill, y["hill"], np.random.default_rng(seed_of(seed, "bags")), **config["selection"])
    found = _library_metrics(library, x["test"], y["test"])
    found["ensemble_rmse"] = float(ensembles.rmse(library.predict(x["test"], weights), y["test"]))
    found["ensemble_hill_rmse"] = float(ensembles.rmse(library.hill @ weights, y["hill"]))
    found["ensemble_members"] = int((weights > 0).sum())
    found["ensemble_mb"] = library.size_mb(weights)
    strongest = np.argsort(-weights)[:10]
    found["strongest"] = [[library.names[i], round(float(weights[i]), 4)] for i in strongest if weights[i]]
    found["kinds"] = {kind: float(weights[np.array(library.kinds) == kind].sum()) for kind in dict.fromkeys(library.kinds)}
    return found, weights, library.predict(x["train"], weights)


def _made(problem: Problem, settings: dict, seed: int, name: str) -> np.ndarray:
    return pseudo_data(problem, settings, np.random.default_rng(seed_of(seed, "pseudo", name)))


def _labelled(library: ensembles.Library, problem: Problem, made: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, float]:
    """What the ensemble says of made cases, and the seconds that it took."""
    before = time.perf_counter()
    return library.predict(problem.inputs(made), weights), time.perf_counter() - before


def _library_metrics(library: ensembles.Library, test_x: np.ndarray, test_y: np.ndarray) -> dict:
    """Test RMSE of the models that are best on the hill-climbing cases: of all, of nets, and of each kind."""
    kinds, hill = np.array(library.kinds), ensembles.rmse(library.hill, library.hill_y)

    def test_rmse(best: int) -> float:
        return float(ensembles.rmse(library.predict(test_x, np.eye(len(kinds))[best]), test_y))

    best = {kind: int(np.flatnonzero(kinds == kind)[hill[kinds == kind].argmin()]) for kind in dict.fromkeys(library.kinds)}
    by_kind = {kind: test_rmse(model) for kind, model in best.items()}
    single = min(best.values(), key=lambda model: hill[model])
    found = {"models": len(kinds), "single": library.names[single], "single_rmse": by_kind[library.kinds[single]]}
    return found | {"net": library.names[best["nets"]], "net_rmse": by_kind["nets"], "best_of_kind_rmse": by_kind}


def pseudo_data(problem: Problem, settings: dict, rng: np.random.Generator) -> np.ndarray:
    """Unlabelled cases [n, V] made from the training cases: settings {method, cases, and p and s of MUNGE}."""
    train, words, cases = problem.values["train"], problem.words, settings["cases"]
    if settings["method"] == "munge":
        return munge.munge(train, words, cases, rng, settings["p"], settings["s"])
    if settings["method"] == "nbe":
        return munge.NaiveBayesMixture(train, words, rng).sample(cases, rng)
    return munge.random(train, cases, rng)


def _mimics(problem: Problem, configs: list[dict], context: Context, teacher: dict[str, Tensor] | None) -> list[dict]:
    """Nets with one hidden layer that learn what the ensemble says of the training cases and of the first pseudo cases."""
    config, device = configs[0], context.device
    pool, labels, rows = _transfer_set(problem, configs, teacher, context)
    pool, labels = pool.to(device), labels.to(device)
    parts = {part: torch.tensor(problem.inputs(problem.values[part]), device=device) for part in ("hill", "test")}
    targets = {part: torch.tensor(problem.labels[part], dtype=torch.float32, device=device) for part in ("hill", "test")}

    nets = [MLP((pool.shape[1], c["units"], 1)).reset([seed_of(context.seed, "net", c["units"])]) for c in configs]
    stack = MLP((pool.shape[1], max(c["units"] for c in configs), 1), members=len(configs))
    with torch.no_grad():
        # a narrower net is padded with units that neither receive nor send anything, and so never will
        for member, net in enumerate(nets):
            for whole, own in zip((*stack.weights, *stack.biases), (*net.weights, *net.biases), strict=True):
                whole[member][tuple(slice(size) for size in own.shape[1:])].copy_(own[0])
    stack.to(device)

    # what each member draws from: its own method's cases, the first of them
    first = torch.tensor([row[0] for row in rows])[:, None]
    train, counts = len(problem.values["train"]), torch.tensor([row[1] for row in rows])[:, None]

    def indices(generator: torch.Generator) -> Tensor:
        drawn = torch.rand(config["epoch_steps"], 1, config["batch_size"], generator=generator, dtype=torch.float64)
        own = (drawn * counts).long()  # [steps, members, batch], 0 ... count - 1
        return torch.where(own < train, own, own - train + first)

    def loss(index: Tensor) -> Tensor:
        logits = stack(pool[index]).squeeze(-1).float()
        return F.binary_cross_entropy_with_logits(logits, labels[index], reduction="none").mean(-1)

    def evaluate() -> dict[str, Tensor]:
        return {f"{part}_rmse": (stack(x).squeeze(-1).sigmoid() - targets[part]).square().mean(-1).sqrt() for part, x in parts.items()}

    epochs = config["epochs"]
    stage = Stage(
        name="mimic",
        epochs=epochs,
        indices=indices,
        loss=loss,
        schedule=lambda epoch: {"lr": config["lr"] * (1 - epoch / epochs)},
        optimiser={"momentum": config["momentum"]},
    )
    history = context.fit(stack, [stage], evaluate)

    results = []
    for member, net in enumerate(nets):
        rows = [{key: value[member] if isinstance(value, list) else value for key, value in row.items()} for row in history]
        best = min(rows, key=lambda row: row["hill_rmse"])  # early stopping
        found = {"rmse": best["test_rmse"], "best_epoch": best["epoch"], "last_rmse": rows[-1]["test_rmse"]}
        found |= {f"{name}_rmse": float(teacher[f"rmse.{name}"]) for name in ("ensemble", "net", "single")}
        found["ratio"] = ratio(found["rmse"], found["ensemble_rmse"], found["net_rmse"])
        parameters = count_parameters(net)
        found |= {"parameters": parameters, "net_mb": 4 * parameters / 1e6, "net_seconds": _seconds(net, parts["test"])}
        results.append({"metrics": found, "history": rows})
    return results


def ratio(mimic: float, ensemble: float, net: float) -> float:
    """How much of the way from the best net to the ensemble the mimic has gone (table 2); 0 where there is no way."""
    return (net - mimic) / (net - ensemble) if net != ensemble else 0.0


def _transfer_set(problem: Problem, configs: list[dict], teacher: dict | None, context: Context) -> tuple[Tensor, Tensor, list[tuple]]:
    """(inputs [N, d], the ensemble's probabilities [N], for each net (its method's first case, how many it learns from)).

    The training cases come first, then the cases of each method that some net asks for.
    """
    train = problem.values["train"]
    needed: dict[str, int] = {}
    for config in configs:
        needed[config["pseudo"]] = max(needed.get(config["pseudo"], 0), config["cases"] - len(train))
    if teacher is None and context.probe:  # a forecast needs the shapes, not the knowledge
        teacher = {"train.labels": torch.zeros(len(train))}
        for name, count in needed.items():
            teacher |= {f"{name}.values": torch.zeros(count, train.shape[1]), f"{name}.labels": torch.zeros(count)}
    values, labels, first, at = [train], [teacher["train.labels"]], {}, len(train)
    for name, count in needed.items():
        values.append(teacher[f"{name}.values"][:count].numpy())
        labels.append(teacher[f"{name}.labels"][:count])
        first[name] = at
        at += count
    inputs = torch.cat([torch.from_numpy(problem.inputs(part)) for part in values])
    return inputs, torch.cat(labels), [(first[c["pseudo"]], c["cases"]) for c in configs]


def _seconds(net: MLP, cases: Tensor) -> float:
    """Seconds for ``TIMED`` cases (of a net by itself)."""
    cases = cases[:TIMED]
    net = net.to(cases.device).eval()
    with torch.no_grad():
        net(cases)
        before = time.perf_counter()
        net(cases).sigmoid().sum().item()
    return (time.perf_counter() - before) / len(cases) * TIMED
