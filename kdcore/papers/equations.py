"""``docs/equations.md``: every equation of every paper, the code that computes it and the notebook cell that teaches it, generated from
the sheets' ``equations``.

python -m kdcore.papers.equations    # writes it; kdcore check says when it is out of date

Lines are looked up in the source, cells in the notebooks: a cell shows an equation if it contains its LaTeX, ignoring spaces.
"""

from pathlib import Path

from kdcore import papers, paths, validation
from kdcore.sources import cell, look_up, place

COMMAND = "python -m kdcore.papers.equations"
PAGE = Path("docs/equations.md")
INTRODUCTION = f"""\
<!-- Generated from `equations` in the sheets, the code and the notebooks by `{COMMAND}`. Change them, not this page. -->

# Equations

Every equation that a paper of the suite states or uses: its number in the paper (or the section or source if it has none), the code
that computes it, and the notebook cell that teaches it. A mark in brackets says how certain the number is ([marks](sheet.md#marks)).
To find an equation, search this page for a word, a function or a number.
"""


def outdated(root: Path) -> list[str]:
    """One sentence if the page is out of date."""
    there = (root / PAGE).read_text(encoding="utf-8") if (root / PAGE).is_file() else None
    if there == page():
        return []
    return [f"{PAGE} is {'missing' if there is None else 'not up to date'}: run {COMMAND}"]


def problems(paper) -> list[str]:
    """A sentence for each equation of a paper that no code computes or no cell of its notebook shows."""
    told = []
    for equation in paper.sheet.get("equations", []):
        where = f"{paper.key}/sheet.yaml: the equation '{equation['what']}'"
        for name in equation["code"]:
            try:
                found = look_up(name)
            except LookupError:
                told.append(f"{where} names {name}, which does not exist: give the dotted name of a function or class")
                continue
            if name != (home := f"{found.__module__}.{found.__qualname__}"):
                told.append(f"{where} names {name}, which is defined elsewhere: write {home}")
        if paper.notebook.is_file() and cell(paper.notebook, equation["latex"]) is None:
            told.append(f"{where} is in no cell of {paper.notebook.name}: show it in one, with the same LaTeX")
    return told


def write(root: Path) -> None:
    (root / PAGE).parent.mkdir(exist_ok=True)
    paths.write_text(root / PAGE, page())


def page() -> str:
    """The page as it should be. Raises LookupError for code that does not exist."""
    index, parts = ["| paper | number | equation | code |", "| --- | --- | --- | --- |"], []
    for key in papers.names():
        paper = papers.get(key)
        if not paper.sheet.get("equations"):
            continue
        parts.append(f"## {paper.sheet['short']}\n\n*{paper.sheet['title']}*, {paper.sheet['citation']}\n")
        for equation in paper.sheet["equations"]:
            heading = f"{paper.sheet['short'].partition(',')[0]}: {equation['what']}"
            code = [(name, *place(name)) for name in equation["code"]]
            links = ", ".join(f"[`{name}`](../{file}#L{line})" for name, file, line in code)
            index.append(f"| {paper.sheet['short']} | {number(equation)} | [{equation['what']}](#{anchor(heading)}) | {links} |")
            parts.append(f"### {heading}\n\n```math\n{equation['latex'].strip()}\n```\n")
            parts.append(f"- number: {number(equation)}")
            parts += [f"- code: `{name}`, [{file}, line {line}](../{file}#L{line})" for name, file, line in code]
            taught = cell(paper.notebook, equation["latex"])
            parts += [f'- lesson: [notebooks/{key}.ipynb](../notebooks/{key}.ipynb), cell {taught[0]}, "{taught[1]}"\n'] if taught else [""]
    return "\n".join([INTRODUCTION, "\n".join(index) + "\n", *parts])


def number(equation: dict) -> str:
    """The equation's number as shown on the page, with its mark unless it was verified."""
    return equation["number"] + ("" if equation["mark"] == "V" else f" ({equation['mark']})")


def anchor(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return "".join(letter for letter in heading.lower().replace(" ", "-") if letter.isalnum() or letter in "-_")


if __name__ == "__main__":
    write(validation.checkout())
