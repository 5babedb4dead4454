"""Every test has a cache and a results folder of its own; the data come embedded."""

import json

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


def distinct_configs(paper, config_of):
    """(budget, arm) pairs as parameters of a test, one for each config that ``config_of(budget, arm)`` gives."""
    found = {}
    for budget in paper.budgets:
        for arm in paper.budget_arms(budget):
            config = config_of(budget, arm)
            found.setdefault(json.dumps(config, sort_keys=True), pytest.param(budget, arm, id=f"{budget}-{arm}"))
    return list(found.values())
