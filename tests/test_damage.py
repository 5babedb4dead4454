"""Random bits flipped in what later trials build on: noticed each time, named in one sentence, moved aside, and never used.

``KDCORE_FLIPS`` is how many for each of the four kinds of file; ``make damage`` takes 250.
"""

import os
import random

import pytest
import torch
from torch import nn

from kdcore import papers, paths
from kdcore.errors import KdcoreError
from kdcore.models import MLP
from kdcore.training import Checkpoint, Context, Stage, fit
from kdcore.trials.record import record
from kdcore.trials.store import Store
from kdcore.trials.weights import load_weights, save_weights, weights_path

FLIPS = int(os.environ.get("KDCORE_FLIPS", "25"))


def places(content: bytes, first: int, end: int, seed: str) -> list[int]:
    """Random bits of the bytes ``first`` to ``end``, each once."""
    return random.Random(seed).sample(range(8 * first, 8 * end), min(FLIPS, 8 * (end - first)))


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def header(content: bytes) -> int:
    """Where the tensors of a safetensors file begin."""
    return 8 + int.from_bytes(content[:8], "little")


def test_a_flipped_bit_in_a_teachers_weights_is_noticed():
    tensors = {"logits": torch.randn(3, 20, 10), "labels": torch.arange(20), "mean": torch.tensor(0.5)}
    save_weights("0" * 12, tensors, "a processor")
    path = weights_path("0" * 12)
    whole = path.read_bytes()
    for bit in places(whole, 0, len(whole), "weights"):
        path.write_bytes(flipped(whole, bit))
        with pytest.raises(KdcoreError, match=f"{path} is damaged .* and was moved to {path.name}.damaged") as caught:
            load_weights("0" * 12)
        assert "\n" not in str(caught.value) and not path.exists()
        path.with_name(path.name + ".damaged").unlink()
    path.write_bytes(whole)
    assert all(torch.equal(value, tensors[key]) for key, value in load_weights("0" * 12).items())


def test_the_weights_of_another_trial_are_refused():
    save_weights("0" * 12, {"w": torch.zeros(3)})
    os.rename(weights_path("0" * 12), weights_path("1" * 12))
    with pytest.raises(KdcoreError, match="it belongs to another trial"):
        load_weights("1" * 12)


def trained(folder, words: list[str]) -> tuple[list[dict], list[list[float]]]:
    """A small run of three epochs: its history, and its weights."""
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    net = MLP((4, 5, 2)).reset([1])
    stage = Stage(
        "train",
        epochs=3,
        indices=lambda generator: torch.randperm(20, generator=generator).view(2, 10),
        loss=lambda index: nn.functional.cross_entropy(net(x[index]), (x[index, 0] > 0).long()),
        schedule=lambda epoch: {"lr": 0.1},
        optimiser={"momentum": 0.9},
    )
    history = fit(net, [stage], dict, Context(checkpoint=folder, say=words.append))
    return history, [p.detach().flatten().tolist() for p in net.parameters()]


@pytest.mark.parametrize("part", ["tensors", "metadata"])
def test_a_flipped_bit_in_a_checkpoint_starts_the_trial_over(tmp_path, part):
    folder = tmp_path / "cohort"
    expected = trained(folder, [])
    path = folder / "state.safetensors"
    whole = path.read_bytes()
    first, end = (header(whole), len(whole)) if part == "tensors" else (0, header(whole))
    aside = path.with_name(path.name + ".damaged")
    for bit in places(whole, first, end, part):
        path.write_bytes(flipped(whole, bit))
        words: list[str] = []
        if bit % 50:
            assert Checkpoint(folder, words.append).load(MLP((4, 5, 2)).reset([1])) == ([], {}, {})
        else:  # the whole way, of which the loading is the part that can go wrong
            assert trained(folder, words) == expected
        assert len(words) == 1 and str(path) in words[0] and words[0].endswith("moved to state.safetensors.damaged: the trial starts over")
        aside.unlink()
    path.write_bytes(whole)
    words = []
    assert trained(folder, words) == expected and not words


def test_a_flipped_bit_in_a_record_is_noticed(tmp_path):
    store, trial = Store(tmp_path), papers.get("hinton_mnist").trial("fast", "small", 0)
    cost = {"seconds": 1.0, "cpu_seconds": 1.0, "peak_memory_mb": 1.0, "device": "cpu"}
    rows = [{"stage": "train", "epoch": epoch, "loss": 1 / epoch} for epoch in range(1, 20)]
    store.put(record(trial, "done", {"metrics": {"test_errors": 150, "confusion": [[1, 2], [3, 4]]}, "history": rows}, cost, "float32"))
    path = store.path(trial)
    whole = path.read_bytes()
    for bit in places(whole, 0, len(whole), "record"):
        path.write_bytes(flipped(whole, bit))
        with pytest.raises(KdcoreError, match=f"{path} is damaged .*: restore it from git, or delete it and run its trial again") as caught:
            store.get(trial)
        assert "\n" not in str(caught.value) and path.exists(), "records are in git: whoever restores it decides"
    path.write_bytes(whole)
    assert store.get(trial)["history"] == rows


def test_the_digest_is_what_notices(tmp_path, monkeypatch):
    """Without it these files load: a flip in a tensor is no fault that safetensors could see."""
    save_weights("0" * 12, {"w": torch.zeros(3)})
    path = weights_path("0" * 12)
    path.write_bytes(flipped(path.read_bytes(), 8 * len(path.read_bytes()) - 1))
    monkeypatch.setattr(paths, "_digest", lambda tensors, metadata: __import__("safetensors").safe_open(path, "pt").metadata()["digest"])
    assert load_weights("0" * 12)["w"].tolist() == [0, 0, -0.0]
