"""The site as files: what its pages hold, that every link leads somewhere, and that only what has changed is written."""

import html
import json
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from records import KEY, contents, made, of_arm, synthetic

from kdcore import cli, outputs, papers
from kdcore.report import canvas, figures
from kdcore.report.site import charts, mathml, notebook, pages, write_site
from kdcore.trials.store import Store

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def paper():
    return papers.get(KEY)


@pytest.fixture
def store(paper, tmp_path):
    """Two arms at laptop, one at fast, a failure, smoke records, a figure and a notebook."""
    store = Store(tmp_path / "results")
    for record in synthetic(paper, "laptop", 2, ["small", "small with KD"]) + synthetic(paper, "smoke", 2, ["small"]):
        store.put(record)
    for record in of_arm(paper, "fast", "small", [145, 146, 147]):
        store.put(record)
    store.put(made(paper.trial("laptop", "small", 9), {"message": "the loss is not <finite>"}, status="nan"))
    canvas.write(store.results / "figures" / KEY / "laptop_shift.svg", lambda: figures.curve([0, 1], {"a": [[1, 2]]}), "")
    (store.results / "executed").mkdir()
    cells = [{"cell_type": "markdown", "source": ["# A title\n", "\n", "Text with $x_i^2$.\n"], "metadata": {}}]
    (store.results / "executed" / f"{KEY}.ipynb").write_text(json.dumps({"cells": cells}))
    return store


def site(store) -> Path:
    return write_site(store.results, outputs.gather(store)).parent


class Page(HTMLParser):
    """The ids of a page, where its links and pictures lead, and what would ask for something else."""

    def __init__(self, path: Path):
        super().__init__()
        self.ids, self.links, self.sources, self.images = [], [], [], []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids += [attributes["id"]] if "id" in attributes else []
        if tag == "a":
            self.links.append(attributes["href"])
        elif "src" in attributes or tag == "link":
            self.sources.append(attributes.get("src", attributes.get("href")))
        if tag == "img":
            self.images.append(attributes)


def test_every_link_leads_somewhere_and_nothing_is_asked_of_others(store):
    folder = site(store)
    read = {path: Page(path) for path in folder.rglob("*.html")}
    for path, page in read.items():
        assert len(page.ids) == len(set(page.ids)), path
        for source in page.sources:
            assert source.startswith("data:") or (path.parent / unquote(source)).is_file(), (path, source)
        for link in page.links:
            if link.startswith(("https://", "http://")):
                continue
            name, _, part = link.partition("#")
            target = (path.parent / name).resolve() if name else path
            assert target in read or target.is_file(), (path, link)
            assert not part or unquote(part) in read[target].ids, (path, link)
        for image in page.images:
            assert image["alt"].strip() and image["loading"] == "lazy", (path, image)
    assert "url(" not in (folder / "site.css").read_text() and "@import" not in (folder / "site.css").read_text()
    assert "//" not in re.sub(r"// .*", "", (folder / "site.js").read_text())


def test_a_page_for_each_paper_and_record_but_smoke(paper, store):
    folder = site(store)
    assert {path.stem for path in (folder / "papers").iterdir()} == set(papers.names())
    shown = {path.stem for path in folder.glob("records/*/*.html")}
    assert shown == {record["id"] for record in store.records(KEY) if record["budget"] != "smoke"} and len(shown) == 8
    text = (folder / "papers" / f"{KEY}.html").read_text()
    assert "the loss is not &lt;finite&gt;" in text and "<finite>" not in text
    for row in paper.sheet["deviations"] + paper.sheet["protocol"]:
        assert html.escape(row["what"]).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in text
    commands = set(re.findall(r"<code>(kdcore run .*?--seed \d+)</code>", text))
    assert len(commands) == 7
    for line in commands:
        options = cli.parser().parse_args(shlex.split(html.unescape(line))[1:])
        assert options.paper == [KEY] and store.get(paper.trial(options.budget, options.arm[0], options.seed[0])) is not None
    other = next(key for key in papers.names() if key != KEY)
    assert f"kdcore run {other} --budget" in (folder / "papers" / f"{other}.html").read_text()


def test_a_number_shows_each_seed_its_cost_and_where_teacher_and_student_differ(paper, store):
    for seed, where in ((0, "Intel"), (1, "AMD")):
        for arm, on in (("cumbersome", "Intel"), ("small with KD", where)):
            record = made(paper.trial("fast", arm, seed), {"test_errors": 70 + seed, "train_error_percent": 0.1})
            record["environment"]["processor"] = record["cost"]["device"] = on
            store.put(record | {"cost": record["cost"] | {"cpu_seconds": 720.0}})
    text = (site(store) / "papers" / f"{KEY}.html").read_text()
    row = text.partition('id="fast.errors.small+with+KD.test_errors"')[2].partition("</tr>")[0]
    assert row.count("360 s (720 s of CPU time)") == 2 and row.count("<li>") == 2
    assert row.count("teacher on Intel, student on AMD") == 1 and "mixed processors: seed 1" in row


def test_a_record_is_shown_in_full(paper, store):
    trial = paper.trial("laptop", "small with KD", 1)
    record = store.get(trial)
    digest = store.path(trial).read_text().split('"')[-2]
    text = html.unescape((site(store) / "records" / KEY / f"{trial.id}.html").read_text())
    for name, value in (*record["metrics"].items(), *record["config"].items()):
        assert name in text and (value if isinstance(value, str) else json.dumps(value) if value is not None else "none") in text, name
    for row in record["history"]:
        assert ",".join(str(value) for value in row.values()) in text
    for value in (
        digest,
        record["id"],
        record["data"]["fingerprint"],
        "Test CPU",
        'kdcore run hinton_mnist --budget laptop --arm "small with KD" --seed 1',
    ):
        assert value in text
    assert f"papers/{KEY}.html#laptop.errors.small+with+KD.test_errors" in text


def test_only_what_has_changed_is_written(paper, store):
    folder = site(store)
    first = contents(folder)
    for path in folder.rglob("*.html"):
        path.write_text("old")  # what is written again can be told by this
    stray = folder / "records" / KEY / "gone.html"
    stray.write_text("of a record that is no more")
    site(store)
    assert not stray.exists() and {path.read_text() for path in folder.rglob("*.html")} == {"old"}
    store.put(of_arm(paper, "fast", "small", [145, 146, 147, 150])[3])
    site(store)
    fresh = {path.relative_to(folder).as_posix() for path in folder.rglob("*.html") if path.read_text() != "old"}
    assert f"papers/{KEY}.html" in fresh and f"records/{KEY}/{paper.trial('fast', 'small', 3).id}.html" in fresh
    assert not any(name.startswith(("notebooks/", "equations")) or "fsp" in name for name in fresh)
    store.path(paper.trial("fast", "small", 3)).unlink()
    (folder / ".made.json").write_text("{")  # damaged: everything is written again
    site(store)
    assert contents(folder) == first, "the same records give the same bytes"


def test_permalinks_never_meet():
    parts = [
        "a b",
        "a+b",
        "a_b",
        "a.b",
        "a~b",
        "a~20~b",
        "a%20b",
        "a-b",
        "a/b",
        'a"b',
        "a#b",
        "\N{GREEK SMALL LETTER TAU}",
        "T=2.5",
        "1, 2 (x)",
    ]
    names = [pages.anchor(part) for part in parts]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9_=,()+~-]+", name) for name in names)
    assert pages.anchor("fast", "errors", "small with KD", "test_errors") == "fast.errors.small+with+KD.test_errors"
    assert pages.anchor("a", "b.c") != pages.anchor("a.b", "c")


@pytest.mark.parametrize("key", papers.names())
def test_every_equation_becomes_mathml(key):
    for equation in papers.get(key).sheet.get("equations", []):
        made = mathml.mathml(equation["latex"], block=True)
        assert made.startswith("<math ") and "\\" not in re.sub(r'alttext="[^"]*"', "", made), equation["latex"]


def test_what_is_no_latex_is_shown_as_it_is():
    for text in (r"\unknown{x}", r"\frac{1", "<b>"):
        assert "<b>" not in mathml.mathml(text)
    assert mathml.mathml(r"\unknown{x}") == r"<code>\unknown{x}</code>"


def test_a_chart_of_a_history():
    history = [{"stage": "a", "epoch": 1, "loss": 4.0, "lr": 1}, {"stage": "a", "epoch": 2, "loss": 2.0, "lr": 1}]
    history += [{"stage": "b", "epoch": 1, "loss": 0.0, "lr": 1, "error": 3.0}]
    (chart,) = charts.charts(history)  # a single error is no line
    assert chart["measure"] == "loss"
    points = [tuple(map(float, point.split(","))) for point in re.search(r'points="([^"]*)"', chart["svg"])[1].split()]
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x1 - x0 == pytest.approx(x2 - x1) and y1 - y0 == pytest.approx(y2 - y1) and y0 < y2, "equal steps, downwards"
    assert chart["svg"].count('class="stage"') == 1
    assert charts.charts([]) == [] and charts.charts([{"loss": float("nan")}, {"loss": float("inf")}]) == []


def test_a_notebook_as_a_page():
    cells = [
        {"cell_type": "markdown", "source": "# One *title*\n\n$$a_1 = b$$\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n\n## Part\n\n## Part"},
        {
            "cell_type": "code",
            "source": "print('<x>')",
            "outputs": [
                {"output_type": "stream", "text": ["<x>\n", "\x1b[31mred\x1b[0m"]},
                {"output_type": "display_data", "data": {"text/html": ["<style>p { color: red }</style><p>hi</p>"]}, "metadata": {}},
                {
                    "output_type": "display_data",
                    "data": {"image/png": "AAAA\n", "text/plain": "x"},
                    "metadata": {"image/png": {"alt": 'a "b"'}},
                },
                {
                    "output_type": "display_data",
                    "data": {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "slider"},
                    "metadata": {},
                },
            ],
        },
    ]
    made = notebook.convert(json.dumps({"cells": cells}))
    first, second = made["cells"]
    assert made["title"] == "One title" and [name for _, name, _ in made["headings"]] == ["one-title", "part", "part-2"]
    assert first["html"].count("<math") == 1 and "$" not in first["html"] and 'tabindex="0"' in first["html"]
    assert "&lt;x&gt;" in second["html"]
    stream, table, image = second["outputs"]
    assert "&lt;x&gt;" in stream and "\x1b" not in stream
    assert "<p>hi</p>" in table and "style" not in table
    assert 'src="data:image/png;base64,AAAA"' in image and 'alt="a &#34;b&#34;"' in image
