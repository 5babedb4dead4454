"""How long must Hinton's nets train? ``python -m benchmarks.schedule --arm cumbersome --epochs 250 500 1000 --save``

Trains an arm of ``hinton_mnist`` with several lengths on 50,000 training images and counts its errors on the other 10,000. The length
in the sheet is one whose doubling gains fewer than three of these errors. The test set is never looked at. A student's teacher
(``--teacher-epochs``) learns without the held-out images, too. Nothing goes to results/; interrupted training continues.
"""

import argparse
import dataclasses
import sys
from datetime import UTC, datetime

import torch

from benchmarks.__main__ import RESULTS, save
from kdcore import data, metrics, papers, paths
from kdcore.errors import KdcoreError
from kdcore.papers.hinton_mnist.trial import transfer_set
from kdcore.training import Context

PAPER = "hinton_mnist"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.schedule", description="Held-out errors against the length of training.")
    parser.add_argument("--arm", required=True)
    parser.add_argument("--epochs", type=int, nargs="+", required=True)
    parser.add_argument("--teacher-epochs", type=int, help="of the teacher, for a student")
    parser.add_argument("--budget", default="fast")
    parser.add_argument("--held-out", type=int, default=10_000, help="training images to hold out (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--save", action="store_true", help=f"append the outcome to {RESULTS.name}")
    options = parser.parse_args(arguments)
    try:
        errors = {epochs: held_out_errors(options, epochs) for epochs in options.epochs}
    except KdcoreError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    if options.save:
        keys = ("arm", "budget", "seed", "device", "teacher_epochs", "held_out")
        about = {"benchmark": "schedule", "paper": PAPER} | {key: getattr(options, key) for key in keys}
        save({"when": datetime.now(UTC).isoformat(timespec="seconds")} | about | {"errors": errors})
    return 0


def held_out_errors(options: argparse.Namespace, epochs: int) -> int:
    """Train, and return the errors on the held-out training images."""
    paper, weights = papers.get(PAPER), None
    teacher = paper.config(options.budget, options.arm)["teacher"]
    if teacher is not None:
        if options.teacher_epochs is None:
            raise KdcoreError(f"'{options.arm}' has a teacher: give its length with --teacher-epochs")
        weights = _trained(options, teacher, options.teacher_epochs)[0]["weights"]
    result, net = _trained(options, options.arm, epochs, weights)
    images = data.load(paper.config(options.budget, options.arm)["data"])
    _, held = transfer_set(images.train_labels, {"holdout": options.held_out, "keep_classes": None}, options.seed)
    net.eval()
    with torch.no_grad():
        logits = net(images.train_images[held].to(options.device).flatten(1).float().div_(255))
    count = int(metrics.wrong(logits, images.train_labels[held].to(options.device)).sum())
    rest, total = result["metrics"]["train_error_percent"], options.held_out
    print(f"{options.arm}, seed {options.seed}, {epochs} epochs: {count} of {total} held-out images wrong, {rest:.2f} % of the rest")
    return count


def _trained(options: argparse.Namespace, arm: str, epochs: int, weights: dict | None = None) -> tuple[dict, torch.nn.Module]:
    """The result of a trial of another length that holds images out and keeps no record, and its net."""
    paper = papers.get(PAPER)
    trial = paper.trial(options.budget, arm, options.seed)
    taught = {"taught by": options.teacher_epochs} if weights else {}
    trial = dataclasses.replace(trial, config=trial.config | {"epochs": epochs, "holdout": options.held_out}, data=trial.data + str(taught))
    folder = paths.cache() / "schedule" / trial.id
    context = Context(options.device, paper.precision(options.device), options.seed, folder)
    run = paper.prepare([trial], context, weights)
    (result,) = run.train(context)
    return result, run.model.student


if __name__ == "__main__":
    sys.exit(main())
