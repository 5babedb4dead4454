"""Every test has a cache and a results folder of its own; the data come embedded."""

import pytest
import torch


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KDCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("KDCORE_DATA", raising=False)
    return tmp_path / "cache"


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)
