"""The figures that several papers share: legible, and the same bytes each time."""

import io

import numpy as np
import pytest
from matplotlib.image import imread
from records import KEY, contents, made, of_arm, synthetic
from texts import overlaps

from kdcore import papers
from kdcore.report import canvas, catalogue, figures, tables


@pytest.fixture(scope="module")
def paper():
    return papers.get(KEY)


def test_figures_are_legible(paper, monkeypatch):
    drawn = {name: draw() for name, draw in catalogue.figures_of(paper, synthetic(paper, "fast", 2)).items()}
    assert list(drawn)[0] == "paper_errors" and {"learning_errors", "learning_temperature"} <= set(drawn)
    assert all("(budget fast)" in figure.get_suptitle() for figure in drawn.values())
    drawn["sparse"] = figures.error_against(
        [1, 1.01, 2, 40], {"a": [[1, 2], [3, 4], [], [5]], "b": [[], [], [], []]}, title="Ticks that would touch"
    )
    drawn["marks"] = figures.curve([0, 1, 2], {"a": np.ones((3, 3)), "b": [[1, 2, 3]]}, {"one": 1.0, "each": [1, 1.1]}, ylabel="errors")
    drawn["arms"] = figures.learning_curves(
        {f"an arm with a name so long that it takes two lines, {i}": synthetic(paper, "fast", 2, ["small"]) for i in range(12)},
        "test_error_percent",
    )
    for name, figure in drawn.items():
        assert overlaps(figure, monkeypatch) == [], name


def test_saved_figures_have_the_same_bytes(tmp_path):
    def draw():
        return figures.error_against([1, 2, 4], {"a": [[1, 2], [3, 4], [5, 6]]})

    one, two = tmp_path / "one", tmp_path / "two"
    assert [path.name for path in canvas.save(draw(), one / "t")] == ["t.svg", "t.png"]
    canvas.save(draw(), two / "t")
    assert contents(one) == contents(two) and b"<dc:date>" not in (one / "t.svg").read_bytes()


def test_no_label_reaches_the_edge_of_a_saved_figure(paper):
    """Letters are not as wide at every resolution."""
    frame = tables.table(paper, "errors", synthetic(paper, "fast", 2), "fast")
    frame["label"] = [
        "student of thirty-six letters, alone",
        "iiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiii",
        "MWMWMWMWMWMWMWMWMWMWMWMWMWMWMWMWMWMW",
    ][: len(frame)]
    pixels = imread(io.BytesIO(canvas.png(figures.paper_against_ours(frame))))[..., :3].min(-1) < 0.5
    rows, columns = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
    assert rows[0] >= 4 and columns[0] >= 4 and rows[-1] < len(pixels) - 4 and columns[-1] < pixels.shape[1] - 4


def test_figures_of_asks_the_papers_module(paper, monkeypatch):
    records = of_arm(paper, "fast", "small", [145, 146])
    failed = made(paper.trial("fast", "small", 7), {"message": "killed"}, status="killed")
    seen = []
    own = figures.curve([0, 1], {"a": [[1, 2]]}, title="Own")
    monkeypatch.setattr(paper, "figures", lambda given: seen.extend(given) or {"own": lambda: own})
    drawn = catalogue.figures_of(paper, [*records, failed])
    assert list(drawn) == ["paper_errors", "own"]
    assert drawn["own"]().get_suptitle() == "Own\n(budget fast)"
    assert seen == records


def test_a_long_title_stays_inside_its_figure():
    title = "Test RMSE: the mimic net, its ensemble, the best net and the best single model: while training"
    figure = figures.curve([1, 2], {"line": [[1.0, 2.0]]}, title=f"{title}\n(budget paper)")
    figure.canvas.draw()
    box = figure._suptitle.get_window_extent()
    assert figure.get_suptitle().replace("\n", " ") == f"{title} (budget paper)"
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1


def test_learning_curves_of_seeds_that_were_measured_at_other_epochs():
    """The mean is over the same epochs of each: those where all were measured."""
    often = [{"error": float(epoch)} for epoch in range(1, 7)]
    seldom = [{}, {}, {"error": 13.0}, {}, {}, {"error": 16.0}]
    records = [{"history": often}, {"history": seldom}, {"history": [{}]}]
    epochs, values = figures.histories(records, "error")
    assert (epochs.tolist(), values.tolist()) == ([3, 6], [[3.0, 6.0], [13.0, 16.0]])
    assert figures.histories(records[2:], "error") is None
