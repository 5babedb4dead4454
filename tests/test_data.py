"""Data: the embedded digits, the cache, torchvision's layout, damage, jitter."""

import gzip
import hashlib
import struct

import numpy as np
import pytest
import torch

from kdcore import data, paths
from kdcore.data import images
from kdcore.data.augment import Views
from kdcore.errors import KdcoreError


@pytest.fixture(autouse=True)
def fresh():
    data.load.cache_clear()
    yield
    data.load.cache_clear()


def test_digits_are_real_and_split_once():
    digits = data.load("digits")
    assert digits.train_images.shape == (1437, 1, 28, 28) and digits.test_images.shape == (360, 1, 28, 28)
    assert digits.train_images.dtype == torch.uint8 and digits.train_labels.dtype == torch.int64
    both = torch.cat([digits.train_labels, digits.test_labels])
    # the class counts that scikit-learn's documentation gives for the 1,797 digits
    assert both.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert digits.train_images.max() == 255
    assert digits.train_images[:, :, :4].sum() == 0 and digits.train_images[..., 24:].sum() == 0, "a jitter of 2 px cuts nothing"


def test_digits_keep_their_ink():
    """The mean grey of a bilinear enlargement with full weights equals the original's, apart from the border's share."""
    from sklearn.datasets import load_digits

    small = load_digits().images
    order = np.argsort([hashlib.sha256(str(i).encode()).digest() for i in range(len(small))], kind="stable")
    large = data.load("digits").train_images[:, 0, 4:24, 4:24].numpy() / 255 * 16
    assert np.corrcoef(large.mean((1, 2)), small[order[:1437]].mean((1, 2)))[0, 1] > 0.99
    # pixel (1, 1) of the enlargement lies at (0.1, 0.1) of the original
    s = small[order[:1437]]
    expected = 0.81 * s[:, 0, 0] + 0.09 * (s[:, 0, 1] + s[:, 1, 0]) + 0.01 * s[:, 1, 1]
    assert np.abs(large[:, 1, 1] - expected).max() < 16 / 255 + 1e-9


def tiny_mnist():
    rng = np.random.default_rng(0)
    return {
        "train_images": rng.integers(0, 256, (60, 1, 28, 28), dtype=np.uint8),
        "train_labels": np.arange(60) % 10,
        "test_images": rng.integers(0, 256, (20, 1, 28, 28), dtype=np.uint8),
        "test_labels": np.arange(20) % 10,
    }


def write_idx(folder, arrays):
    """The four files of MNIST, in the format of its own page."""
    folder.mkdir(parents=True)
    for split, prefix in (("train", "train"), ("test", "t10k")):
        pixels, labels = arrays[f"{split}_images"][:, 0], arrays[f"{split}_labels"].astype(np.uint8)
        for name, payload in (
            (f"{prefix}-images-idx3-ubyte", struct.pack(">IIII", 2051, len(pixels), 28, 28) + pixels.tobytes()),
            (f"{prefix}-labels-idx1-ubyte", struct.pack(">II", 2049, len(labels)) + labels.tobytes()),
        ):
            (folder / name).write_bytes(payload)
            (folder / f"{name}.gz").write_bytes(gzip.compress(payload))


def test_mnist_comes_from_torchvisions_layout_and_is_cached(monkeypatch):
    arrays = tiny_mnist()
    monkeypatch.setitem(images.FINGERPRINTS, "mnist", images.digest(arrays))
    write_idx(paths.data() / "MNIST" / "raw", arrays)
    loaded = data.load("mnist")
    assert np.array_equal(loaded.train_images.numpy(), arrays["train_images"])
    assert np.array_equal(loaded.test_labels.numpy(), arrays["test_labels"])
    cached = paths.data() / "mnist.safetensors"
    written = cached.stat().st_mtime_ns
    data.load.cache_clear()
    data.load("mnist")
    assert cached.stat().st_mtime_ns == written, "converted once"


def test_damaged_truncated_and_foreign_data_are_refused(monkeypatch):
    from safetensors.numpy import save_file

    arrays = tiny_mnist()
    monkeypatch.setitem(images.FINGERPRINTS, "mnist", images.digest(arrays))
    path = paths.data() / "mnist.safetensors"
    path.parent.mkdir(parents=True)
    save_file(arrays, path)
    data.load("mnist")
    for damage in ("flip", "truncate", "lack"):
        data.load.cache_clear()
        save_file(arrays, path)
        content = bytearray(path.read_bytes())
        if damage == "flip":
            content[-5] ^= 1
            path.write_bytes(content)
        elif damage == "truncate":
            path.write_bytes(content[: len(content) // 2])
        else:
            save_file({key: value for key, value in arrays.items() if key != "test_labels"}, path)
        with pytest.raises(KdcoreError, match="delete (the file|it) and run again"):
            data.load("mnist")


def test_truncated_download_is_one_sentence(monkeypatch):
    import torchvision

    def fail(*_, **__):
        raise RuntimeError("Error downloading train-images:\nTried a mirror")

    monkeypatch.setattr(torchvision.datasets, "MNIST", fail)
    with pytest.raises(KdcoreError, match="could not be fetched.*KDCORE_DATA") as caught:
        data.load("mnist")
    assert "\n" not in str(caught.value)
    assert not (paths.data() / "mnist.safetensors").exists()


def test_unknown_data_set():
    with pytest.raises(KdcoreError, match="unknown data set 'emnist': choose one of digits, mnist"):
        data.load("emnist")


def test_views_are_shifted_windows():
    picture = torch.zeros(2, 1, 5, 5, dtype=torch.uint8)
    picture[1, 0, 2, 2] = 255
    views = Views(picture, pad=2)
    assert torch.equal(views(torch.tensor([1, 2, 2])), picture[1] / 255)
    # dy = 0 shows the window that begins 2 px above the picture: its content stands 2 px lower
    assert views(torch.tensor([1, 0, 2]))[0].nonzero().tolist() == [[4, 2]]
    assert views(torch.tensor([1, 2, 4]))[0].nonzero().tolist() == [[2, 0]]
    assert views(torch.tensor([[[0, 0, 0], [1, 1, 3]]])).shape == (1, 2, 1, 5, 5)


def test_jitter_covers_the_25_shifts_evenly():
    views = Views(torch.zeros(1, 1, 5, 5, dtype=torch.uint8), pad=2)
    drawn = views.draw(torch.zeros(100, 500, dtype=torch.int64), torch.Generator().manual_seed(0))
    counts = torch.bincount((drawn[..., 1] * 5 + drawn[..., 2]).flatten(), minlength=25)
    assert len(counts) == 25
    chi_square = ((counts - 2000.0) ** 2 / 2000).sum().item()
    assert chi_square < 43  # 99 % quantile of chi-square with 24 degrees of freedom: 42.98
