"""An executed notebook as the body of a page: nbconvert's Markdown, colours and terminal text in the site's own markup."""

import json
import re

from markupsafe import Markup
from nbconvert.filters import Highlight2HTML, ansi2html
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from kdcore.report.site.mathml import mathml

SHOWN = ("text/html", "image/svg+xml", "image/png", "image/jpeg", "text/latex", "text/markdown", "text/plain")  # richest first


class Renderer(IPythonRenderer):
    """Markdown with equations as MathML, headings that can be linked to, and tables that scroll by themselves."""

    def __init__(self):
        super().__init__(escape=False, exclude_anchor_links=True)
        self.headings: list[tuple[int, str, str]] = []  # (level, id, HTML)

    def heading(self, text: str, level: int, **attrs) -> str:
        known = [anchor for _, anchor, _ in self.headings]
        anchor = re.sub(r"\W+", "-", re.sub(r"<[^>]*>", "", text).lower()).strip("-") or "part"
        anchor += f"-{known.count(anchor) + 1}" if anchor in known else ""
        self.headings.append((level, anchor, text))
        return f'<h{level} id="{anchor}">{text}</h{level}>\n'

    def block_math(self, body: str) -> str:
        return _scroll(mathml(body, block=True), "Equation", "math scroll")

    def inline_math(self, body: str) -> str:
        return mathml(body)

    def latex_environment(self, name: str, body: str) -> str:
        return self.block_math(f"\\begin{{{name}}}{body}\\end{{{name}}}")


def convert(content: str) -> dict:
    """The parts of the page of a notebook (nbformat 4): cells [{kind, html, outputs [HTML]}], headings [(level, id, HTML)] and title,
    in plain text."""
    renderer = Renderer()
    markdown = MarkdownWithMath(renderer=renderer).render
    colours = Highlight2HTML(pygments_lexer="python")
    cells = []
    for each in json.loads(content)["cells"]:
        source = "".join(each["source"])
        if each["cell_type"] == "markdown":
            html = re.sub(r"<table>.*?</table>", lambda table: _scroll(table[0], "Table"), markdown(source), flags=re.S)
            cells.append({"kind": "markdown", "html": html, "outputs": []})
        elif each["cell_type"] == "code":
            outputs = [shown for output in each["outputs"] if (shown := _output(output, markdown))]
            cells.append({"kind": "code", "html": colours(source), "outputs": outputs})
    title = next((re.sub(r"<[^>]*>", "", text) for level, _, text in renderer.headings if level == 1), "")
    return {"cells": cells, "headings": renderer.headings, "title": Markup(title).unescape()}


def _output(output, markdown) -> str:
    """One output of a cell as HTML; "" for what only a running kernel can show."""
    if output["output_type"] == "stream":
        return _terminal("".join(output["text"]))
    if output["output_type"] == "error":
        return _terminal("\n".join(output["traceback"]))
    kind = next((kind for kind in SHOWN if kind in output["data"]), None)
    if kind is None or "application/vnd.jupyter.widget-view+json" in output["data"]:
        return ""
    value = "".join(output["data"][kind])
    if kind == "text/html":
        return _html(value)
    if kind in ("image/png", "image/jpeg"):
        about = output["metadata"].get(kind, output["metadata"])
        alt = about.get("alt") or "Figure drawn by the cell above"
        return str(Markup('<img loading="lazy" alt="{}" src="data:{};base64,{}">').format(alt, kind, "".join(value.split())))
    if kind == "image/svg+xml":
        return f'<div class="drawing">{value}</div>'
    if kind == "text/latex":
        return f'<div class="math">{mathml(value.strip().strip("$"), block=True)}</div>'
    return markdown(value) if kind == "text/markdown" else _terminal(value)


def _html(value: str) -> str:
    """A table or text of the report, in the page's style instead of its own."""
    value = re.sub(r"<style.*?</style>", "", value, flags=re.S).strip()
    return _scroll(value, "Output")


def _scroll(html: str, label: str, style: str = "scroll") -> str:
    """A part that scrolls by itself where it is wider than the page, with the keyboard too."""
    return f'<div class="{style}" tabindex="0" role="region" aria-label="{label}">{html}</div>'


def _terminal(text: str) -> str:
    return f'<pre class="terminal" tabindex="0">{ansi2html(text)}</pre>' if text.strip() else ""
