"""Hinton, Vinyals & Dean 2015, section 3: a trial of the MNIST experiments.

A cohort is one stack of nets: all temperatures of one width train side by side on the same batches. Students learn from a
table of the teacher's logits on the training images, computed once after the teacher's training.
"""

import base64
import dataclasses
from functools import partial

import torch
from torch import Tensor

from kdcore import data, methods, metrics
from kdcore.data.augment import Views
from kdcore.methods import Knowledge
from kdcore.models import MLP
from kdcore.papers.images import cadence, count_of, weights_of
from kdcore.training import Context, Run, seed_of

VERSION = 1
METRICS = {
    "test_errors": "misclassified test cases; of an ensemble, the mean of its nets",
    "test_error_percent": "% of the test cases; of an ensemble, the mean of its nets",
    "best_test_error_percent": "% of the test cases, the lowest of all evaluated epochs; not used to select any result",
    "train_error_percent": "% of the cases that the net was trained on",
    "member_test_errors": "list: misclassified test cases of each net of an ensemble",
    "ensemble_test_errors": "misclassified test cases of an ensemble, by the geometric mean of its nets' predictions",
    "class_errors": "misclassified test cases of the classes whose bias is shifted, before the shift",
    "shifts": "list: the bias shifts that were tried, in logits",
    "shift_test_errors": "list: misclassified test cases for each of the shifts",
    "shift_heldout_errors": "list: misclassified held-out training cases for each of the shifts",
    "shift_test": "logits: the best shift on the test set, as in the paper",
    "shift_heldout": "logits: the best shift on held-out training cases",
    "test_errors_shift_test": "misclassified test cases after shift_test",
    "test_errors_shift_heldout": "misclassified test cases after shift_heldout",
    "test_error_percent_shift_test": "% of the test cases after shift_test",
    "test_error_percent_shift_heldout": "% of the test cases after shift_heldout",
    "class_errors_shift_test": "as class_errors, after shift_test",
    "class_errors_shift_heldout": "as class_errors, after shift_heldout",
    "confusion_before": "matrix: test cases by label and prediction, before the shift",
    "confusion_shift_test": "matrix: the same after shift_test",
    "confusion_shift_heldout": "matrix: the same after shift_heldout",
    "gallery": "list: one test digit per class with its logits, for the figure",
}
PART = 10_000  # training images evaluated at a time


def cohort(config: dict) -> tuple | None:
    """The same key for trials that can train as one stack: equal nets, data and schedule, at any temperature."""
    if config["members"] > 1 or config["teacher"] is None:
        return None
    return tuple(sorted((key, str(value)) for key, value in config.items() if key != "temperature"))


def update_rule(config: dict, epoch: int) -> dict[str, float]:
    """Learning rate and momentum of an epoch, from 0, in the form of Hinton et al. 2012 (1207.0580, appendix A).

        v <- p v - (1 - p) eps g,    w <- w + v

    ``lr`` is eps; ``momentum`` is p, which rises linearly from ``momentum_start`` over ``momentum_epochs``. ``lr_decay`` is the
    factor per epoch, or "linear": to zero at the end of training.
    """
    risen = min(1.0, epoch / config["momentum_epochs"]) if config["momentum_epochs"] else 1.0
    momentum = config["momentum_start"] + (config["momentum"] - config["momentum_start"]) * risen
    decay = 1 - epoch / config["epochs"] if config["lr_decay"] == "linear" else config["lr_decay"] ** epoch
    return {"lr": config["lr"] * decay * (1 - momentum), "momentum": momentum}


def transfer_set(labels: Tensor, config: dict, seed: int) -> tuple[Tensor, Tensor]:
    """Numbers of the cases to train on, and of those held out (from all classes) to choose a bias shift."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed_of(seed, "holdout")))
    held, rest = order[: config["holdout"]], order[config["holdout"] :].sort().values
    if config["keep_classes"] is not None:
        rest = rest[torch.isin(labels[rest], torch.tensor(config["keep_classes"]))]
    return rest, held


def prepare(trials: list, context: Context, teacher_weights: dict[str, Tensor] | None) -> Run:
    return Nets(trials, context, teacher_weights).run()


class Nets:
    """Nets that train side by side: a single one, those of a cohort (same seed and batches, one temperature each), or the members
    of an ensemble (one trial; separate seeds and batches).

    teacher_weights: ``train_logits`` of the teacher's trial, [N, C], or [K, N, C] for an ensemble of K.
    """

    def __init__(self, trials: list, context: Context, teacher_weights: dict[str, Tensor] | None):
        self.trials, self.config, self.context, device = trials, trials[0].config, context, context.device
        config, self.images = self.config, data.load(self.config["data"])
        self.labels, self.test_labels = self.images.train_labels.to(device), self.images.test_labels.to(device)
        self.cases, self.held = transfer_set(self.images.train_labels, config, context.seed)
        pixels = self.images.train_images.to(device)
        self.views = Views(pixels, config["jitter"]) if config["jitter"] else None
        self.train = pixels.flatten(1).float().div_(255)
        self.test = self.images.test_images.to(device).flatten(1).float().div_(255)
        self.teacher_logits = None if config["teacher"] is None else self.known(teacher_weights)

        self.ensemble, self.cohort = config["members"] > 1, len(trials) > 1
        members = config["members"] if self.ensemble else len(trials) if self.cohort else None
        dropout = {key: config[key] for key in ("input_dropout", "hidden_dropout")}
        seeds = [seed_of(context.seed, "net", k if self.ensemble else 0) for k in range(members or 1)]
        self.net = MLP(config["layers"], members=members, **dropout).reset(seeds, config["init_std"]).to(device)

    def run(self) -> Run:
        config, net = self.config, self.net
        temperature = config["temperature"]
        if self.cohort:
            own = [trial.config["temperature"] for trial in self.trials]
            temperature = torch.tensor(own, device=self.context.device).view(-1, 1, 1)
        method = methods.plain(net, None, task=methods.soft_targets(temperature, config["soft_weight"]))
        (stage,) = method.stages
        seen = config["epochs"] * (len(self.cases) // config["batch_size"]) * config["batch_size"]
        stage = dataclasses.replace(
            stage,
            epochs=config["epochs"],
            indices=self.indices,
            batch=self.batch,
            schedule=lambda epoch: update_rule(config, epoch),
            optimiser={"momentum": config["momentum_start"]},
            after_step=partial(net.limit_norms, config["max_norm"]) if config["max_norm"] else None,
            measured=cadence(config["epochs"], (3 * seen, 0), (len(self.test_labels), 0)),
        )
        return Run(self.finish, method, [stage], self.evaluate)

    def known(self, teacher_weights: dict[str, Tensor] | None) -> Tensor:
        """The teacher's logits [N, C] on the training images; zeros in a rehearsal, which needs only their shape."""
        if self.context.rehearsal:
            return torch.zeros(len(self.labels), self.config["layers"][-1], device=self.context.device)
        if teacher_weights is None:
            raise ValueError("a student needs its teacher_weights: the logits of its teacher")
        logits = teacher_weights["train_logits"].to(self.context.device)
        # The geometric mean of an ensemble's predictions has the mean logits (up to a constant).
        return logits.mean(0) if logits.dim() == 3 else logits

    def indices(self, generator: torch.Generator) -> Tensor:
        """An epoch: case numbers, or views of them, [steps, B], or [steps, K, B] for an ensemble of K."""
        size = self.config["batch_size"]
        steps = len(self.cases) // size
        orders = [self.cases[torch.randperm(len(self.cases), generator=generator)] for _ in range(self.config["members"])]
        rows = torch.stack([order[: steps * size].view(steps, size) for order in orders], 1)
        rows = rows if self.ensemble else rows.squeeze(1)
        return self.views.draw(rows, generator) if self.views else rows

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor, Knowledge]:
        cases = index[..., 0] if self.views else index
        x = self.views(index).flatten(-3) if self.views else self.train[cases]
        return x, self.labels[cases], Knowledge(None, x, None if self.teacher_logits is None else self.teacher_logits[cases])

    def evaluate(self) -> dict[str, Tensor]:
        return {"test_error_percent": 100 * metrics.wrong(self.net(self.test), self.test_labels).double().mean(-1)}

    def finish(self, history: list[dict]) -> list[dict]:
        self.net.eval()
        with torch.no_grad():
            test_logits = self.net(self.test)
            train_logits = torch.cat([self.net(part) for part in self.train.split(PART)], -2)
        if not self.cohort:
            return [self.result(self.config, history, test_logits, train_logits)]
        results = []
        for k, trial in enumerate(self.trials):
            rows = [{key: value[k] if isinstance(value, list) else value for key, value in row.items()} for row in history]
            results.append(self.result(trial.config, rows, test_logits[k], train_logits[k]))
        return results

    def result(self, config: dict, history: list[dict], test_logits: Tensor, train_logits: Tensor) -> dict:
        """The result of one trial from its logits, [N, C], or [K, N, C] for an ensemble of K."""
        measures = _errors(history, test_logits, self.test_labels, train_logits[..., self.cases, :], self.labels[self.cases])
        if config["shift_classes"] is not None:
            measures |= _shift(config, test_logits, self.test_labels, train_logits[self.held], self.labels[self.held])
        if config["gallery"]:
            measures["gallery"] = _gallery(test_logits, self.images)
        result = {"history": history, "metrics": measures}
        if config["is_teacher"]:
            result["weights"] = weights_of(self.net) | {"train_logits": train_logits.cpu()}
        return result


def _errors(history: list, test_logits: Tensor, test_labels: Tensor, train_logits: Tensor, train_labels: Tensor) -> dict:
    """The classification metrics of a net, or for an ensemble the mean over its members and its own errors.

    ``best_test_error_percent`` is the lowest of the evaluated epochs, and not used to select any result.
    """
    missed = metrics.wrong(test_logits, test_labels).sum(-1).double()
    rows = [row["test_error_percent"] for row in history if "test_error_percent" in row]
    # an ensemble's best epoch is that with the lowest mean over members
    best = min(sum(row) / len(row) if isinstance(row, list) else row for row in rows)
    measures = {
        "test_errors": missed.mean().item() if missed.dim() else int(missed),
        "test_error_percent": 100 * missed.mean().item() / len(test_labels),
        "best_test_error_percent": best,
        "train_error_percent": 100 * metrics.wrong(train_logits, train_labels).double().mean().item(),
    }
    if missed.dim():
        measures["member_test_errors"] = [int(count) for count in missed]
        measures["ensemble_test_errors"] = int(metrics.wrong(test_logits.log_softmax(-1).mean(0), test_labels).sum())
    return measures


def _shift(config: dict, test_logits: Tensor, test_labels: Tensor, held_logits: Tensor, held_labels: Tensor) -> dict:
    """Errors against the bias shift of ``shift_classes`` (T = 1 logits), with the shift chosen on cases held out from the
    transfer set, and on the test set as in the paper."""
    classes = config["shift_classes"]
    low, high, step = config["shift_range"]
    shifts = [round(low + i * step, 6) for i in range(round((high - low) / step) + 1)]
    curve = metrics.shift_errors(test_logits, test_labels, classes, shifts)
    held_curve = metrics.shift_errors(held_logits, held_labels, classes, shifts)
    measures = {
        "shifts": shifts,
        "shift_test_errors": curve,
        "shift_heldout_errors": held_curve,
        "confusion_before": metrics.confusion(test_logits, test_labels),
    }
    of_class = torch.isin(test_labels, torch.tensor(classes, device=test_labels.device))
    missed = metrics.wrong(test_logits, test_labels)
    measures["class_errors"] = int(missed[of_class].sum())
    for choice, errors in (("heldout", held_curve), ("test", curve)):
        shift = metrics.best_shift(errors, shifts)
        shifted = test_logits.clone()
        shifted[:, classes] += shift
        missed = metrics.wrong(shifted, test_labels)
        measures |= {
            f"shift_{choice}": shift,
            f"test_errors_shift_{choice}": int(missed.sum()),
            f"test_error_percent_shift_{choice}": 100 * missed.double().mean().item(),
            f"class_errors_shift_{choice}": int(missed[of_class].sum()),
            f"confusion_shift_{choice}": metrics.confusion(shifted, test_labels),
        }
    return measures


def _gallery(test_logits: Tensor, images: data.ImageData) -> list[dict]:
    """For each class, the correctly classified test digit with the largest second probability, to show the dark knowledge.
    The image is kept in the record, so that the figure needs no data set."""
    probabilities = test_logits.softmax(-1)
    second = probabilities.topk(2).values[:, 1]
    right = ~metrics.wrong(test_logits, images.test_labels.to(test_logits.device))
    shown = []
    for label in range(probabilities.shape[-1]):
        candidates = right & (images.test_labels.to(right.device) == label)
        if not candidates.any():
            continue
        case = int(torch.where(candidates, second, -1).argmax())
        pixels = images.test_images[case, 0].numpy()
        shown.append(
            {
                "case": case,
                "label": label,
                "logits": [round(value, 4) for value in test_logits[case].tolist()],
                "image": base64.b64encode(pixels.tobytes()).decode(),
                "shape": list(pixels.shape),
            }
        )
    return shown


def work(config: dict) -> float:
    weights = sum(inputs * outputs for inputs, outputs in zip(config["layers"], config["layers"][1:], strict=False))
    return config["epochs"] * count_of(config) * config["members"] * weights
