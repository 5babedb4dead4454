"""Images as uint8 tensors: MNIST, and the embedded digits that need no network.

A data set is one file, ``$KDCORE_DATA/NAME.safetensors`` (``$KDCORE_CACHE/data`` by default), with train_images and
test_images (uint8 [N, C, H, W]), train_labels and test_labels (int64 [N]). It is written once, from torchvision's
download, and every load compares its contents with the fingerprint pinned below, so a damaged or different file is
found before anything trains on it.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from kdcore import paths
from kdcore.errors import KdcoreError

# sha256 over names, shapes and bytes of the four arrays: the data set's identity, part of every trial's id.
FINGERPRINTS = {
    "mnist": "7432af01291590e4d128fd44ee9756d63a73a3a406361db76cafd4b920a01544",
    "digits": "be0bc9bf36aef54736b71d3da3808a2e005b5fe20f584ad8dfa09e7ca2049971",
}
ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")


@dataclass(frozen=True)
class ImageData:
    """One data set: images uint8 [N, C, H, W] in 0..255, labels int64 [N], class names."""

    name: str
    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    classes: tuple[str, ...]


def fingerprint(name: str) -> str:
    """The pinned fingerprint of a data set, known without having the data. Raises KdcoreError for an unknown name."""
    if name not in FINGERPRINTS:
        raise KdcoreError(f"unknown data set '{name}': choose one of {', '.join(sorted(FINGERPRINTS))}")
    return FINGERPRINTS[name]


@lru_cache(maxsize=2)
def load(name: str) -> ImageData:
    """The data set ``name`` ("mnist", "digits").

    MNIST is read from the cache, made from a copy in torchvision's layout (``$KDCORE_DATA/MNIST/raw``), or downloaded.
    Raises KdcoreError when the data cannot be had or are damaged.
    """
    expected = fingerprint(name)
    arrays = _digits() if name == "digits" else _cached(name)
    found = digest(arrays)
    if found != expected:
        where = "scikit-learn" if name == "digits" else paths.data() / f"{name}.safetensors"
        raise KdcoreError(
            f"{name} in {where} is not the data set this suite was built on (fingerprint {found[:12]}, "
            f"expected {expected[:12]}): delete the file and run again to fetch it anew"
        )
    return ImageData(name, *(torch.from_numpy(arrays[key]) for key in ARRAYS), classes=tuple("0123456789"))


def digest(arrays: dict[str, np.ndarray]) -> str:
    """sha256 hex digest of the contents of a data set: names, shapes and bytes of its arrays, in a fixed order."""
    sha = hashlib.sha256()
    for key in ARRAYS:
        array = np.ascontiguousarray(arrays[key])
        sha.update(json.dumps([key, str(array.dtype), array.shape]).encode())
        sha.update(memoryview(array).cast("B"))
    return sha.hexdigest()


def _cached(name: str) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file, save_file

    path = paths.data() / f"{name}.safetensors"
    if not path.exists():
        arrays = _torchvision_mnist(paths.data())
        paths.write_atomically(path, lambda temporary: save_file(arrays, temporary, {"classes": json.dumps(list("0123456789"))}))
    try:
        arrays = load_file(path)
    except (SafetensorError, OSError) as error:
        raise KdcoreError(f"{path} cannot be read ({error}): delete it and run again to fetch it anew") from error
    if missing := [key for key in ARRAYS if key not in arrays]:
        raise KdcoreError(f"{path} lacks {', '.join(missing)}: delete it and run again to fetch it anew")
    return arrays


def _torchvision_mnist(root: Path) -> dict[str, np.ndarray]:
    from torchvision.datasets import MNIST  # slow to import, and needed once in the life of a cache

    arrays = {}
    try:
        for split, train in (("train", True), ("test", False)):
            images = MNIST(str(root), train=train, download=True)
            arrays[f"{split}_images"] = images.data.unsqueeze(1).contiguous().numpy()
            arrays[f"{split}_labels"] = images.targets.numpy().astype(np.int64)
    except (RuntimeError, OSError, ValueError, EOFError) as error:
        raise KdcoreError(
            f"MNIST is not in {root} and could not be fetched ({str(error).splitlines()[0].rstrip(':')}): connect to the "
            f"network, or set KDCORE_DATA to a folder that holds MNIST/raw/*.gz or mnist.safetensors"
        ) from error
    return arrays


def _digits() -> dict[str, np.ndarray]:
    """scikit-learn's 1,797 real handwritten digits, 8x8 -> 28x28, split 1,437 / 360.

    Each digit is enlarged to 20x20 (bilinear) in the middle of 28x28, as MNIST's are, so that a jitter of 2 px never
    cuts a stroke. Integer arithmetic: the same bytes on every machine.
    """
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    # Output pixel i sits at (i + 0.5) * 8/20 - 0.5 = (4i - 3)/10 of the small image: weights are tenths.
    weights = np.zeros((20, 8), np.int64)
    for i in range(20):
        tenths = min(max(4 * i - 3, 0), 70)
        low, rest = divmod(tenths, 10)
        weights[i, low] += 10 - rest
        weights[i, min(low + 1, 7)] += rest
    small = pixels.astype(np.int64).reshape(-1, 8, 8)
    large = weights @ small @ weights.T  # 0 .. 16 * 100
    images = np.zeros((len(small), 1, 28, 28), np.uint8)
    images[:, 0, 4:24, 4:24] = large * 255 // 1600
    # A fixed shuffle: the file is ordered by writer, and the test cases should come from all of them.
    order = np.argsort([hashlib.sha256(str(i).encode()).digest() for i in range(len(images))], kind="stable")
    train, test = order[:1437], order[1437:]
    return {
        "train_images": images[train],
        "train_labels": labels[train].astype(np.int64),
        "test_images": images[test],
        "test_labels": labels[test].astype(np.int64),
    }
