"""The picture of the house in architecture.md, drawn from the imports of the code.

python docs/picture.py    # draws it anew; a test says when it is not true
"""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- picture -->\n", "<!-- /picture -->"
# the rooms, from the top: what belongs to each, by the beginnings of its modules' names; the first that fits counts
ROOMS = {
    "cli": ("command line", ["cli", "starting"]),
    "checks": ("checks: sheets, records and pages agree", ["checks"]),
    "notebooks": ("notebooks: what a notebook calls", ["notebooks"]),
    "outputs": ("outputs: what lies in results/", ["outputs", "unchanged"]),
    "trials": ("trials: plan, engine, child, store", ["trials"]),
    "paper": ("papers/KEY: sheet.yaml, trial.py, figures.py", []),  # every folder below papers
    "report": ("report: tables, claims, kinds of plots", ["report"]),
    "papers": ("papers: registry, sheets, trials on images", ["papers"]),
    "methods": ("methods: stages of losses, teachers", ["methods", "objective", "connectors", "teacher"]),
    "training": ("training: stage, fit, step, run", ["training"]),
    "models": ("models: networks with taps", ["models"]),
    "data": ("data: images, tables, views", ["data"]),
    "losses": ("losses: equations", ["losses", "metrics"]),
}  # fmt: skip
FOUNDATION = ("errors", "paths", "sources", "validation")  # below all of them, not drawn


def room(module: str) -> str | None:
    """The room of a module, by its name below kdcore."""
    parts = module.split(".")
    if parts[0] == "papers" and len(parts) > 1 and (ROOT / "kdcore" / "papers" / parts[1]).is_dir():
        return "paper"
    fits = [(len(start), name) for name, (_, starts) in ROOMS.items() for start in starts if f"{module}.".startswith(f"{start}.")]
    return max(fits)[1] if fits else None


def arrows() -> set[tuple[str, str]]:
    """(room, a room that it imports), imports inside of functions included."""
    files = {".".join(path.relative_to(ROOT / "kdcore").with_suffix("").parts): path for path in (ROOT / "kdcore").rglob("*.py")}
    modules = {name.removesuffix(".__init__"): path for name, path in files.items()}
    found = set()
    for name, path in modules.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            for full in names:
                other = full.removeprefix("kdcore.")
                other = other if other in modules else other.rpartition(".")[0]
                if full.startswith("kdcore.") and other in modules and room(name) and room(other):
                    found.add((room(name), room(other)))
    return {(a, b) for a, b in found if a != b}


def drawn() -> set[tuple[str, str]]:
    """The arrows without those that others imply."""
    every = arrows()

    def reached(start: str, skipped: tuple[str, str]) -> set[str]:
        seen, waiting = set(), [start]
        while waiting:
            place = waiting.pop()
            for a, b in every:
                if a == place and (a, b) != skipped and b not in seen:
                    seen.add(b)
                    waiting.append(b)
        return seen

    return {arrow for arrow in every if arrow[1] not in reached(arrow[0], arrow)}


def picture() -> str:
    """The block of architecture.md."""
    lines = ["```mermaid", "flowchart TD"]
    lines += [f'    {name}["{about}"]' for name, (about, _) in ROOMS.items()]
    order = list(ROOMS)
    lines += [f"    {a} --> {b}" for a, b in sorted(drawn(), key=lambda arrow: tuple(map(order.index, arrow)))]
    lines += ["    papers -.->|by its key| paper", "```"]
    return "\n".join(lines) + "\n"


def with_picture(text: str) -> str:
    before, rest = text.split(BEGIN)
    return before + BEGIN + picture() + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(with_picture(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
