"""The documents: their code runs (registry.py), and what they name exists."""

import ast
import importlib.util
import inspect
import math
import re
import sys
from pathlib import Path

import pytest
import torch
from registry import EXAMPLES, METHODS, NETS

from kdcore import cli, losses, methods, models, papers
from kdcore.papers import equations
from kdcore.papers.images import weights_of
from kdcore.report import formats, tables
from kdcore.trials import child, plan
from kdcore.trials.store import Store
from kdcore.trials.weights import save_weights

ROOT = Path(__file__).parents[1]


def test_the_examples_stand_where_their_documents_say_and_run():
    names = EXAMPLES["adding_a_method.md"]
    assert losses.similarity.__module__ == "kdcore.losses" and methods.similarity.__module__ == "kdcore.methods"
    assert names["loss"].isfinite() and "similarity" in METHODS
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in names["student"].parameters())

    names = EXAMPLES["adding_a_network.md"]
    assert type(models.create("plain_2")).__module__ == "kdcore.models.plain" and "plain_2" in NETS
    (stage,) = names["method"].stages
    assert stage.loss(torch.randn(2, 3, 32, 32), torch.tensor([1, 2])).isfinite()


def test_the_example_of_figures_draws():
    records = [{"metrics": {"shift_test_errors": [7, 5, 6]}}, {"metrics": {"shift_test_errors": [8, 5, 4]}}, {"metrics": {}}]
    plots = EXAMPLES["figures.md"]["figures"](records)
    assert [len(line.get_xdata()) for line in plots["shift"]().axes[0].lines] == [3, 3, 3], "two seeds and their mean"
    assert EXAMPLES["figures.md"]["figures"](records[2:]) == {}


def listed():
    return [(key, equation) for key in papers.names() for equation in papers.get(key).sheet.get("equations", [])]


def test_every_function_that_cites_an_equation_is_in_the_list():
    """A docstring that has "eq. 3" is of code that computes one; every loss is."""
    named = {name for _, equation in listed() for name in equation["code"]}
    missing = []
    for path in sorted((ROOT / "kdcore").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        tops = [("", node) for node in ast.parse(path.read_text(encoding="utf-8")).body]
        inner = [(f"{top.name}.", node) for _, top in tops if isinstance(top, ast.ClassDef) for node in top.body]
        for prefix, node in tops + inner:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and re.search(r"\beq\. \d", ast.get_docstring(node) or ""):
                name = f"{module}.{prefix}{node.name}"
                missing += [] if any(f"{each}.".startswith(f"{name}.") for each in named) else [name]
    assert missing == []
    takes = {name for name, function in vars(losses).items() if getattr(function, "__annotations__", {}).get("reduction") is str}
    assert {f"kdcore.losses.{name}" for name in takes if name[0] != "_"} <= named
    assert {key for key, _ in listed()} == set(papers.names()), "every paper has some"


def test_an_equation_is_found_where_the_page_says():
    page = (ROOT / equations.PAGE).read_text(encoding="utf-8")
    places = re.findall(r"^- code: `(\S+)`, \[(\S+), line (\d+)\]", page, re.MULTILINE)
    assert len(places) == sum(len(equation["code"]) for _, equation in listed()) > 60
    for name, file, line in places:
        first = (ROOT / file).read_text(encoding="utf-8").split("\n")[int(line) - 1]
        assert re.match(rf"\s*(def|class) {name.rpartition('.')[2]}\b", first), (name, first)
    anchors = {equations.anchor(heading) for heading in re.findall(r"^### (.*)$", page, re.MULTILINE)}
    links = re.findall(r"\]\(#(\S+)\) \|", page)
    assert len(links) == len(listed()) == len(anchors) and set(links) == anchors


def test_an_equation_without_code_or_cell_is_told(monkeypatch):
    paper = papers.get("fsp")
    assert equations.problems(paper) == []
    broken = [equation | change for equation in paper.sheet["equations"][:1] for change in (
        {"code": ["kdcore.losses.fsp_matrices"]}, {"code": ["kdcore.loss.fsp"]}, {"latex": r"G = F_1^\top F_2"},
        {"latex": paper.sheet["equations"][0]["latex"].replace(" ", "  ")}, {"code": ["kdcore.papers.fsp.trial.piecewise"]},
    )]  # fmt: skip
    monkeypatch.setitem(paper.sheet, "equations", broken)
    where = "fsp/sheet.yaml: the equation 'FSP matrix'"
    assert equations.problems(paper) == [
        f"{where} names kdcore.losses.fsp_matrices, which does not exist: give the dotted name of a function or class",
        f"{where} names kdcore.loss.fsp, which does not exist: give the dotted name of a function or class",
        f"{where} is in no cell of fsp.ipynb: show it in one, with the same LaTeX",
        f"{where} names kdcore.papers.fsp.trial.piecewise, which is defined elsewhere: write kdcore.papers.images.piecewise",
    ]


@pytest.mark.parametrize("key, what", [("fsp", "FSP matrix"), ("hinton_mnist", "softened outputs")])
def test_the_cell_of_an_equation(key, what, tmp_path):
    (equation,) = [equation for own, equation in listed() if own == key and equation["what"] == what]
    assert equations.cell(papers.get(key).notebook, equation["latex"]) == (2, "Equation")
    assert equations.cell(tmp_path / f"{key}.ipynb", equation["latex"]) is None


def test_an_outdated_page_of_equations_is_told(tmp_path):
    assert equations.outdated(tmp_path) == [f"docs/equations.md is missing: run {equations.COMMAND}"]
    equations.write(tmp_path)
    assert equations.outdated(tmp_path) == []
    (tmp_path / "docs" / "equations.md").write_text("older")
    assert equations.outdated(tmp_path) == [f"docs/equations.md is not up to date: run {equations.COMMAND}"]


def test_the_picture_of_the_house_is_true():
    """Else: python docs/picture.py. None of its arrows goes up, in the order of the rooms."""
    spec = importlib.util.spec_from_file_location("picture", ROOT / "docs" / "picture.py")
    spec.loader.exec_module(picture := importlib.util.module_from_spec(spec))
    page = picture.PAGE.read_text(encoding="utf-8")
    assert picture.with_picture(page) == page
    order = list(picture.ROOMS)
    assert all(order.index(above) < order.index(below) for above, below in picture.arrows())
    rooms = {path.stem for path in (ROOT / "kdcore").iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert {name for name in rooms - {"__init__"} if picture.room(name) is None} == set(picture.FOUNDATION)
    assert picture.room("papers.fsp.trial") == "paper" and picture.room("papers.images") == "papers"


def hops():
    """[(hop, [what is called])] of the way of the data."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| .* \| (.*) \|$", page, re.MULTILINE)
    assert [int(hop) for hop, _ in rows] == list(range(1, len(rows) + 1))
    return [(int(hop), re.findall(r"`(\S+)`", code)) for hop, code in rows]


def codes(name):
    """The code objects of a function, or of all methods of a class."""
    found = equations.look_up(name)
    return {each.__code__ for each in (vars(found).values() if inspect.isclass(found) else [found]) if inspect.isfunction(each)}


def test_the_way_of_the_data_is_the_one_that_is_gone(tmp_path, monkeypatch):
    """A trial of FSP at smoke, in this process: what the hops name is called, in their order."""
    beside = {1, 6, 7}  # the command line, and what leads to another process
    wanted = {code: name for hop, names in hops() if hop not in beside for name in names for code in codes(name)}
    seen = []

    def watch(frame, event, _):
        if event == "call" and frame.f_code in wanted:
            seen.append(wanted[frame.f_code])

    papers._paper.cache_clear()
    store, paper = Store(tmp_path), papers.get("fsp")
    monkeypatch.setitem(paper.sheet["budgets"]["smoke"]["config"], "scale", 0.0002)
    (trial,) = paper.trials("smoke", ["FSP 8"], [0])
    save_weights(trial.teacher, weights_of(models.create("resnet_14")))
    paper._trials.clear(), paper._configs.clear()
    sys.setprofile(watch)
    try:
        (job,) = plan.make("fsp", "smoke", ["FSP 8"], [0], store).jobs
        child.run(job.cohort, store, "cpu", "auto", math.inf, lambda *_, **__: None, set())
        frame = tables.table(papers.get("fsp"), "cifar10", store.records("fsp", "smoke"), "smoke")
        formats.to_html(frame), formats.to_markdown(frame)
    finally:
        sys.setprofile(None)
        papers._paper.cache_clear()
    first = list(dict.fromkeys(seen))
    assert set(wanted.values()) - set(first) == set()
    places = [min(map(first.index, names)) for hop, names in hops() if hop not in beside]
    assert places == sorted(places), first


# ---------------------------------------------------------------- what any page names

PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]


def prose(page):
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def headings(page):
    """The anchors that GitHub gives."""
    return {equations.anchor(heading.replace("`", "")) for heading in re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not re.match(r"https?://|\.\./\.\./actions/", target):  # GitHub has the badge of a workflow there, beside the files
            path, _, place = target.partition("#")
            file = (ROOT / page).parent / path if path else ROOT / page
            assert file.exists(), target
            if place and file.suffix == ".md":
                assert place in headings(file.relative_to(ROOT)), target
            if place.startswith("L"):
                assert int(place[1:]) <= len(file.read_text(encoding="utf-8").split("\n")), target


def test_the_readme_leads_to_every_page():
    linked = set(re.findall(r"\]\(([^)\s#]+)", prose("README.md")))
    assert {page for page in PAGES if page != "README.md"} <= linked


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_exists(page):
    """Dotted names of kdcore, files (with KEY for a paper's), targets of make, commands, tests, registry's rows, in `code`."""
    names = re.findall(r"`([^`\n]+)`", prose(page))
    fenced = re.findall(r"^```sh\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = [re.split(r"\s+# ", line)[0].strip() for block in fenced for line in block.splitlines()]
    targets = set(re.findall(r"^([a-z/.]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("*.py"))
    for name in [*names, *lines]:
        if re.fullmatch(r"kdcore(\.\w+)+", name):
            equations.look_up(name)
        elif re.fullmatch(r"(kdcore|tests|docs|benchmarks|notebooks)/[\w./]+", name):
            assert (ROOT / name.replace("KEY", "fsp")).exists() or (ROOT / name.replace("KEY", "hinton_mnist")).exists(), name
        elif re.match(r"make \S", name):
            assert set(re.findall(r"(?<= )[a-z/.]+(?= |$)", name)) <= targets, name
        elif re.match(r"kdcore [a-z]", name):
            assert name.split()[1] in cli.parser()._subparsers._group_actions[0].choices, name
        elif re.match(r"(\S*/)?(pytest|python) ", name):
            files = [word for word in name.split() if word.endswith(".py")]
            modules = re.findall(r"-m (\S+)", name)
            assert all((ROOT / file).is_file() for file in files) and all(importlib.util.find_spec(module) for module in modules), name
        elif re.fullmatch(r"test_\w+", name):
            assert f"def {name}(" in tests, name
