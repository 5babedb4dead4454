"""Data: the embedded sets, the cache, torchvision's layouts, damage, the canonical order, subsets."""

import gzip
import hashlib
import json
import pickle
import struct
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image

from kdcore import data, paths
from kdcore.data import embedded, images
from kdcore.errors import DataMissing, KdcoreError


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


def test_damaged_truncated_and_foreign_data_are_moved_aside_and_made_anew(monkeypatch):
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
        content = path.read_bytes()
        monkeypatch.setattr(images, "_torchvision", lambda *_: arrays)
        with pytest.warns(
            UserWarning, match=r"mnist.safetensors is damaged and was moved to mnist.safetensors.damaged.*: mnist is rebuilt"
        ):
            loaded = data.load("mnist")
        assert np.array_equal(loaded.train_images.numpy(), arrays["train_images"])
        assert content in [aside.read_bytes() for aside in path.parent.glob("mnist.safetensors.damaged*")]
    assert len(list(path.parent.glob("*.damaged*"))) == 3, "none is written over"


def test_truncated_download_is_one_sentence(monkeypatch):
    import torchvision

    def fail(*_, **__):
        raise RuntimeError("Error downloading train-images:\nTried a mirror")

    monkeypatch.setattr(torchvision.datasets, "MNIST", fail)
    with pytest.raises(KdcoreError, match="could not be downloaded.*KDCORE_DATA") as caught:
        data.load("mnist")
    assert "\n" not in str(caught.value)
    assert not (paths.data() / "mnist.safetensors").exists()


def test_unknown_data_set():
    with pytest.raises(
        KdcoreError, match="unknown data set 'emnist': choose one of cifar10, cifar100, colour_digits, digit_pairs, digits, mnist"
    ):
        data.load("emnist")


SHAPES = {"cifar10": ("cifar-10-batches-py", 10), "cifar100": ("cifar-100-python", 100)}


def tiny_cifar(name):
    """Two training cases and one test case of each class, in no order."""
    rng = np.random.default_rng(1)
    classes = SHAPES[name][1]
    return {
        "train_images": rng.integers(0, 256, (2 * classes, 3, 32, 32), dtype=np.uint8),
        "train_labels": rng.permutation(2 * classes) % classes,
        "test_images": rng.integers(0, 256, (classes, 3, 32, 32), dtype=np.uint8),
        "test_labels": rng.permutation(classes),
    }


def write_batches(name, arrays, monkeypatch):
    """CIFAR in the format of its own page: pickled dicts, an image one row of 3,072 bytes. torchvision is told their MD5."""
    import torchvision

    folder = paths.data() / SHAPES[name][0]
    folder.mkdir(parents=True)
    source = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[name]
    batches = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
    labels_key, names_key, meta = "labels", "label_names", "batches.meta"
    if name == "cifar100":
        batches, labels_key, names_key, meta = {"train": ["train"], "test": ["test"]}, "fine_labels", "fine_label_names", "meta"
    sums = {}

    def write(file, content):
        (folder / file).write_bytes(pickle.dumps(content))
        sums[file] = hashlib.md5((folder / file).read_bytes()).hexdigest()

    for split, files in batches.items():
        pixels = np.array_split(arrays[f"{split}_images"].reshape(-1, 3072), len(files))
        labels = np.array_split(arrays[f"{split}_labels"], len(files))
        for file, rows, numbers in zip(files, pixels, labels, strict=True):
            write(file, {"data": rows, labels_key: numbers.tolist(), "coarse_labels": [0] * len(numbers)})
        monkeypatch.setattr(source, f"{split}_list", [[file, sums[file]] for file in files])
    write(meta, {names_key: list(images.CLASSES[name])})
    monkeypatch.setattr(source, "meta", {"filename": meta, "key": names_key, "md5": sums[meta]})
    return folder


def in_order(arrays):
    """The canonical order of the tiny sets, sorted as text."""
    result = {}
    for split in ("train", "test"):
        cases = list(zip(arrays[f"{split}_labels"].tolist(), arrays[f"{split}_images"], strict=True))
        cases.sort(key=lambda case: f"{case[0]:03d}" + hashlib.sha256(case[1].tobytes()).hexdigest())
        result[f"{split}_labels"] = np.array([label for label, _ in cases])
        result[f"{split}_images"] = np.stack([image for _, image in cases])
    return result


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_comes_from_torchvisions_layout_in_canonical_order(name, monkeypatch):
    from safetensors import safe_open

    arrays = tiny_cifar(name)
    expected = in_order(arrays)
    monkeypatch.setitem(images.FINGERPRINTS, name, images.digest(expected))
    write_batches(name, arrays, monkeypatch)
    loaded = data.load(name)
    for key in images.ARRAYS:
        assert np.array_equal(getattr(loaded, key).numpy(), expected[key])
    assert loaded.train_images.dtype == torch.uint8 and loaded.train_labels.dtype == torch.int64
    cached = paths.data() / f"{name}.safetensors"
    with safe_open(cached, "np") as file:
        assert tuple(json.loads(file.metadata()["classes"])) == loaded.classes
    written = cached.stat().st_mtime_ns
    data.load.cache_clear()
    data.load(name)
    assert cached.stat().st_mtime_ns == written, "converted once"


@pytest.mark.parametrize("damage", ["flip", "truncate", "lack"])
def test_a_damaged_cifar_batch_is_refused(damage, monkeypatch):
    from torchvision.datasets import cifar

    def offline(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr(cifar, "download_and_extract_archive", offline)
    arrays = tiny_cifar("cifar10")
    monkeypatch.setitem(images.FINGERPRINTS, "cifar10", images.digest(in_order(arrays)))
    batch = write_batches("cifar10", arrays, monkeypatch) / "data_batch_3"
    content = bytearray(batch.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        batch.write_bytes(content)
    elif damage == "truncate":
        batch.write_bytes(content[:-100])
    else:
        batch.unlink()
    told = "" if damage == "lack" else "data_batch_3 is damaged and was moved to data_batch_3.damaged"
    with pytest.raises(KdcoreError, match=f"{told}.*could not be downloaded.*cifar-10-batches-py or cifar10.safetensors") as caught:
        data.load("cifar10")
    assert "\n" not in str(caught.value) and batch.with_name("data_batch_3.damaged").exists() == (damage != "lack")
    assert not (paths.data() / "cifar10.safetensors").exists()


def test_a_cifar_file_in_another_order_is_put_in_order_once(monkeypatch):
    from safetensors.numpy import load_file, save_file

    arrays = tiny_cifar("cifar10")
    expected = in_order(arrays)
    monkeypatch.setitem(images.FINGERPRINTS, "cifar10", images.digest(expected))
    path = paths.data() / "cifar10.safetensors"
    path.parent.mkdir(parents=True)
    save_file(arrays, path)
    assert np.array_equal(data.load("cifar10").test_images.numpy(), expected["test_images"])
    rewritten = load_file(path)
    assert all(np.array_equal(rewritten[key], expected[key]) for key in images.ARRAYS)
    assert [file.name for file in path.parent.iterdir()] == [path.name], "no temporary file stays"

    # where the folder cannot be written the data serve all the same
    def refuse(*_):
        raise KdcoreError("cannot write")

    save_file(arrays, path)
    monkeypatch.setattr(paths, "write_atomically", refuse)
    data.load.cache_clear()
    assert np.array_equal(data.load("cifar10").train_labels.numpy(), expected["train_labels"])


@pytest.mark.parametrize("damage", ["pixel", "label", "missing case", "truncate"])
def test_a_damaged_cifar_file_is_never_used_and_kept(damage, monkeypatch):
    from safetensors.numpy import save_file

    arrays = tiny_cifar("cifar10")
    monkeypatch.setitem(images.FINGERPRINTS, "cifar10", images.digest(in_order(arrays)))
    path = paths.data() / "cifar10.safetensors"
    path.parent.mkdir(parents=True)
    if damage == "pixel":
        arrays["train_images"][7, 1, 3, 3] ^= 1
    elif damage == "label":
        arrays["train_labels"][[0, 1]] = arrays["train_labels"][[1, 0]]
        assert arrays["train_labels"][0] != arrays["train_labels"][1]
    elif damage == "missing case":
        arrays["test_images"] = arrays["test_images"][:-1]
    save_file(arrays, path)
    if damage == "truncate":
        path.write_bytes(path.read_bytes()[:-1000])
    content = path.read_bytes()
    monkeypatch.setattr(images, "_torchvision", lambda *_: (_ for _ in ()).throw(DataMissing("no network")))
    with pytest.raises(DataMissing, match="no network"), pytest.warns(UserWarning, match="cifar10.safetensors is damaged"):
        data.load("cifar10")
    assert path.with_name("cifar10.safetensors.damaged").read_bytes() == content and not path.exists()


def test_class_names():
    assert images.CLASSES.keys() == images.FINGERPRINTS.keys()
    assert images.CLASSES["cifar10"][3] == "cat" and images.CLASSES["cifar10"][9] == "truck"
    fine = images.CLASSES["cifar100"]
    assert len(fine) == len(set(fine)) == 100 and list(fine) == sorted(fine), "the fine labels are numbered by the alphabet"
    # the first superclasses of CIFAR-100's page
    assert {"beaver", "dolphin", "otter", "seal", "whale", "aquarium_fish", "flatfish", "ray", "shark", "trout"} < set(fine)
    assert images.CLASSES["digit_pairs"][7] == "07"


@pytest.mark.parametrize("name, train, test, classes", [("colour_digits", 1437, 360, 10), ("digit_pairs", 5000, 1000, 100)])
def test_embedded_colour_sets(name, train, test, classes):
    result = data.load(name)  # compared with its pinned fingerprint
    assert result.train_images.shape == (train, 3, 32, 32) and result.test_images.shape == (test, 3, 32, 32)
    assert result.train_images.dtype == torch.uint8 and result.train_labels.dtype == torch.int64
    counts = result.test_labels.bincount(minlength=classes)
    assert len(counts) == len(result.classes) == classes and counts.min() > 0
    channels = result.train_images.double().mean((2, 3))
    assert (channels - channels.mean(1, keepdim=True)).abs().mean() > 10, "coloured"


def test_colour_digits_show_their_digits():
    """Where a stroke stands the picture departs from its ground by the contrast: taken back, the digit's ink appears."""
    grey, colour = data.load("digits"), data.load("colour_digits")
    assert torch.equal(grey.train_labels, colour.train_labels)
    pixels = colour.train_images[:200].double()
    ground = pixels[..., [0, 1, 2, 29, 30, 31]].median(-1).values.median(-1).values  # the margin holds no stroke
    departure = (pixels - ground[..., None, None]).abs().mean(1)
    similar = 0
    for picture, digit in zip(departure, grey.train_images[:200, 0, 4:24, 4:24].double(), strict=True):
        windows = picture[4:28, 4:28].unfold(0, 20, 1).unfold(1, 20, 1).reshape(-1, 400)
        similar += torch.corrcoef(torch.cat([digit.reshape(1, 400), windows]))[0, 1:].max().item() > 0.8
    assert similar > 190


def test_pairs_never_share_digits_between_train_and_test(monkeypatch):
    """With ink that names the digit instead of showing it, every pair tells which digits it is made of."""
    split = embedded._digits_by_split()
    names = {name: np.arange(len(small)) + (0 if name == "train" else embedded.TRAIN_DIGITS) for name, (small, _) in split.items()}
    labels = np.concatenate([split["train"][1], split["test"][1]])
    monkeypatch.setattr(embedded, "_digits_by_split", lambda: {name: (names[name], split[name][1]) for name in names})
    monkeypatch.setattr(embedded, "_ink", lambda cases, height, width: np.broadcast_to(cases[:, None, None], (len(cases), height, width)))
    kept = {}
    monkeypatch.setattr(embedded, "_place", lambda canvas, pictures, *_: kept.setdefault(len(canvas), []).append(pictures[:, 0, 0]))
    made = embedded.digit_pairs()
    (train_left, train_right), (test_left, test_right) = kept[5000], kept[1000]
    assert not {*train_left, *train_right} & {*test_left, *test_right}
    assert np.array_equal(10 * labels[train_left] + labels[train_right], made["train_labels"])
    assert np.array_equal(10 * labels[test_left] + labels[test_right], made["test_labels"])
    assert set(np.bincount(made["train_labels"])) == {50} and set(np.bincount(made["test_labels"])) == {10}
    assert len({*train_left, *train_right}) > 1300, "nearly every training digit is used"


def test_stratified_subsets():
    labels = torch.arange(5000).repeat_interleave(10)[torch.randperm(50_000, generator=torch.Generator().manual_seed(9))] % 10
    subsets = {share: data.stratified_subset(labels, share, seed=3) for share in (0.001, 0.01, 0.1, 0.25, 1)}
    for share, cases in subsets.items():
        assert labels[cases].bincount().tolist() == [round(5000 * share)] * 10
        assert torch.equal(cases, cases.unique()), "sorted, no case twice"
    for small, large in zip(list(subsets.values()), list(subsets.values())[1:], strict=False):
        assert torch.isin(small, large).all(), "a larger share holds the smaller one"
    assert torch.equal(subsets[0.1], data.stratified_subset(labels, 0.1, seed=3))
    assert not torch.equal(subsets[0.1], data.stratified_subset(labels, 0.1, seed=4))
    uneven = torch.tensor([0] * 3 + [1] * 400)
    assert uneven[data.stratified_subset(uneven, 0.01, seed=0)].tolist() == [0, 1, 1, 1, 1], "at least one of each class"
    for share in (0, 1.5, -0.1):
        with pytest.raises(ValueError, match="must be above 0 and at most 1"):
            data.stratified_subset(labels, share, seed=0)


@pytest.fixture
def folder(own_cache):
    pictures = own_cache / "data" / "holiday"
    (pictures / "sea").mkdir(parents=True)
    Image.new("RGB", (64, 32), (10, 20, 30)).save(pictures / "b.png")
    Image.new("L", (50, 50), 200).save(pictures / "sea" / "c.png")
    (pictures / "notes.txt").write_text("no picture")
    return pictures


def sha256_told(name="holiday") -> str:
    with pytest.raises(KdcoreError, match="write that beside their name") as caught:
        images.unlabelled(name, "unknown")
    return str(caught.value).partition("sha256 ")[2].partition(":")[0]


def test_any_folder_of_pictures(folder):
    sha256 = sha256_told()
    pictures = images.unlabelled("holiday", sha256)
    assert pictures.shape == (2, 3, 32, 32) and pictures.dtype == torch.uint8
    assert [picture.flatten(1)[:, 0].tolist() for picture in pictures] == [[10, 20, 30], [200, 200, 200]], "in order of their names"
    folder.with_suffix(".safetensors").write_bytes(b"torn")
    assert torch.equal(images.unlabelled("holiday", sha256), pictures), "a damaged copy is made anew"
    assert folder.with_suffix(".safetensors.damaged").read_bytes() == b"torn"
    (folder / "b.png").unlink()
    assert torch.equal(images.unlabelled("holiday", sha256), pictures), "read once"
    folder.with_suffix(".safetensors").write_bytes(b"torn")
    with pytest.raises(KdcoreError, match="write that beside their name, or delete the file"):
        images.unlabelled("holiday", sha256)
    folder.with_suffix(".safetensors").unlink()
    assert sha256_told() != sha256, "other pictures are another configuration"


def test_no_pictures(folder):
    with pytest.raises(KdcoreError, match="there is no image file in .*nowhere"):
        images.unlabelled("nowhere", "")
    (folder / "d.jpg").write_bytes(b"torn")
    with pytest.raises(KdcoreError, match="d.jpg cannot be read as an image"):
        images.unlabelled("holiday", "")
