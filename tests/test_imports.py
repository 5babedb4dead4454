"""The arrows of the house: who imports whom, read from the syntax of every module of the package."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What each part of the package may import beside itself. The library stands on its own; of the suite, trials and report meet the
# papers only through `papers.get` and `papers.names`.
FOUNDATION = {"errors", "paths", "validation", "metrics", "sources"}
LIBRARY = FOUNDATION | {"losses", "models", "data", "training", "teacher", "objective", "connectors", "methods"}
MAY_IMPORT = {
    "errors": set(),
    "sources": set(),
    "metrics": set(),
    "validation": {"errors"},
    "paths": {"errors"},
    "losses": FOUNDATION,
    "models": FOUNDATION,
    "data": FOUNDATION,
    "training": FOUNDATION | {"losses", "models", "data"},
    "teacher": FOUNDATION | {"models", "data"},
    "objective": FOUNDATION | {"losses", "models", "teacher"},
    "connectors": FOUNDATION | {"losses", "models", "teacher", "objective"},
    "methods": LIBRARY - {"methods"},
    "report": FOUNDATION,
    "papers": LIBRARY | {"report"},
    "trials": LIBRARY | {"papers"},
    "outputs": FOUNDATION | {"papers", "trials", "report"},
    "notebooks": FOUNDATION | {"papers", "trials", "report"},
    "checks": FOUNDATION | {"papers", "trials", "report", "outputs", "notebooks"},
    "unchanged": FOUNDATION,
    "starting": FOUNDATION | {"papers", "notebooks"},
    "cli": LIBRARY | {"kdcore", "papers", "trials", "report", "outputs", "notebooks", "checks", "starting", "unchanged"},
}
MET = {"kdcore.papers", "kdcore.papers.spec"}  # what trials, outputs and notebooks see of the papers
SHARED = ("losses", "models", "data", "training", "methods", "metrics", "trials", "report", "notebooks")


@cache
def modules() -> dict[str, ast.Module]:
    """{name: syntax tree} of every module of the package."""
    trees = {}
    for path in sorted((ROOT / "kdcore").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        trees[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return trees


def nodes(tree: ast.AST, functions: bool) -> Iterator[ast.AST]:
    """The nodes below ``tree``; without ``functions`` only those that are executed when the module is imported."""
    for child in ast.iter_child_nodes(tree):
        if functions or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from nodes(child, functions)


def imports(tree: ast.Module, known, functions: bool) -> set[str]:
    """The modules of the package that a module imports."""
    names = set()
    for node in nodes(tree, functions):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                names.add(full if full in known else node.module)
    return names & set(known)


def part(module: str) -> str:
    """The part of the package that a module belongs to: a module or folder at its root."""
    return module.split(".")[1] if "." in module else module


def wrong_arrows(trees: dict[str, ast.Module]) -> set[tuple[str, str]]:
    """(module, imported module) for each import that ``MAY_IMPORT`` does not allow, those inside of functions included."""
    wrong = set()
    for module, tree in trees.items():
        for other in imports(tree, trees, functions=True):
            own, theirs = part(module), part(other)
            allowed = own == theirs or theirs in MAY_IMPORT.get(own, set())
            if own not in ("papers", "checks", "kdcore") and theirs == "papers":
                allowed = allowed and other in MET
            if not allowed:
                wrong.add((module, other))
    return wrong


def circle(trees: dict[str, ast.Module]) -> list[str]:
    """Modules that import one another in a circle when they are loaded; [] where there is none."""
    arrows = {module: imports(tree, trees, functions=False) - {module} for module, tree in trees.items()}
    done: set[str] = set()

    def walk(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for other in sorted(arrows[module]):
            if around := walk(other, [*path, module]):
                return around
        done.add(module)
        return []

    return next((around for module in sorted(arrows) if (around := walk(module, []))), [])


def uses_of_papers(tree: ast.Module) -> set[str]:
    """What a module takes from ``kdcore.papers``: ``papers.get`` and ``from kdcore.papers import get`` both give "get"."""
    taken = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kdcore.papers") and node.module != "kdcore.papers.spec"
        for alias in node.names
    }
    names = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "kdcore"
        for alias in node.names
        if alias.name == "papers"
    }
    return taken | {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in names
    }


def test_every_part_has_its_place():
    assert {part(module) for module in modules()} - {"kdcore"} == set(MAY_IMPORT)


def test_no_arrow_goes_up():
    assert wrong_arrows(modules()) == set()


def test_no_circle():
    assert circle(modules()) == []


def test_what_stands_beside_the_papers_meets_them_through_get_and_names():
    shared = {module: uses_of_papers(tree) for module, tree in modules().items() if part(module) in SHARED}
    assert {(module, name) for module, names in shared.items() for name in names - {"get", "names"}} == set()


@pytest.mark.parametrize("module", sorted(name for name in modules() if part(name) in ("report", "trials", "notebooks")))
def test_no_shared_module_names_a_paper(module):
    """Its folder's name, in code or in a text, but in a docstring, where it may be an example."""
    keys = {path.parent.name for path in (ROOT / "kdcore" / "papers").glob("*/sheet.yaml")}
    tree = modules()[module]
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)}
    texts = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
    ]
    words = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)] + [text for text in texts if text in keys]
    assert not keys & set(words)


def test_planted_faults_are_seen():
    trees = {
        name: ast.parse("") for name in ("kdcore.losses", "kdcore.papers", "kdcore.papers.fsp.trial", "kdcore.report.tables", "kdcore.cli")
    }
    up = trees | {"kdcore.losses": ast.parse("def f():\n    from kdcore import papers")}
    assert wrong_arrows(up) == {("kdcore.losses", "kdcore.papers")}
    deep = trees | {"kdcore.report.tables": ast.parse("from kdcore.papers.fsp import trial")}
    assert wrong_arrows(deep) == {("kdcore.report.tables", "kdcore.papers.fsp.trial")}
    beside = trees | {"kdcore.report.tables": ast.parse("from kdcore import papers")}
    assert wrong_arrows(beside) == {("kdcore.report.tables", "kdcore.papers")}
    around = trees | {"kdcore.losses": ast.parse("import kdcore.cli"), "kdcore.cli": ast.parse("from kdcore import losses")}
    assert circle(around) == ["kdcore.cli", "kdcore.losses", "kdcore.cli"]
    later = trees | {"kdcore.losses": ast.parse("def f(): import kdcore.cli"), "kdcore.cli": ast.parse("from kdcore import losses")}
    assert circle(later) == [], "a function's import runs when all modules are there"
    assert uses_of_papers(ast.parse("from kdcore import papers\npapers.get('a').x\npapers.HERE")) == {"get", "HERE"}
    assert uses_of_papers(ast.parse("from kdcore.papers.sheet import read")) == {"read"}
