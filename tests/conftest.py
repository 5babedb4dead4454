"""Every test has a cache and a results folder of its own; the data come embedded. What tests of several papers share."""

import itertools
import json
import signal

import pytest
import torch

from kdcore.data.images import ImageData
from kdcore.training import Context


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


def distinct_configs(paper, config_of):
    """(budget, arm) pairs as parameters of a test, one for each config that ``config_of(budget, arm)`` gives."""
    found = {}
    for budget in paper.budgets:
        for arm in paper.budget_arms(budget):
            config = config_of(budget, arm)
            found.setdefault(json.dumps(config, sort_keys=True), pytest.param(budget, arm, id=f"{budget}-{arm}"))
    return list(found.values())


def noise_images(name, train, test, shape=(3, 32, 32), classes=None):
    """Random images and labels in place of a data set's; as many classes as it has, 10 or 100, for None."""
    classes = classes or (100 if name in ("cifar100", "digit_pairs") else 10)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (train + test, *shape), generator=generator, dtype=torch.uint8)
    labels = torch.randint(classes, (train + test,), generator=generator)
    return ImageData(name, images[:train], labels[:train], images[train:], labels[train:], tuple(map(str, range(classes))))


class Spy:
    """A run that keeps the batches of each stage, and the student's weights before and after."""

    def __init__(self, run):
        self.run, self.model, self.stages = run, run.model, run.stages
        self.seen = [[] for _ in run.stages]
        for stage, seen in zip(run.stages, self.seen, strict=True):
            plain = stage.batch or (lambda index: (index,))
            stage.batch = lambda index, plain=plain, seen=seen: (seen.append(index.tolist()), plain(index))[1]

    def train(self, context=None):
        """The results of ``Run.train``."""
        net = getattr(self.model, "student", self.model)
        self.start = {key: value.clone() for key, value in net.state_dict().items()}
        results = self.run.train(context or Context())
        self.end = {key: value.clone() for key, value in net.state_dict().items()}
        return results


def pausing(folder, epochs):
    """A context whose time is up after so many epochs; its checkpoint lies in ``folder``."""
    context = Context(checkpoint=folder)

    def stop(row):
        context.deadline = 0 if row["done"] == epochs else context.deadline

    context.report = stop
    return context


def overlaps(figure, monkeypatch) -> list[tuple[str, str]]:
    """Pairs of texts of a figure that overlap once it is drawn, or that leave its canvas."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.text import Text

    from kdcore.report import drawing

    canvas, texts = FigureCanvasAgg(figure), {}
    draw = Text.draw
    with drawing.style(), monkeypatch.context() as patched:
        patched.setattr(Text, "draw", lambda text, renderer: texts.setdefault(id(text), text) and draw(text, renderer))
        canvas.draw()
    texts = [text for text in texts.values() if text.get_visible() and text.get_text().strip()]
    # the text alone, without the line that an annotation may have to its place
    boxes = [(text.get_text(), Text.get_window_extent(text, canvas.get_renderer())) for text in texts]
    found = [(text, "the edge") for text, box in boxes if box.x0 < 0 or box.y0 < 0 or box.x1 > figure.bbox.x1 or box.y1 > figure.bbox.y1]
    for (a, one), (b, two) in itertools.combinations(boxes, 2):
        if min(one.x1, two.x1) - max(one.x0, two.x0) > 1 and min(one.y1, two.y1) - max(one.y0, two.y0) > 1:
            found.append((a, b))
    return found
