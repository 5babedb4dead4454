"""The figures that several papers share: legible, and the same bytes each time."""

import copy
import io
import os
import shutil
from functools import partial
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.image import imread
from records import KEY, contents, made, of_arm, synthetic
from texts import overlaps

from kdcore import outputs, papers
from kdcore.errors import KdcoreError
from kdcore.report import canvas, catalogue, drawing, figures, origin, tables
from kdcore.trials.store import Store


@pytest.fixture(scope="module")
def paper():
    return papers.get(KEY)


def test_figures_are_legible(paper, monkeypatch):
    drawn = {name: draw() for name, draw in catalogue.figures_of(paper, synthetic(paper, "fast", 2)).items()}
    assert list(drawn)[0] == "paper_errors" and {"learning_errors_test_error_percent", "learning_temperature_test_error_percent"} <= set(
        drawn
    )
    assert all(any("budget fast" in text.get_text() for text in figure.texts) for figure in drawn.values())
    drawn["sparse"] = figures.error_against(
        [1, 1.01, 2, 40], {"a": [[1, 2], [3, 4], [], [5]], "b": [[], [], [], []]}, title="Ticks that would touch"
    )
    drawn["marks"] = figures.curve([0, 1, 2], {"a": np.ones((3, 3)), "b": [[1, 2, 3]]}, {"one": 1.0, "each": [1, 1.1]}, ylabel="errors")
    curves = [figures.histories(synthetic(paper, "fast", 2, ["small"]), "test_error_percent")]
    for count in (4, 5, 12):
        names = [f"{i}: an arm with a name so long that it takes more lines than one, even without the number" for i in range(count)]
        drawn[f"{count} arms"] = figures.learning_curves(dict(zip(names, curves * count, strict=True)), "test error (%)", title="Arms")
    row = {
        "paper": "Paper 2001, words",
        "effect": "one thing instead of another that needs more words than one line has",
        "verdict": "contradicted",
    }
    rows = [
        row | {"n": "3 of 6", "ours": (-20.0, -300.0, 5.0), "reported": 40.0},
        row | {"n": 1, "ours": (3.0,) + (np.nan,) * 2, "reported": np.nan},
    ]
    drawn["effects"] = figures.effects({"scaled down": rows, "the paper's protocol": rows}, "Effects", note="A note of many words " * 6)
    for name, figure in drawn.items():
        assert overlaps(figure, monkeypatch) == [], name


def dots(values, note: str = ""):
    return figures.error_against([1, 2, 4], {"a": values}, title="Dots & <lines>", xlabel="size", ylabel="errors", note=note)


def test_saved_figures_have_the_same_bytes(tmp_path):
    draw = partial(dots, [[1, 2], [3, 4], [5, 6]])
    for name in ("t.svg", "t_dark.svg", "t.png"):
        for folder in ("one", "two"):
            canvas.write(tmp_path / folder / name, draw, origin.digest(draw))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    light, dark = ((tmp_path / "one" / name).read_text() for name in ("t.svg", "t_dark.svg"))
    assert "<dc:date>" not in light
    assert "prefers-color-scheme:dark" in light and 'fill="#ffffff"' in light
    assert "prefers-color-scheme" not in dark and not any(f'"{colour.lower()}"' in dark for colour in drawing.DARK)


def test_an_svg_says_what_it_shows(tmp_path):
    """Its title, and numbers by hand: means of (1, 2), (3, 4), (5, 6)."""
    canvas.write(tmp_path / "t.svg", partial(dots, [[1, 2], [3, 4], [5, 6]]), "")
    assert canvas.alt(tmp_path / "t.svg") == "Dots & <lines>. Errors against size, means. a: 1.5 at 1; 3.5 at 2; 5.5 at 4."
    root = ElementTree.parse(tmp_path / "t.svg").getroot()
    assert root.get("role") == "img" and root.find(f"{canvas.SVG}title").text == "Dots & <lines>"
    texts = {each.text: each for each in root.iter(f"{canvas.SVG}text")}
    assert {"Dots & <lines>", "size", "errors", "4"} <= set(texts)
    assert float(texts["errors"].get("textLength")) > 25, "in a narrower font, words keep the width that they were laid out for"
    assert canvas.alt(tmp_path / "missing.svg") == ""


def test_a_text_keeps_its_digits(tmp_path):
    """Coordinates are rounded, numbers that are shown are not."""
    canvas.write(tmp_path / "t.svg", partial(figures.curve, [1, 2], {"0.123456": [[0.98765, 0.98766]]}), "")
    assert ">0.123456<" in (tmp_path / "t.svg").read_text()


def test_the_digest_of_a_figure_follows_all_that_it_is_made_from(monkeypatch):
    paper = papers.get(KEY)
    records = synthetic(paper, "fast", 2, ["small", "small with KD"])

    def digests(given=records):
        return {name: origin.digest(draw) for name, draw in catalogue.figures_of(paper, given).items()}

    first = digests()
    assert first == digests() and len(set(first.values())) == len(first)
    other = copy.deepcopy(records)
    other[0]["metrics"]["test_errors"] += 1
    changed = {name for name, digest in digests(other).items() if digest != first[name]}
    assert changed == {"paper_errors"}, "the others do not show this number"
    other = copy.deepcopy(records)
    other[0]["history"][0]["test_error_percent"] += 0.01
    assert {name for name, digest in digests(other).items() if digest != first[name]} == {"learning_errors_test_error_percent"}
    with monkeypatch.context() as patched:
        patched.setitem(paper.sheet["tables"][0]["rows"][1], "label", "another label")
        patched.delitem(paper.__dict__, "tables", raising=False)
        assert digests()["paper_errors"] != first["paper_errors"]
        paper.__dict__.pop("tables", None)
    with monkeypatch.context() as patched:
        patched.setitem(paper.budgets["fast"], "about", "another budget")
        assert not set(digests().values()) & set(first.values())
    with monkeypatch.context() as patched:
        patched.setattr(origin.mpl, "__version__", "0.1")
        assert not set(digests().values()) & set(first.values())


def test_the_digest_of_a_figure_follows_its_code(tmp_path, monkeypatch):
    """Of the function's module, and of all that this one imports, but of nothing else."""
    folder = tmp_path / "kdcore"
    shutil.copytree(origin.PACKAGE / "report", folder / "report")
    monkeypatch.setattr(origin, "PACKAGE", folder)
    draw, seen = partial(figures.curve, [0, 1], {"a": [[1, 2]]}), []
    for changed in (None, "figures.py", "drawing.py", "statistics.py", "canvas.py"):
        if changed:
            (folder / "report" / changed).write_text((folder / "report" / changed).read_text() + "\n")
        origin.code.cache_clear()
        origin._imports.cache_clear()
        seen.append(origin.digest(draw))
    (folder / "report" / "pages.py").write_text("")
    origin.code.cache_clear()
    assert len(set(seen)) == 5 and origin.digest(draw) == seen[-1]
    origin.code.cache_clear()
    origin._imports.cache_clear()


def test_the_digest_counts_nine_digits():
    assert origin.digest(partial(dots, [[0.1 + 0.2], [], []])) == origin.digest(partial(dots, [[0.3], [], []]))
    assert origin.digest(partial(dots, [[0.30000001], [], []])) != origin.digest(partial(dots, [[0.3], [], []]))


def test_a_figure_needs_a_function_that_others_can_find():
    for draw in (lambda: None, partial(lambda: None), partial(dots, object())):
        with pytest.raises(ValueError, match="a figure is drawn by a module's function"):
            origin.digest(draw)


@pytest.mark.parametrize("name", ["t.svg", "t_dark.svg", "t.png"])
def test_a_figure_that_is_not_as_it_was_written_is_noticed(tmp_path, name):
    path, draw = tmp_path / name, partial(dots, [[1, 2], [3, 4], [5, 6]])
    digest = origin.digest(draw)
    assert canvas.trouble(path, digest) == "missing"
    canvas.write(path, draw, digest)
    assert canvas.trouble(path, digest) == ""
    assert canvas.trouble(path, digest[::-1]) == "out of date"
    good = path.read_bytes()
    for place in range(40, len(good) - 40, len(good) // 9):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        assert canvas.trouble(path, digest) != "", place
    path.write_bytes(good[: len(good) // 2])
    assert canvas.trouble(path, digest) == "damaged or edited by hand"
    if path.suffix == ".svg":
        path.write_bytes(good.replace(b">5.5<", b">4.5<") if b">5.5<" in good else good.replace(b">errors<", b">losses<"))
        assert canvas.trouble(path, digest) == "damaged or edited by hand"


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
    monkeypatch.setattr(paper, "figures", lambda given: seen.extend(given) or {"own": dots})
    drawn = catalogue.figures_of(paper, [*records, failed])
    assert list(drawn) == ["paper_errors", "own"]
    assert drawn["own"].keywords["note"].startswith("Ours: budget fast (")
    assert seen == records


def test_a_long_title_stays_inside_its_figure():
    title = "Test RMSE: the mimic net, its ensemble, the best net and the best single model: while training"
    figure = figures.curve([1, 2], {"line": [[1.0, 2.0]]}, title=title)
    figure.canvas.draw()
    shown = figure.texts[0]
    box = shown.get_window_extent()
    assert shown.get_text().replace("\n", " ") == title
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1


def test_learning_curves_of_seeds_that_were_measured_at_other_epochs():
    """The mean is over the same epochs of each: those where all were measured."""
    often = [{"error": float(epoch)} for epoch in range(1, 7)]
    seldom = [{}, {}, {"error": 13.0}, {}, {}, {"error": 16.0}]
    records = [{"history": often}, {"history": seldom}, {"history": [{}]}]
    epochs, values = figures.histories(records, "error")
    assert (epochs.tolist(), values.tolist()) == ([3, 6], [[3.0, 6.0], [13.0, 16.0]])
    assert figures.histories(records[2:], "error") is None


def test_two_processes_draw_the_same_bytes_as_one(tmp_path, monkeypatch):
    for count in (1, 2):
        monkeypatch.setattr(outputs.os, "cpu_count", lambda count=count: count)
        drawn = {tmp_path / str(count) / f"{i}.svg": partial(dots, [[i, 2], [3, 4], [5]]) for i in range(16)}
        outputs._draw(drawn, {path: origin.digest(draw) for path, draw in drawn.items()})
    assert len(contents(tmp_path / "1")) == 16 and contents(tmp_path / "1") == contents(tmp_path / "2")


def test_a_drawing_process_that_dies_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(outputs.os, "cpu_count", lambda: 2)
    drawn = {tmp_path / f"{i}.svg": partial(os._exit, 9) for i in range(16)}
    with pytest.raises(KdcoreError, match="a process that was drawing figures died"):
        outputs._draw(drawn, dict.fromkeys(drawn, ""))


def test_the_report_draws_only_what_changed(tmp_path, monkeypatch):
    """A second report draws nothing; a record, and a figure edited by hand, each redraw what shows them, and check names it."""
    paper, store = papers.get(KEY), Store(tmp_path / "results")
    for record in of_arm(paper, "fast", "small", [145, 146]):
        store.put(record)
    drawn, write = [], canvas.write
    monkeypatch.setattr(canvas, "write", lambda path, *rest: drawn.append(path.name) or write(path, *rest))

    def report() -> list[str]:
        drawn.clear()
        outputs.write(store.results)
        return sorted(drawn)

    everything = ["effects.png", "effects.svg", "effects_dark.svg", "fast_paper_errors.svg"]
    assert report() == everything and report() == [] and outputs.stale(store.results) == []
    edited = store.results / "figures" / KEY / "fast_paper_errors.svg"
    edited.write_text(edited.read_text().replace(">small", ">large"))
    assert f"{edited} is damaged or edited by hand: run kdcore report" in outputs.stale(store.results)
    assert report() == ["fast_paper_errors.svg"]
    store.put(of_arm(paper, "fast", "small", [145, 146, 147])[2])
    assert f"{edited} is out of date: run kdcore report" in outputs.stale(store.results)
    assert "fast_paper_errors.svg" in report() and outputs.stale(store.results) == []
