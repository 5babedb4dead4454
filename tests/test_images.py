"""What trials on images share: data, views, evaluation, metrics, the frozen teacher."""

import numpy as np
import pytest
import torch

from kdcore import data
from kdcore.data.images import ImageData
from kdcore.data.preprocess import global_contrast_normalise
from kdcore.models import create
from kdcore.papers import images as shared
from kdcore.papers.images import EVALUATED, ImageTrial, piecewise, spread
from kdcore.training import Context


class Says(torch.nn.Module):
    """Logits by the first pixel of the image alone: class = its red value."""

    def forward(self, x):
        return torch.nn.functional.one_hot((255 * x[:, 0, 0, 0]).round().long() % 10, 10).float()


@pytest.fixture
def trial(monkeypatch):
    """Two test images of seven and one training image of four are read wrongly by ``Says``."""
    images = torch.zeros(11, 3, 32, 32, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0])
    labels = torch.tensor([0, 1, 2, 9, 4, 5, 6, 7, 0, 0, 0])
    monkeypatch.setattr(data, "load", lambda name: ImageData(name, images[:4], labels[:4], images[4:], labels[4:], tuple("0123456789")))
    config = {"data": "cifar10", "augmentation": {"pad": 2}, "batch_size": 2, "normalisation": {"mean": [0.0] * 3, "std": [1.0] * 3}}
    return ImageTrial(config, Context())


def test_measured_by_hand(trial):
    assert trial.test_error(Says())["test_error_percent"].item() == pytest.approx(200 / 7)
    history = [{"test_error_percent": 50.0}, {"test_error_percent": 10.0}, {"test_error_percent": 200 / 7}]
    measures = {
        "test_errors": 2,
        "test_error_percent": pytest.approx(200 / 7),
        "test_accuracy_percent": pytest.approx(500 / 7),
        "best_test_error_percent": 10.0,
        "train_error_percent": 25.0,
    }
    assert trial.measure(Says(), history) == measures
    # ten classes are all that there are
    assert trial.measure(Says(), history, top=10) == measures | {"top10_error_percent": 0.0}
    assert trial.measure(Says(), history, top=1) == measures | {"top1_error_percent": pytest.approx(200 / 7)}


def test_logits_do_not_depend_on_how_many_go_at_a_time(trial, monkeypatch):
    net = trial.network("resnet_8", 0).train()
    whole = trial.logits(net, trial.test_views)
    assert whole.shape == (7, 10) and not whole.requires_grad and not net.training
    monkeypatch.setitem(EVALUATED, "cpu", 3)
    assert torch.allclose(trial.logits(net, trial.test_views), whole, atol=1e-5)


def test_cases_that_are_spread_are_of_all_classes_alike():
    assert spread(10, 3).tolist() == [0, 3, 6, 9] and spread(7, 10).tolist() == list(range(7))
    labels = torch.arange(10).repeat_interleave(1000)  # as CIFAR lies
    assert torch.bincount(labels[spread(len(labels), 1000)]).tolist() == [100] * 10
    assert labels[spread(len(labels), 3)].tolist() == [0, 3, 6, 9]


def test_an_epoch_leaves_out_the_last_smaller_batch(trial):
    trial.config = trial.config | {"batch_size": 3}
    index = trial.indices(torch.Generator().manual_seed(0))
    assert index.shape == (1, 3, 3) and len(set(index[0, :, 0].tolist())) == 3
    assert {row[0] for seed in range(20) for row in trial.indices(torch.Generator().manual_seed(seed))[0].tolist()} == {0, 1, 2, 3}
    trial.config = trial.config | {"batch_size": 9}
    assert trial.indices(torch.Generator().manual_seed(0))[0, :, 0].sort().values.tolist() == [0, 1, 2, 3], "fewer are one batch"


def test_normalisation_is_that_of_the_training_set(trial):
    assert trial.test_views.normalisation[0].sum() == 0
    own = ImageTrial(trial.config | {"normalisation": None}, Context())
    everything = own.views(own.views.plain(torch.arange(4)))
    assert torch.allclose(everything[:, 0].mean(), torch.tensor(0.0), atol=1e-4)
    assert torch.allclose(everything[:, 0].std(unbiased=False), torch.tensor(1.0), atol=1e-3)


def test_a_teacher_is_frozen_and_has_weights(trial):
    saved = create("resnet_8").reset(7).state_dict()
    teacher = trial.frozen("resnet_8", saved)
    assert not teacher.training and not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(torch.equal(teacher.state_dict()[key], saved[key]) for key in saved)
    with pytest.raises(ValueError, match="the teacher resnet_8 has no weights"):
        trial.frozen("resnet_8", None)
    assert not ImageTrial(trial.config, Context(rehearsal=True)).frozen("resnet_8", None).training


def test_whitened_images(monkeypatch):
    """GCN and ZCA of the training images alone; a border is put round the whitened image."""
    images = torch.randint(256, (40, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(40) % 10
    monkeypatch.setattr(data, "load", lambda name: ImageData(name, images[:30], labels[:30], images[30:], labels[30:], tuple("0123456789")))
    shared._whitening.cache_clear()
    config = {"data": "x", "augmentation": {"pad": 1, "flip": True}, "normalisation": "whitened", "batch_size": 2}
    seen = ImageTrial(config, Context())
    shared._whitening.cache_clear()
    x = global_contrast_normalise(images).double().flatten(1)
    centred = x[:30] - x[:30].mean(0)
    u, s, v = np.linalg.svd(centred.numpy(), full_matrices=True)
    scale = np.full(48, 0.1)
    scale[: len(s)] += s**2 / 30
    expected = (x - x[:30].mean(0)).numpy() @ (v.T / np.sqrt(scale)) @ v
    everything = seen.test_views(seen.test_views.plain(torch.arange(10))).flatten(1).numpy()
    assert np.allclose(everything, expected[30:], atol=1e-3)
    corner = seen.views(torch.tensor([[4, 0, 0, 0], [4, 1, 1, 1]]))
    assert (corner[0, :, 0] == 0).all() and (corner[0, :, :, 0] == 0).all()
    assert np.allclose(corner[1].flip(-1).flatten().numpy(), expected[4], atol=1e-3)


def test_a_share_of_each_class(monkeypatch):
    images = torch.zeros(48, 3, 32, 32, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(48)
    labels = torch.arange(48) % 4
    monkeypatch.setattr(data, "load", lambda name: ImageData(name, images[:40], labels[:40], images[40:], labels[40:], tuple("0123")))
    config = {"data": "x", "augmentation": {}, "normalisation": {"mean": [0.0] * 3, "std": [1.0] * 3}, "batch_size": 2, "share": 0.5}
    part, same, other = ImageTrial(config, Context()), ImageTrial(config, Context()), ImageTrial(config, Context(seed=1))
    assert part.train_labels.bincount().tolist() == [5, 5, 5, 5] and len(part.test_labels) == 8
    pixels = [seen.views(seen.views.plain(torch.arange(20)))[:, 0, 0, 0].mul(255).round().long() for seen in (part, same, other)]
    assert torch.equal(pixels[0] % 4, part.train_labels) and torch.equal(pixels[0], pixels[1]) and not torch.equal(pixels[0], pixels[2])
    assert len(part.indices(torch.Generator().manual_seed(0))) == 10
    some = part.indices(torch.Generator().manual_seed(0), torch.tensor([3, 7, 11]))
    assert some.shape == (1, 2, 3) and {3, 7, 11} > set(some[0, :, 0].tolist())


def test_piecewise():
    rate, steps = piecewise([0.1, 0.01, 0.001], [4, 6, 8])
    assert steps == 8
    assert [rate(step)["lr"] for step in range(8)] == [0.1] * 4 + [0.01] * 2 + [0.001] * 2
    rate, steps = piecewise([0.1, 0.01], [400, 1000], 0.005)
    assert [rate(step)["lr"] for step in range(steps)] == [0.1] * 2 + [0.01] * 3
    # a length that rounds to nothing is skipped
    rate, steps = piecewise([0.1, 0.01], [1, 100], 0.02)
    assert [rate(step)["lr"] for step in range(steps)] == [0.01] * 2
