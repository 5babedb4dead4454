"""Image sets that need no download, made from scikit-learn's 1,797 real handwritten digits, 8x8 with grey levels 0..16.

In every set, 1,437 of these digits serve for training and 360 for testing, after a fixed shuffle: scikit-learn's order is
by writer, and the test set should include all writers. Integer arithmetic and random bytes from SHAKE-256 of the set's name
make the images the same on every machine.
"""

import hashlib

import numpy as np

TRAIN_DIGITS = 1437
PAIRS_PER_CLASS = {"train": 50, "test": 10}


def digits() -> dict[str, np.ndarray]:
    """The digits as grey images [N, 1, 28, 28], 20x20 and centred as in MNIST, so that a shift by 2 px never cuts a stroke."""
    arrays = {}
    for split, (small, labels) in _digits_by_split().items():
        images = np.zeros((len(small), 1, 28, 28), np.uint8)
        images[:, 0, 4:24, 4:24] = _ink(small, 20, 20)
        arrays |= {f"{split}_images": images, f"{split}_labels": labels}
    return arrays


def colour_digits() -> dict[str, np.ndarray]:
    """The digits as colour images [N, 3, 32, 32], 10 classes: 20x20, up to 2 px off centre, on a textured background."""
    arrays = {}
    for split, (small, labels) in _digits_by_split().items():
        offsets = _random_bytes(f"colour_digits {split} offsets", len(small), 2) % 5
        ink = np.zeros((len(small), 32, 32), np.uint8)
        _place(ink, _ink(small, 20, 20), 4 + offsets[:, 0], 4 + offsets[:, 1])
        arrays |= {f"{split}_images": _painted(ink, f"colour_digits {split}"), f"{split}_labels": labels}
    return arrays


def digit_pairs() -> dict[str, np.ndarray]:
    """Pairs of digits side by side as colour images [N, 3, 32, 32]; the class is the two-digit number, 100 classes.

    5,000 training and 1,000 test pairs, balanced; no digit image of a test pair occurs in a training pair.
    """
    arrays = {}
    for split, (small, labels) in _digits_by_split().items():
        large = _ink(small, 20, 13)
        numbers = np.arange(100 * PAIRS_PER_CLASS[split]) % 100
        random = _random_bytes(f"digit_pairs {split}", len(numbers), 4).astype(np.int64)
        cases_of = [np.flatnonzero(labels == label) for label in range(10)]
        ink = np.zeros((len(numbers), 32, 32), np.uint8)
        for side, of_number in enumerate((numbers // 10, numbers % 10)):
            chosen = np.array([cases_of[d][r % len(cases_of[d])] for d, r in zip(of_number, random[:, side], strict=True)])
            _place(ink, large[chosen], 4 + random[:, 2 + side] % 5, np.full(len(numbers), 2 + 15 * side))
        arrays |= {f"{split}_images": _painted(ink, f"digit_pairs {split}"), f"{split}_labels": numbers}
    return arrays


def _digits_by_split() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    from sklearn.datasets import load_digits  # slow to import

    pixels, labels = load_digits(return_X_y=True)
    small, labels = pixels.astype(np.int64).reshape(-1, 8, 8), labels.astype(np.int64)
    order = np.argsort([hashlib.sha256(str(i).encode()).digest() for i in range(len(small))], kind="stable")
    train, test = order[:TRAIN_DIGITS], order[TRAIN_DIGITS:]
    return {"train": (small[train], labels[train]), "test": (small[test], labels[test])}


def _enlarged(small: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear enlargement of the last two axes, multiplied by 4 * height * width so that integers stay integers."""

    def weights(inputs: int, outputs: int) -> np.ndarray:
        # Output pixel i lies at (i + 0.5) * inputs / outputs - 0.5 in the small image, clamped to its outer pixels.
        places = np.clip((2 * np.arange(outputs) + 1) * inputs - outputs, 0, 2 * outputs * (inputs - 1))
        low, rest = np.divmod(places, 2 * outputs)
        matrix = np.zeros((outputs, inputs), np.int32)
        np.add.at(matrix, (np.arange(outputs), low), 2 * outputs - rest)
        np.add.at(matrix, (np.arange(outputs), np.minimum(low + 1, inputs - 1)), rest)
        return matrix

    return weights(small.shape[-2], height) @ small @ weights(small.shape[-1], width).T


def _ink(small: np.ndarray, height: int, width: int) -> np.ndarray:
    """Digits with values 0..16, enlarged to uint8 [N, height, width] with values 0..255."""
    return (_enlarged(small, height, width) * 255 // (16 * 4 * height * width)).astype(np.uint8)


def _place(canvas: np.ndarray, pictures: np.ndarray, tops: np.ndarray, lefts: np.ndarray) -> None:
    """Write picture n into canvas n with its upper left corner at (tops[n], lefts[n])."""
    height, width = pictures.shape[1:]
    rows = (tops[:, None] + np.arange(height))[:, :, None]
    columns = (lefts[:, None] + np.arange(width))[:, None, :]
    canvas[np.arange(len(canvas))[:, None, None], rows, columns] = pictures


def _random_bytes(name: str, *shape: int) -> np.ndarray:
    return np.frombuffer(hashlib.shake_256(name.encode()).digest(int(np.prod(shape))), np.uint8).reshape(shape)


def _painted(ink: np.ndarray, name: str) -> np.ndarray:
    """Paint strokes of ``ink`` (uint8 [N, 32, 32]) in one colour on a cloudy, grainy background of another: uint8 [N, 3, 32, 32].

    Strokes are lighter or darker than their background at random, so that the mean image of a class shows nothing and a
    linear model learns little (15 % accuracy on the colour digits, where a small convolutional net reaches 90 % in seconds).
    """
    count = len(ink)
    colours = _random_bytes(f"{name} colours", count, 7, 1, 1).astype(np.int32)
    ground, contrast, coin = 64 + colours[:, :3] // 2, 80 + colours[:, 3:6] // 4, 2 * (colours[:, 6:] % 2) - 1
    clouds = _enlarged(_random_bytes(f"{name} clouds", count, 3, 5, 5).astype(np.int32) - 128, 32, 32) // (4 * 4 * 32 * 32)  # -32..31
    grain = _random_bytes(f"{name} grain", count, 1, 32, 32).astype(np.int32) // 16 - 8  # -8..7
    paper, stroke = ground + clouds, ground + coin * contrast
    mixed = paper + (stroke - paper) * ink[:, None].astype(np.int32) // 255
    return np.clip(mixed + grain, 0, 255).astype(np.uint8)


EMBEDDED = {"digits": digits, "colour_digits": colour_digits, "digit_pairs": digit_pairs}
