"""Image data sets as uint8 tensors: MNIST, CIFAR-10, CIFAR-100, and the embedded sets, which need no download.

A data set is one file, ``$KDCORE_DATA/NAME.safetensors`` (``$KDCORE_CACHE/data`` by default), with train_images and
test_images (uint8 [N, C, H, W]), train_labels and test_labels (int64 [N]). It is written once, from torchvision's
download. Every load compares its contents with the fingerprint pinned below, so that nothing trains on a damaged or
different file.
"""

import hashlib
import json
import math
import warnings
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kdcore import paths
from kdcore.data.embedded import EMBEDDED
from kdcore.errors import DataMissing, KdcoreError

# sha256 over the names, shapes and bytes of the four arrays: identifies the data set, part of every trial's id.
FINGERPRINTS = {
    "mnist": "7432af01291590e4d128fd44ee9756d63a73a3a406361db76cafd4b920a01544",
    "cifar10": "257d979b6caa8e58a867231ad2b10dc128935fc558fd400705539a3162545f22",
    "cifar100": "af4cbaaf2bd6054226d6a36120f36337a6025d5742db3b838e6236bc25146180",
    "digits": "be0bc9bf36aef54736b71d3da3808a2e005b5fe20f584ad8dfa09e7ca2049971",
    "colour_digits": "98ca7bb97f0bdebef92adc0c6c38459d1e759354db47b861288fc03fd1e75bb9",
    "digit_pairs": "bf5bf0b2420685e736b5d875d73d5d8c32764ad07148fb7444a46ff46b20b6fe",
}
CIFAR100_CLASSES = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
    forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
    mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
    possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
    sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree
    wolf woman worm
"""
# The number of a class is its position here, as in torchvision's sets (CIFAR-100: the fine labels).
CLASSES = {
    **dict.fromkeys(("mnist", "digits", "colour_digits"), tuple("0123456789")),
    "digit_pairs": tuple(f"{number:02d}" for number in range(100)),
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    "cifar100": tuple(CIFAR100_CLASSES.split()),
}
# Sets that circulate in more than one order; here their order depends on their contents alone.
IN_CANONICAL_ORDER = ("cifar10", "cifar100")
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
    """The pinned fingerprint of a data set; the data need not be here. Raises KdcoreError for an unknown name."""
    if name not in FINGERPRINTS:
        raise KdcoreError(f"unknown data set '{name}': choose one of {', '.join(sorted(FINGERPRINTS))}")
    return FINGERPRINTS[name]


@lru_cache(maxsize=2)
def load(name: str) -> ImageData:
    """Load a data set: "mnist", "cifar10", "cifar100", "digits", "colour_digits" or "digit_pairs".

    The first three are read from the cache, built from a copy in torchvision's layout (``$KDCORE_DATA/MNIST/raw``,
    ``cifar-10-batches-py``, ``cifar-100-python``), or downloaded. A cached CIFAR file that is not in ``canonical`` order is
    sorted once. A damaged file in the cache is moved aside and rebuilt, with a warning. Raises DataMissing if the data cannot
    be found or downloaded, KdcoreError if they are not those of the pinned fingerprint.
    """
    expected, path = fingerprint(name), paths.data() / f"{name}.safetensors"
    if name in EMBEDDED:
        arrays, where, cure = EMBEDDED[name](), "scikit-learn", "install the version that requirements.txt pins"
    elif path.exists() and (arrays := _cached(name, path)):
        return _data(name, arrays)
    else:
        if path.exists():
            warnings.warn(f"{path} is damaged and was moved to {paths.set_aside(path).name}: {name} is rebuilt", stacklevel=1)
        arrays, where = _torchvision(name, path.parent), path.parent
        arrays = canonical(arrays) if name in IN_CANONICAL_ORDER else arrays
        cure = "delete its published files there and run again to download them"
    if (actual := digest(arrays)) != expected:
        raise KdcoreError(
            f"{name} in {where} is not the data set this suite was built on (fingerprint {actual[:12]}, expected {expected[:12]}): {cure}"
        )
    if name not in EMBEDDED:
        _write(path, name, arrays)
    return _data(name, arrays)


def _data(name: str, arrays: dict[str, np.ndarray]) -> ImageData:
    return ImageData(name, *(torch.from_numpy(arrays[key]) for key in ARRAYS), classes=CLASSES[name])


def digest(arrays: dict[str, np.ndarray]) -> str:
    """sha256 hex digest of a data set's contents: names, shapes and bytes of its arrays, in a fixed order."""
    sha = hashlib.sha256()
    for key in ARRAYS:
        array = np.ascontiguousarray(arrays[key])
        sha.update(json.dumps([key, str(array.dtype), array.shape]).encode())
        sha.update(memoryview(array).cast("B"))
    return sha.hexdigest()


def canonical(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same cases, with each split sorted by label and then by the sha256 of the image's bytes."""
    ordered = {}
    for split in ("train", "test"):
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        keys = [(label, hashlib.sha256(image.tobytes()).digest()) for label, image in zip(labels.tolist(), images, strict=False)]
        order = sorted(range(len(keys)), key=keys.__getitem__)
        ordered |= {f"{split}_images": images[order], f"{split}_labels": labels[order]}
    return ordered


def stratified_subset(labels: Tensor, share: float, seed: int) -> Tensor:
    """Sorted case numbers of a random ``share`` (0 < share <= 1) of each class, at least one case per class.

    labels: int64 [N]. With the same seed, a larger share contains every case of a smaller one. Raises ValueError for a share
    out of range.
    """
    if not 0 < share <= 1:
        raise ValueError(f"the share of a subset must be above 0 and at most 1, not {share}")
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    chosen = []
    for label in labels.unique():
        cases = shuffled[labels[shuffled] == label]
        chosen.append(cases[: max(1, math.floor(share * len(cases) + 0.5))])
    return torch.cat(chosen).sort().values


def unlabelled(name: str, sha256: str, side: int = 32) -> Tensor:
    """Load unlabelled images as uint8 [N, 3, side, side]: every image file in or below the folder ``$KDCORE_DATA/NAME``.

    Each is read in colour, cropped to its central square and resized; they are ordered by file name. The result is cached as
    ``NAME.safetensors`` beside the folder, which is not read again. sha256: of the pixels; part of a configuration, so that
    other images make another configuration. Raises KdcoreError if there are no images or their sha256 differs.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load, save

    path, pixels = paths.data() / f"{name}.safetensors", None
    if path.exists():
        try:
            pixels = load(paths.regular(path).read_bytes())["images"]
        except OSError as error:
            raise KdcoreError(f"cannot read {path} ({error.strerror}): make it readable and run the same command again") from error
        except (SafetensorError, KeyError):
            warnings.warn(f"{path} is damaged and was moved to {paths.set_aside(path).name}: the images are read again", stacklevel=1)
    if pixels is None:
        pixels = _pictures(paths.data() / name, side)
        paths.write_bytes(path, save({"images": pixels}))
    actual = hashlib.sha256(memoryview(pixels.numpy()).cast("B")).hexdigest()
    if actual != sha256:
        raise KdcoreError(f"the images in {path} have sha256 {actual}: write that beside their name, or delete the file to read them again")
    return pixels


def _pictures(folder: Path, side: int) -> Tensor:
    from PIL import Image, ImageOps

    pictures = []
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() in (".png", ".jpg", ".jpeg", ".bmp", ".webp"):
            try:
                with Image.open(file) as image:
                    pictures.append(np.asarray(ImageOps.fit(image.convert("RGB"), (side, side))))
            except OSError as error:
                raise KdcoreError(f"{file} cannot be read as an image ({error}): remove it from the folder") from error
    if not pictures:
        raise KdcoreError(f"there is no image file in {folder}: put images there, in any layout of folders")
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


def _cached(name: str, path: Path) -> dict[str, np.ndarray] | None:
    """The arrays of a cached file, in canonical order; None if the file is damaged."""
    from safetensors.numpy import load

    try:
        arrays = load(paths.regular(path).read_bytes())
    except OSError as error:
        raise KdcoreError(f"cannot read {path} ({error.strerror}): make it readable and run the same command again") from error
    except Exception:  # whatever safetensors makes of a broken header
        return None
    if set(arrays) != set(ARRAYS):
        return None
    if digest(arrays) == fingerprint(name):
        return arrays
    if name not in IN_CANONICAL_ORDER or len({len(arrays[key]) for key in ARRAYS}) > 2:
        return None
    arrays = canonical(arrays)
    if digest(arrays) != fingerprint(name):
        return None
    with suppress(KdcoreError):  # if the folder cannot be written, every load only has to sort again
        _write(path, name, arrays)
    return arrays


def _write(path: Path, name: str, arrays: dict[str, np.ndarray]) -> None:
    from safetensors.numpy import save

    paths.write_bytes(path, save(arrays, {"classes": json.dumps(CLASSES[name])}))


def _torchvision(name: str, root: Path) -> dict[str, np.ndarray]:
    from torchvision import datasets  # slow to import, and needed only once per cache

    source, layout = {
        "mnist": (datasets.MNIST, "MNIST/raw/*.gz"),
        "cifar10": (datasets.CIFAR10, "cifar-10-batches-py"),
        "cifar100": (datasets.CIFAR100, "cifar-100-python"),
    }[name]
    arrays = {}
    try:
        for split, train in (("train", True), ("test", False)):
            cases = source(str(root), train=train, download=True)
            pixels = torch.as_tensor(cases.data)  # MNIST [N, 28, 28], CIFAR [N, 32, 32, 3]
            pixels = pixels.unsqueeze(1) if pixels.dim() == 3 else pixels.permute(0, 3, 1, 2)
            arrays[f"{split}_images"] = pixels.contiguous().numpy()
            arrays[f"{split}_labels"] = np.asarray(cases.targets, np.int64)
    except (RuntimeError, OSError, ValueError, EOFError) as error:
        damaged = "".join(f"; {path} is damaged and was moved to {aside.name}" for path, aside in _set_aside_damaged(source, root))
        raise DataMissing(
            f"{name} is not in {root}{damaged} and could not be downloaded ({str(error).splitlines()[0].rstrip(':')}): connect to the "
            f"network, or set KDCORE_DATA to a folder that holds {layout} or {name}.safetensors"
        ) from error
    return arrays


def _set_aside_damaged(source, root: Path) -> list[tuple[Path, Path]]:
    """Move aside published files whose MD5 is wrong, which torchvision reports as missing; return (file, new path) of each."""
    from torchvision.datasets.utils import check_integrity

    files = [(root / "MNIST" / "raw" / file, md5) for file, md5 in getattr(source, "resources", [])]
    lists = (*getattr(source, "train_list", []), *getattr(source, "test_list", []))
    files += [(root / source.base_folder / file, md5) for file, md5 in lists]
    return [(path, paths.set_aside(path)) for path, md5 in files if path.exists() and not check_integrity(str(path), md5)]
