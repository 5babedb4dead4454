"""Notebooks: linted sources, strict parameters, an end-to-end run with papermill, killed kernels."""

import ast
import base64
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import bare
import nbformat
import papermill
import pytest
from papermill.exceptions import PapermillExecutionError

from kdcore import checks, cli, notebooks, papers, validation
from kdcore.errors import KdcoreError
from kdcore.notebooks import batch, cells, parameters
from kdcore.papers.ba_caruana_mimic.sliders import explore_logits
from kdcore.report import sliders

ROOT = Path(__file__).parents[1]
HEADINGS = ["Claim", "Equation", "Setup", "Tables", "Plots", "Verdict", "What was easy, what was hard"]


@pytest.fixture(params=papers.names())
def source(request) -> Path:
    return ROOT / "notebooks" / f"{request.param}.ipynb"


def test_sources_are_stripped_and_have_the_headings(source):
    notebook = nbformat.read(source, 4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None, "commit sources stripped: nbstripout notebooks/*.ipynb"
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == HEADINGS
    assert notebook.metadata.kernelspec.name == "python3"


def test_the_first_code_cell_holds_typed_parameters_with_help(source):
    first = next(cell for cell in nbformat.read(source, 4).cells if cell.cell_type == "code")
    assert first.metadata.tags == ["parameters"]
    for line in first.source.splitlines():
        assert line.count("=") == 1, "a second '=' cannot be parsed for --help-notebook"
        code, _, help_text = line.partition("#")
        assert help_text.strip()
        (node,) = ast.parse(code.strip()).body
        assert isinstance(node, ast.AnnAssign)
        ast.literal_eval(node.value)
    declared = papermill.inspect_notebook(str(source))
    assert set(declared) == {"budget", "seeds", "device", "engine", "results_dir"}
    assert declared["budget"]["default"] == '"smoke"' and all(entry["help"] for entry in declared.values())


def test_every_number_and_figure_of_the_sheet_is_shown(source):
    text = source.read_text()
    paper = papers.get(source.stem)
    for table in paper.tables:
        assert f'page.table(\\"{table["id"]}\\")' in text
    assert "page.claims()" in text and 'page.facts(\\"deviations\\")' in text


def test_replicate_end_to_end(tmp_path, capsys):
    """papermill, children, records, tables and figures, on one seed of the embedded data."""
    assert cli.main(["replicate", "born_again_trees", "--seeds", "1", "--results", str(tmp_path)]) == 0
    executed = tmp_path / "smoke" / "executed" / "born_again_trees.ipynb"
    assert batch.unfinished(executed) is None
    assert str(ROOT) not in executed.read_text(), "no folder of this machine in the copy"
    html = "".join(str(output) for cell in nbformat.read(executed, 4).cells for output in cell.get("outputs", []))
    assert "28.2" in html and "– demo" in html, "the paper's number stands beside ours, which is no verdict on it"
    assert "image/png" in html
    assert executed.stat().st_size < checks.MOST_BYTES and html.count("<style>") == 1
    records = list((tmp_path / "smoke" / "records" / "born_again_trees").glob("*.json"))
    assert len(records) == len(papers.get("born_again_trees").trials("smoke", seeds=[0]))
    assert not (tmp_path / "records").exists(), "smoke never touches what is committed"
    # a second run trains nothing
    before = {path: path.stat().st_mtime_ns for path in records}
    assert cli.main(["replicate", "born_again_trees", "--seeds", "1", "--results", str(tmp_path)]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in records}
    assert cli.main(["check", "--results", str(tmp_path)]) == 0
    assert capsys.readouterr().err == "", "records are valid, and nothing is committed that could be out of date"


def test_unknown_parameters_are_refused_before_anything_trains(tmp_path):
    """papermill itself only warns and runs with the defaults."""
    source = ROOT / "notebooks" / "hinton_mnist.ipynb"
    with pytest.raises(
        KdcoreError,
        match="unknown parameter bugdet: hinton_mnist.ipynb has budget, seeds, device, engine, results_dir .did you mean budget",
    ):
        parameters.refuse_unknown(source, {"bugdet": "fast"})
    values = {"bugdet": "fast", "results_dir": str(tmp_path / "results")}
    with pytest.raises(
        PapermillExecutionError, match="unknown parameter bugdet: this notebook has budget, seeds, device, engine, results_dir"
    ):
        papermill.execute_notebook(source, tmp_path / "out.ipynb", values, kernel_name="python3", cwd=ROOT, progress_bar=False)
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    "changes, complaint",
    [
        ({"budget": "huge"}, "has no budget 'huge'"),
        ({"engine": "slurm"}, "unknown engine 'slurm'"),
        ({"device": "cuda:9"}, "there is no device 'cuda:9'"),
        *(({"seeds": bad}, "seeds must be a number of seeds") for bad in ("three", True, 1.0, {"0": 1}, (n for n in [0]))),
        *(({"seeds": [bad]}, "a seed must be a whole number") for bad in (-1, "a", 1.5, [0], None, True)),
        ({"seeds": -1}, "the number of seeds must be"),
        ({"seeds": []}, "the list of seeds is empty"),
        *(({"results_dir": bad}, "folder") for bad in ("", 3, None, ["results"], "a\0b")),
        ({"results_dir": "README.md"}, "README.md is not a folder"),
        *(({"budget": bad}, "has no budget") for bad in (None, 3, "", ["smoke"])),
        *(({"engine": bad}, "unknown engine") for bad in (None, 3, "", ["local"])),
        *(({"device": bad}, "unknown device .*: choose cpu") for bad in (None, 3, "", "cuda:-1", "cuda:٣", ["cpu"])),
    ],
)
def test_bad_parameters(changes, complaint, tmp_path):
    values = {"budget": "smoke", "seeds": 1, "device": "cpu", "engine": "local", "results_dir": str(tmp_path)} | changes
    with pytest.raises(KdcoreError, match=complaint):
        notebooks.Page("hinton_mnist", **values)


def test_a_table_that_no_shown_budget_runs_is_there_with_the_papers_numbers(tmp_path):
    page = notebooks.Page("fsp", budget="laptop", seeds=1, device="cpu", engine="local", results_dir=str(tmp_path))
    shown = []
    page._show = shown.append
    page.table("cifar100")  # laptop has CIFAR-10 alone
    (frame,) = shown
    assert list(frame["paper"]) == [64.06, 58.65, 61.28, 63.33]
    assert set(frame["verdict"]) == {"not run"}
    with pytest.raises(KdcoreError, match="cifar1000"):
        page.table("cifar1000")


def test_a_figure_that_no_shown_budget_draws_is_told(tmp_path, capsys):
    values = {"seeds": 1, "device": "cpu", "engine": "local", "results_dir": str(tmp_path)}
    notebooks.Page("fitnets", budget="laptop", **values).figure("paper_cifar100")
    assert capsys.readouterr().out.split()[:4] == ["No", "figure", "'paper_cifar100':", "budget"]
    with pytest.raises(KdcoreError, match="no figure 'paper_cifar1000'"):
        notebooks.Page("fitnets", budget="smoke", **values).figure("paper_cifar1000")


def test_a_control_redraws_its_figure(monkeypatch):
    shown = []
    monkeypatch.setattr(sliders, "display", shown.append)
    explore_logits()
    ((slider, image),) = (box.children for box in shown)
    before = image.value
    slider.value = 10.0
    assert before[:4] == image.value[:4] == b"\x89PNG" and before != image.value


def test_what_no_record_measured_is_told(tmp_path):
    page = notebooks.Page("hinton_mnist", budget="smoke", seeds=1, device="cpu", engine="local", results_dir=str(tmp_path))
    with pytest.raises(KdcoreError, match="no record has the metric 'gallery'"):
        page.measured("gallery")


@pytest.mark.parametrize(
    "line, complaint",
    [
        ("lr = 0.5", None),
        ("lr = 1", None),
        ("steps = 3", None),
        ("name = 'x'", None),
        ("free = [1]", None),
        ("seeds = [0, 3]", None),
        ("lr = '0.5'", "the parameter lr must be of type float, not '0.5'"),
        ("lr = True", "must be of type float, not True"),
        ("lr = float('nan')", "must be of type float, not nan"),
        ("lr = None", "must be of type float, not None"),
        ("steps = 3.0", "the parameter steps must be of type int, not 3.0"),
        ("steps = False", "the parameter steps must be of type int, not False"),
        ("fast = 1", "the parameter fast must be of type bool, not 1"),
        ("name = 3", "the parameter name must be of type str, not 3"),
        ("stepz = 3", r"unknown parameter stepz: this notebook has .* \(did you mean steps\?\)"),
    ],
)
def test_injected_parameters_have_the_declared_type(line, complaint, monkeypatch):
    declared = "seeds: int = 0  # how many\nlr: float = 0.1  # rate\nsteps: int = 5\nfast: bool = True\nname: str = 'a'\nfree = 3"
    monkeypatch.setattr(sys.modules["__main__"], "In", ["", declared, f"# Parameters\n{line}\n", "page = ..."], raising=False)
    if complaint is None:
        parameters.refuse_injected()
    else:
        with pytest.raises(KdcoreError, match=complaint):
            parameters.refuse_injected()


def test_a_foreign_kernel_is_refused(monkeypatch):
    """A python3 kernel of the user's that shadows this environment's: its kdcore is another, or none."""
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager, NoSuchKernel

    def kernel_is(spec):
        monkeypatch.setattr(KernelSpecManager, "get_kernel_spec", lambda self, name: spec)

    for own in ("python", "python3", sys.executable):
        kernel_is(KernelSpec(argv=[own, "-m", "ipykernel_launcher"]))
        batch.refuse_foreign_kernel()
    kernel_is(KernelSpec(argv=["/opt/other/bin/python", "-m", "ipykernel_launcher"]))
    with pytest.raises(KdcoreError, match="the Jupyter kernel python3 is /opt/other/bin/python, not .* --sys-prefix"):
        batch.refuse_foreign_kernel()
    monkeypatch.setattr(KernelSpecManager, "get_kernel_spec", lambda self, name: (_ for _ in ()).throw(NoSuchKernel(name)))
    with pytest.raises(KdcoreError, match="Jupyter has no kernel python3"):
        batch.refuse_foreign_kernel()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout whose only notebook has the parameters and one cell, and whose trials need not run: (folder, execute a cell)."""
    folder = tmp_path / "checkout"
    (folder / "notebooks").mkdir(parents=True)
    (folder / "kdcore").mkdir()
    notebook = nbformat.read(ROOT / "notebooks" / "hinton_mnist.ipynb", 4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(validation, "checkout", lambda: folder)
    monkeypatch.setattr(notebooks.Page, "run", lambda page, quiet: None)

    def execute(source):
        notebook.cells = [first, nbformat.v4.new_code_cell(source), nbformat.v4.new_code_cell("print('reached')")]
        nbformat.write(notebook, folder / "notebooks" / "hinton_mnist.ipynb")
        batch.execute("hinton_mnist", results="results", budget="smoke", device="cpu", engine="local", seeds=[0])

    return folder, execute


def test_a_killed_kernel_never_yields_a_notebook_that_looks_finished(checkout):
    folder, execute = checkout
    with pytest.raises(KdcoreError, match="the kernel of hinton_mnist.ipynb died"):
        execute("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert not list(folder.rglob("executed/*")), "neither the notebook nor a temporary file"


def test_a_lost_kernel_is_given_a_second_chance(checkout, monkeypatch):
    """A cell that hangs the first time; then one that always does."""
    folder, execute = checkout
    monkeypatch.setattr(batch, "CELL_SECONDS", 5)
    hang = "import pathlib, time; seen = pathlib.Path('seen'); known = seen.exists(); seen.touch(); time.sleep(0 if known else 600)"
    with pytest.raises(KdcoreError, match="ran, but only 0 of"):  # the second time it ends, and the missing trials are told
        execute(hang)
    with pytest.raises(
        KdcoreError, match=r"hinton_mnist.ipynb hung twice \(A cell timed out .* after 5 seconds.\): execute it in JupyterLab"
    ):
        execute("import time; time.sleep(600)")
    assert not list(folder.rglob("executed/*"))


def test_unfinished_notebooks_are_told_apart(tmp_path):
    def written(**changes):
        cell = nbformat.v4.new_code_cell("1 + 1", execution_count=1)
        cell.update(changes)
        path = tmp_path / "n.ipynb"
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
        return path

    assert batch.unfinished(written()) is None
    assert "not executed" in batch.unfinished(written(execution_count=None))
    error = nbformat.v4.new_output("error", ename="ValueError", evalue="no", traceback=[])
    assert batch.unfinished(written(outputs=[error])) == "ValueError: no"


def test_a_child_needs_no_jupyter(tmp_path):
    """A bare GPU machine has torch, numpy, scikit-learn, safetensors and PyYAML: nothing else may be imported to train."""
    code = (
        "import sys, kdcore.trials.child, kdcore.papers.hinton_mnist.trial, kdcore.cli\n"
        "assert 'torchvision' not in sys.modules, 'slow to import, and only the download needs it'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=bare.environment(tmp_path / "site"))
    assert done.returncode == 0, done.stderr


def test_a_copy_shows_a_widgets_picture_and_its_style_once(checkout):
    """On GitHub nothing else could be seen of a widget; the picture is the one that it showed first."""
    folder, _ = checkout
    source = "\n".join(
        [
            "import ipywidgets",
            "from IPython.display import HTML, display",
            "picture = ipywidgets.Image(value=b'\\x89PNG picture', format='png')",
            "display(ipywidgets.VBox([ipywidgets.IntSlider(), ipywidgets.HBox([picture])]))",
            "for text in ('one', 'two'): display(HTML(f'<style>p {{ color: red }}</style><p>{text}</p>'))",
            "display(HTML('<style>p { color: blue }</style><p>three</p>'))",
        ]
    )
    path = folder / "copy.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)]), folder / "in.ipynb")
    papermill.execute_notebook(folder / "in.ipynb", path, kernel_name="python3", progress_bar=False)
    batch._settle(path, "notebooks/in.ipynb", "copy.ipynb")
    (cell,) = (notebook := nbformat.read(path, 4)).cells
    first, *tables = (output.data for output in cell.outputs)
    assert base64.b64decode(first["image/png"]) == b"\x89PNG picture" and set(first) == {"image/png", "text/plain"}
    assert [table["text/html"] for table in tables] == [
        "<style>p { color: red }</style><p>one</p>", "<p>two</p>", "<style>p { color: blue }</style><p>three</p>",
    ]  # fmt: skip
    assert "widgets" not in notebook.metadata and notebook.metadata.papermill.input_path == "notebooks/in.ipynb"


def test_ctrl_c_while_papermill_runs_is_one_sentence_and_leaves_nothing(checkout):
    """A cell runs for ever; what is left afterwards: no file, no kernel."""
    folder, _ = checkout
    notebook = nbformat.read(ROOT / "notebooks" / "hinton_mnist.ipynb", 4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    endless = "import os, pathlib, time; pathlib.Path('kernel').write_text(str(os.getpid())); time.sleep(600)"
    notebook.cells = [first, nbformat.v4.new_code_cell(endless)]
    nbformat.write(notebook, folder / "notebooks" / "hinton_mnist.ipynb")
    code = (
        "import pathlib, sys; from kdcore import checks, cli, notebooks, validation; notebooks.Page.run = lambda *_, **__: None\n"
        "from kdcore.notebooks import cells; cells.problems = lambda paper: []\n"  # this notebook is nobody's sheet's
        "validation.checkout = pathlib.Path.cwd; sys.exit(cli.main(sys.argv[1:]))"
    )
    words = [sys.executable, "-c", code, "replicate", "hinton_mnist", "--results", "results"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}  # the folder's own kdcore/ would hide an editable install
    process = subprocess.Popen(words, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        while not ((folder / "kernel").exists() and (folder / "kernel").read_text()) and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, errors) == (3, "kdcore: stopped; the same command resumes from here\n")
    assert not list(folder.rglob("executed/*"))
    with pytest.raises(ProcessLookupError):
        for _ in range(50):  # a killed process whose parent is gone is there until init has heard of it
            os.kill(int((folder / "kernel").read_text()), 0)
            time.sleep(0.1)


def test_a_notebook_that_does_not_agree_with_its_sheet_says_so_before_it_runs(tmp_path, monkeypatch, capsys):
    def stop(*_, **__):
        raise KdcoreError("not run here")

    monkeypatch.setattr(cells, "problems", lambda paper: [f"the cell 'budgets' of {paper.key} is not its sheet's", "another"])
    monkeypatch.setattr(batch, "Page", stop)
    with pytest.raises(KdcoreError, match="not run here"):
        batch.execute("fsp", budget="smoke", seeds=None, device="cpu", engine="local", results=str(tmp_path))
    assert capsys.readouterr().err == "kdcore: the cell 'budgets' of fsp is not its sheet's (1 more: kdcore check lists them)\n"
