"""Hinton, Vinyals & Dean 2015, section 3: what one trial of the MNIST experiments does.

A cohort here is one stack of nets: the temperatures of one width train side by side on the same batches. The
teacher of a student is a table of its logits on the training images, computed once when the teacher is done.
"""

import base64

import torch
from torch import Tensor

from kdcore import data, losses, metrics
from kdcore.data.augment import Views
from kdcore.models import MLP
from kdcore.papers.images import cadence
from kdcore.training import Context, Stage, seed_of

VERSION = 1
METRICS = {
    "test_errors": "misclassified test cases; of an ensemble, the mean of its nets",
    "test_error_percent": "% of the test cases; of an ensemble, the mean of its nets",
    "best_test_error_percent": "% of the test cases, the least of all epochs that were measured; no result is chosen by it",
    "train_error_percent": "% of the cases that the net was trained on",
    "member_test_errors": "list: misclassified test cases of each net of an ensemble",
    "ensemble_test_errors": "misclassified test cases, by the geometric mean of the nets' predictions",
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
    "gallery": "list: one test digit a class with its logits, for the picture",
}


def cohort(config: dict) -> tuple | None:
    """Trials with equal keys may train as one stack: the same net, data and schedule, whatever their temperature."""
    if config["members"] > 1 or config["teacher"] is None:
        return None
    return tuple(sorted((key, str(value)) for key, value in config.items() if key != "temperature"))


def update_rule(config: dict, epoch: int) -> dict[str, float]:
    """Learning rate and momentum of an epoch (0, 1, ...), in the form of Hinton et al. 2012 (1207.0580, appendix A).

        v <- p v - (1 - p) eps g,    w <- w + v

    ``lr`` is eps, ``momentum`` p, risen linearly from ``momentum_start`` over ``momentum_epochs``. ``lr_decay`` is the
    factor of each epoch, or "linear": to zero at the end of training.
    """
    risen = min(1.0, epoch / config["momentum_epochs"]) if config["momentum_epochs"] else 1.0
    momentum = config["momentum_start"] + (config["momentum"] - config["momentum_start"]) * risen
    decay = 1 - epoch / config["epochs"] if config["lr_decay"] == "linear" else config["lr_decay"] ** epoch
    return {"lr": config["lr"] * decay * (1 - momentum), "momentum": momentum}


def objective(logits: Tensor, labels: Tensor, table: Tensor | None, temperature: Tensor, soft_weight: float) -> Tensor:
    """(1 - a) CE(hard, T = 1) + a T^2 KL(soft, T): one value, or one for each member (section 2; a is not stated)."""
    loss = (1 - soft_weight) * losses.cross_entropy(logits, labels, reduction="none").mean(-1)
    if table is not None and soft_weight:
        loss = loss + soft_weight * losses.kd(logits, table, temperature, reduction="none").mean(-1)
    return loss


def transfer_set(labels: Tensor, config: dict, seed: int) -> tuple[Tensor, Tensor]:
    """Case numbers that the net trains on, and those held out to choose a bias shift on (of every class)."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed_of(seed, "holdout")))
    held, rest = order[: config["holdout"]], order[config["holdout"] :].sort().values
    if config["keep_classes"] is not None:
        rest = rest[torch.isin(labels[rest], torch.tensor(config["keep_classes"]))]
    return rest, held


def run(trials: list, context: Context, teacher: dict[str, Tensor] | None) -> list[dict]:
    """Train the trials of one cohort; for each, its ``metrics``, ``history`` and, as a teacher, ``weights``.

    teacher: what the teacher's trial saved: ``train_logits`` [N, 10], or [K, N, 10] of an ensemble of K.
    """
    config, seed = trials[0].config, context.seed
    images = data.load(config["data"])
    device = context.device
    labels, test_labels = images.train_labels.to(device), images.test_labels.to(device)
    cases, held = transfer_set(images.train_labels, config, seed)
    table = _teacher_table(config, context, teacher, len(labels))

    # One net, one cohort of T's (same seed, same batches), or the members of an ensemble (own seeds, own batches).
    ensemble = config["members"] if config["members"] > 1 else None
    stacked = ensemble or (len(trials) if len(trials) > 1 else None)
    net = MLP(config["layers"], members=stacked, input_dropout=config["input_dropout"], hidden_dropout=config["hidden_dropout"])
    seeds = [seed_of(seed, "net", k) for k in range(ensemble)] if ensemble else [seed_of(seed, "net", 0)] * (stacked or 1)
    net.reset(seeds, config["init_std"]).to(device)
    temperature = torch.tensor([trial.config["temperature"] for trial in trials], device=device)
    temperature = temperature.view(-1, 1, 1) if stacked and not ensemble else temperature[0]

    views = Views(images.train_images.to(device), config["jitter"]) if config["jitter"] else None
    train = images.train_images.to(device).flatten(1).float().div_(255)
    test = images.test_images.to(device).flatten(1).float().div_(255)

    def indices(generator: torch.Generator) -> Tensor:
        steps = len(cases) // config["batch_size"]
        orders = [cases[torch.randperm(len(cases), generator=generator)] for _ in range(ensemble or 1)]
        rows = torch.stack([o[: steps * config["batch_size"]].view(steps, -1) for o in orders], 1)  # [steps, K, B]
        rows = rows if ensemble else rows.squeeze(1)
        return views.draw(rows, generator) if views else rows

    def loss(index: Tensor) -> Tensor:
        case = index[..., 0] if views else index
        x = views(index).flatten(-3) if views else train[case]
        soft = None if table is None else table[case]
        return objective(net(x), labels[case], soft, temperature, config["soft_weight"])

    size, epochs = config["batch_size"], config["epochs"]
    stage = Stage(
        name="train",
        epochs=config["epochs"],
        indices=indices,
        loss=loss,
        schedule=lambda epoch: update_rule(config, epoch),
        optimiser={"momentum": config["momentum_start"]},
        after_step=(lambda: net.limit_norms(config["max_norm"])) if config["max_norm"] else None,
        every=cadence(epochs, (3 * epochs * (len(cases) // size) * size, 0), (len(test_labels), 0)),
    )
    history = context.fit(net, [stage], lambda: {"test_error_percent": 100 * metrics.wrong(net(test), test_labels).double().mean(-1)})

    net.eval()
    with torch.no_grad():
        test_logits, train_logits = net(test), _in_parts(net, train)
    results = []
    for k, trial in enumerate(trials):
        member = k if stacked and not ensemble else None
        own = [{key: v[k] if member is not None and isinstance(v, list) else v for key, v in row.items()} for row in history]
        pick = (lambda t: t) if member is None else (lambda t, k=k: t[k])
        result = {"history": own, "metrics": _measure(own, pick(test_logits), test_labels, pick(train_logits), labels, cases)}
        if trial.config["shift_classes"] is not None:
            result["metrics"] |= _shift(trial.config, pick(test_logits), test_labels, pick(train_logits)[held], labels[held])
        if trial.config["gallery"]:
            result["metrics"]["gallery"] = _gallery(pick(test_logits), images)
        if trial.config["is_teacher"]:
            weights = {key: value.cpu().contiguous() for key, value in net.state_dict().items()}
            result["weights"] = weights | {"train_logits": train_logits.cpu()}
        results.append(result)
    return results


def _teacher_table(config: dict, context: Context, teacher: dict | None, cases: int) -> Tensor | None:
    if config["teacher"] is None:
        return None
    if teacher is None and context.probe:  # a forecast needs the shape, not the knowledge
        return torch.zeros(cases, config["layers"][-1], device=context.device)
    table = teacher["train_logits"].to(context.device)
    # The geometric mean of an ensemble's predictions has the mean of its logits (up to a constant).
    return table.mean(0) if table.dim() == 3 else table


def _in_parts(net: MLP, x: Tensor, size: int = 10_000) -> Tensor:
    return torch.cat([net(part) for part in x.split(size)], -2)


def _measure(history: list, test_logits: Tensor, test_labels: Tensor, train_logits: Tensor, labels: Tensor, cases: Tensor) -> dict:
    """The classification metrics of a net, or those of an ensemble's members (mean) and of the ensemble.

    ``best_test_error_percent``: at any epoch that was measured, which not every one is; no result is chosen by it.
    """
    missed = metrics.wrong(test_logits, test_labels).sum(-1).double()
    train_wrong = metrics.wrong(train_logits, labels)[..., cases].double().mean()
    rows = [row["test_error_percent"] for row in history if "test_error_percent" in row]
    # an ensemble's best epoch is that of its members' mean
    best = min(sum(row) / len(row) if isinstance(row, list) else row for row in rows)
    found = {
        "test_errors": missed.mean().item() if missed.dim() else int(missed),
        "test_error_percent": 100 * missed.mean().item() / len(test_labels),
        "best_test_error_percent": best,
        "train_error_percent": 100 * train_wrong.item(),
    }
    if missed.dim():
        found["member_test_errors"] = [int(count) for count in missed]
        found["ensemble_test_errors"] = int(metrics.wrong(test_logits.log_softmax(-1).mean(0), test_labels).sum())
    return found


def _shift(config: dict, test_logits: Tensor, test_labels: Tensor, held_logits: Tensor, held_labels: Tensor) -> dict:
    """Errors against the bias shift of ``shift_classes`` (T = 1 logits), the shift chosen in two ways: on cases held
    out of the transfer set, and on the test set as the paper did."""
    classes = config["shift_classes"]
    low, high, step = config["shift_range"]
    shifts = [round(low + i * step, 6) for i in range(round((high - low) / step) + 1)]
    curve = metrics.shift_errors(test_logits, test_labels, classes, shifts)
    held_curve = metrics.shift_errors(held_logits, held_labels, classes, shifts)
    found = {
        "shifts": shifts,
        "shift_test_errors": curve,
        "shift_heldout_errors": held_curve,
        "confusion_before": metrics.confusion(test_logits, test_labels),
    }
    of_class = torch.isin(test_labels, torch.tensor(classes, device=test_labels.device))
    missed = metrics.wrong(test_logits, test_labels)
    found["class_errors"] = int(missed[of_class].sum())
    for choice, errors in (("heldout", held_curve), ("test", curve)):
        shift = metrics.best_shift(errors, shifts)
        shifted = test_logits.clone()
        shifted[:, classes] += shift
        missed = metrics.wrong(shifted, test_labels)
        found |= {
            f"shift_{choice}": shift,
            f"test_errors_shift_{choice}": int(missed.sum()),
            f"test_error_percent_shift_{choice}": 100 * missed.double().mean().item(),
            f"class_errors_shift_{choice}": int(missed[of_class].sum()),
            f"confusion_shift_{choice}": metrics.confusion(shifted, test_labels),
        }
    return found


def _gallery(test_logits: Tensor, images: data.ImageData) -> list[dict]:
    """For each class, the correctly read test digit with the largest second probability: what the teacher knows beyond
    the label. The picture travels with the record, so that the figure needs no data set."""
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
