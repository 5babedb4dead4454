"""Every test has a cache and a results folder of its own; the data come embedded. Fixtures that tests of several modules share."""

import signal

import pytest
import torch


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KDCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("KDCORE_DATA", raising=False)
    return tmp_path / "cache"


@pytest.fixture(autouse=True, scope="session")
def usual_signals():
    """nohup, or a job in a script's background, starts with signals ignored that tests send to themselves and to children."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def float64():
    """Networks and tensors in float64: for a test of what is computed. In float32 two right ways to compute it, or two processors,
    differ by as much as the sums round, and by far more where large terms nearly cancel (a KL of two nets alike)."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def tiny(request):
    """The papers' nets as ``tiny.py`` has them, in this process."""
    from tiny import SLOW, TINY

    from kdcore import papers

    papers._paper.cache_clear()
    exec(SLOW if "kill_9" in request.node.name else TINY, {"__name__": "tiny"})
    yield
    papers._paper.cache_clear()


@pytest.fixture
def inside(monkeypatch):
    """The engine's children are calls in its own threads: quick, where no death or signal of a process is at stake."""
    from tiny import Inside

    from kdcore.trials import engine, forecast

    monkeypatch.setattr(engine, "Child", Inside)
    monkeypatch.setattr(forecast, "Child", Inside)
