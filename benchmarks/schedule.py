"""How long must a net train? ``python -m benchmarks.schedule hinton_mnist --arm cumbersome --epochs 250 500 1000 --save``

Trains an arm with several lengths on part of the training images and counts its errors on the others, which take the place of the
test set for teacher and student alike: the real one is never looked at. The sheet's length is one whose doubling gains next to
nothing. Nothing goes to results/; interrupted training continues.
"""

import argparse
import contextlib
import dataclasses
import sys
from datetime import UTC, datetime
from unittest import mock

import torch

from benchmarks.__main__ import RESULTS, save
from kdcore import data, papers, paths
from kdcore.data import ImageData
from kdcore.errors import KdcoreError
from kdcore.training import Context, seed_of


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.schedule", description="Held-out errors against the length of training.")
    parser.add_argument("paper", help="a paper on images")
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
        with held_out(options.held_out, options.seed):
            errors = {epochs: errors_after(options, epochs) for epochs in options.epochs}
    except KdcoreError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    if options.save:
        about = {key: value for key, value in vars(options).items() if key not in ("epochs", "save")}
        when = datetime.now(UTC).isoformat(timespec="seconds")
        save({"when": when, "benchmark": "schedule"} | about | {"errors": errors})
    return 0


@contextlib.contextmanager
def held_out(count: int, seed: int):
    """Every image set loses ``count`` of its training images, which become its test set."""
    load = data.load

    def split(name: str) -> ImageData:
        images = load(name)
        order = torch.randperm(len(images.train_labels), generator=torch.Generator().manual_seed(seed_of(seed, "held out")))
        held, rest = order[:count], order[count:].sort().values
        return dataclasses.replace(
            images,
            train_images=images.train_images[rest],
            train_labels=images.train_labels[rest],
            test_images=images.train_images[held],
            test_labels=images.train_labels[held],
        )

    with mock.patch.object(data, "load", split):
        yield


def errors_after(options: argparse.Namespace, epochs: int) -> int:
    """Train, and return the errors on the held-out images."""
    weights, teacher = None, papers.get(options.paper).config(options.budget, options.arm)["teacher"]
    if teacher is not None:
        if options.teacher_epochs is None:
            raise KdcoreError(f"'{options.arm}' has a teacher: give its length with --teacher-epochs")
        weights = _trained(options, teacher, options.teacher_epochs)["weights"]
    measures = _trained(options, options.arm, epochs, weights)["metrics"]
    count, rest = measures["test_errors"], measures["train_error_percent"]
    where = f"{options.arm}, seed {options.seed}, {epochs} epochs"
    print(f"{where}: {count} of {options.held_out} held-out images wrong, {rest:.2f} % of the rest")
    return count


def _trained(options: argparse.Namespace, arm: str, epochs: int, weights: dict | None = None) -> dict:
    """The result of a trial of another length, which keeps no record."""
    paper = papers.get(options.paper)
    trial = paper.trial(options.budget, arm, options.seed)
    what = f"{trial.data}, {options.held_out} held out" + (f", teacher of {options.teacher_epochs} epochs" if weights else "")
    trial = dataclasses.replace(trial, config=trial.config | {"epochs": epochs}, data=what)
    context = Context(options.device, paper.precision(options.device), options.seed, paths.cache() / "schedule" / trial.id)
    return paper.prepare([trial], context, weights).train(context)[0]


if __name__ == "__main__":
    sys.exit(main())
