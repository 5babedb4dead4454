"""Whatever a name, a device or a message holds, Markdown, HTML and plots show it as it is and nothing of it takes effect."""

import html
import re
import shlex
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from markdown_it import MarkdownIt
from matplotlib.text import Text
from records import KEY, README, contents, made, of_arm

from kdcore import outputs, papers
from kdcore.papers.fisher_darts.figures import scatter
from kdcore.report import canvas, claims, figures, formats, tables, words
from kdcore.report.site import write_site
from kdcore.trials.store import Store

HOSTILE = [
    "<script>alert(1)</script>",
    "<!-- /scoreboard -->",
    "<!-- scoreboard -->",
    "a | b \\| c \\",
    "one\n\n# two\r\nthree\u2028| four |",
    "`code` ``x",
    "**bold** _it_ __x__ ~~gone~~ a_b",
    "[x](javascript:alert(1)) [y][z] [w]: http://x",
    "![i](http://e.example/x.png)",
    "$\\frac{1}{2}$ and $",
    "&lt;b&gt; &amp; & &#60;",
    "\x00\x1b[31mred\x07 \u202eright",
    '" onmouseover="alert(1)" \'x',
    "{{ 7 * 7 }} {% raw %}",
    "# head #",
    "</table></details></style><b>",
    "_hidden",
    "<a@b.example> <http://x.example>",
]


class Words(HTMLParser):
    """The words that a browser shows, and the tags that it sees."""

    def __init__(self, text: str):
        super().__init__()
        self.words, self.tags = "", []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.words += "\n" if tag == "br" else ""

    def handle_comment(self, data):
        self.tags.append("comment")

    def handle_data(self, data):
        self.words += data


def squeezed(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def shown(text: str) -> str:
    return squeezed(words.plain(text))


def rendered(markdown: str) -> str:
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(markdown)


def hostile_paper(text: str):
    """A paper whose names, labels, claims and notes hold a text."""
    paper = papers.Paper(KEY)
    sheet = paper.sheet
    sheet |= {"short": text, "title": text, "authors": text, "citation": text, "question": text}
    sheet["tables"][0] |= {"title": text, "source": text, "reference": text}
    for row in sheet["tables"][0]["rows"]:
        row |= {"label": text.replace("{", "{{").replace("}", "}}"), "unit": text, "reference": 3}
    for claim in sheet["claims"]:
        claim |= {"text": text, "source": text}
    for part in ("protocol", "deviations"):
        sheet[part][0]["what"] = text
    paper.budgets["fast"]["about"] = text
    return paper


def hostile_records(paper, text: str) -> list[dict]:
    records = of_arm(paper, "fast", "small", [145, 146, 147]) + of_arm(paper, "fast", "small with KD", [90, 91, 92])
    for record in records:
        record["cost"]["device"] = text
        record["environment"]["processor"] = f"{text} {record['arm']}"
    return records


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_shows_any_text(text):
    lone = rendered(f"before **{'x'}** {words.markdown(text)} after")
    assert squeezed(Words(lone).words) == f"before x {shown(text)} after"
    assert set(Words(lone).tags) <= {"p", "strong"}
    head = rendered(f"# {words.markdown(text)}")
    assert squeezed(Words(head).words) == shown(text) and set(Words(head).tags) == {"h1"}
    table = rendered(words.markdown_table([text, "n"], [[text, 1], ["second", text]]))
    assert set(Words(table).tags) <= {"table", "thead", "tbody", "tr", "th", "td", "br"}
    cells = [squeezed(Words(cell).words) for cell in re.findall(r"<t[hd]>(.*?)</t[hd]>", table, flags=re.S)]
    assert cells == [shown(text), "n", shown(text), "1", "second", shown(text)]


@pytest.mark.parametrize("text", HOSTILE)
def test_tables_show_any_text(text, monkeypatch):
    paper = hostile_paper(text)
    records = hostile_records(paper, text)
    frames = [tables.table(paper, "errors", records, "fast"), claims.claims(paper, records, "fast")]
    for frame in frames:
        page = rendered(formats.to_markdown(frame))
        assert set(Words(page).tags) <= {"h1", "p", "strong", "table", "thead", "tbody", "tr", "th", "td", "br"}
        assert squeezed(Words(page).words).count(shown(text)) >= 5
    own = {
        "table",
        "caption",
        "b",
        "span",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "br",
        "style",
        "a",
        "p",
    }
    for frame in [*frames, tables.facts(paper, "protocol"), tables.budget_table(paper, "fast")]:
        page = Words(formats.to_html(frame))
        assert set(page.tags) <= own
        if frame.attrs.get("kind") != "budget":
            assert shown(text) in squeezed(page.words)
        assert 'class="kd tex2jax_ignore"' in formats.to_html(frame), "Jupyter would typeset formulas"


@pytest.mark.parametrize("text", ["<script>--></script>", "$\\frac{1}{2}$ and $", "\x00\x1b[31mred\x07 \u202e", "_hidden & ]]>"])
def test_plots_show_any_text(text):
    frame = tables.table(hostile_paper(text), "errors", hostile_records(papers.get(KEY), "x"), "fast")
    curve = figures.curve([0, 1], {text: [[1, 2]]}, {text + "!": 1.0}, xlabel=text, ylabel=text, title=text)
    for figure in (figures.paper_against_ours(frame), curve, scatter({text: [(0, 1)]}), figures.learning_curves(
        {text: ([1, 2], [[1.0, 2.0]])}, "error", text
    )):  # fmt: skip
        assert not any(part.get_parse_math() for part in figure.findobj(Text) if part.get_text())
        ElementTree.fromstring(canvas.svg(figure))
        assert canvas.png(figure).startswith(b"\x89PNG")
    assert text in [part.get_text() for part in curve.legends[0].get_texts()]


def test_a_hostile_device_breaks_no_later_report(tmp_path):
    store, paper = Store(tmp_path / "results"), papers.get(KEY)
    (tmp_path / "README.md").write_text(README)
    for number, record in enumerate(of_arm(paper, "laptop", "small", list(range(100, 100 + len(HOSTILE))))):
        record["cost"]["device"] = HOSTILE[number]
        store.put(record)
    failed = made(paper.trial("laptop", "small", 99), {"message": "".join(HOSTILE)}, status="error")
    store.put(failed)
    outputs.write(store.results)
    first = contents(tmp_path)
    readme = first["README.md"].decode()
    assert readme.count("<!-- scoreboard -->") == readme.count("<!-- /scoreboard -->") == 1 and readme.endswith("The end.\n")
    tags = Words(rendered(readme)).tags
    own = {"picture", "source", "img"} | {
        "h1",
        "p",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "br",
        "comment",
        "strong",
        "ul",
        "li",
        "a",
        "code",
    }
    assert tags.count("comment") == 4 and set(tags) <= own
    own |= {"h2", "h3", "details", "summary", "b", "pre", "img", "em"}
    for name in ("README", KEY):
        page = Words(rendered(first[f"results/{name}.md"].decode()))
        assert set(page.tags) <= own - {"comment"}
    assert shown(HOSTILE[0]) in squeezed(page.words)
    outputs.write(store.results)
    assert contents(tmp_path) == first and outputs.stale(store.results) == []
    pages = [Words(path.read_text()) for path in sorted(write_site(store.results, outputs.gather(store)).parent.rglob("*.html"))]
    assert len(pages) > len(HOSTILE)
    for page in pages:
        assert page.tags.count("script") == 1 and not {"b@", "comment"} & set(page.tags)
    assert any(shown("".join(HOSTILE)) in squeezed(page.words) for page in pages)


def test_an_address_that_is_no_web_page_is_no_link(tmp_path, monkeypatch):
    store, paper = Store(tmp_path / "results"), papers.Paper(KEY)
    paper.sheet["url"] = "javascript:alert(1)"
    monkeypatch.setattr(papers, "get", lambda key: paper)
    write_site(store.results, outputs.gather(store))
    assert "javascript:" not in (store.results / "site" / "papers" / f"{KEY}.html").read_text()


@pytest.mark.parametrize("arm", ["small", 'a "b"', "$(touch x)", "a`b`", "x\\", "it's", "a!b", "two\nlines", "\N{GREEK SMALL LETTER TAU}"])
def test_a_command_gives_the_shell_the_arm_as_it_is(arm):
    assert shlex.split(words.command(KEY, "fast", arm, 3)) == ["kdcore", "run", KEY, "--budget", "fast", "--arm", arm, "--seed", "3"]
    assert not re.search(r'"[^"]*[$`\\!][^"]*"', words.command(KEY, "fast", arm, 3)), "these mean something between double quotes"


def test_html_escape_agrees_with_the_standard_library():
    page = formats.to_html(tables.table(papers.get(KEY), "errors", hostile_records(papers.get(KEY), "<i>&\"'"), "fast"))
    assert html.escape("<i>&\"'").replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in page
