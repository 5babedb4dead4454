"""Notebooks executed by papermill."""

import contextlib
import os
import re
import sys
from pathlib import Path

import nbformat
import papermill
import psutil  # a dependency of Jupyter
from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

from kdcore import papers, paths, validation
from kdcore.errors import KdcoreError
from kdcore.notebooks import cells, parameters
from kdcore.notebooks.page import Page
from kdcore.trials import plan
from kdcore.trials.store import Store

CELL_SECONDS = 600.0  # time limit of a cell: trials have run before, and drawing takes seconds
VIEW, STATE = (f"application/vnd.jupyter.widget-{what}+json" for what in ("view", "state"))


def execute(key: str, *, budget: str, seeds: list[int] | None, device: str, engine: str, results: str) -> None:
    """Run the missing trials of a paper, then execute its notebook with papermill.

    The executed copy is saved only if every cell ran and every trial of the budget has a record: in ``executed`` of the results
    folder, for smoke in ``smoke/executed``. Trials run before the notebook is executed, so a cell that does not end means a lost
    kernel; the notebook is then executed a second time.
    """
    root = validation.home()
    source = papers.get(key).notebook
    folder = (Path.cwd() / results).resolve()
    if not source.exists():
        raise KdcoreError(f"{source} is missing: restore it from git, or let kdcore notebook {key} start a new one")
    if problems := cells.problems(papers.get(key)):  # it runs all the same, but shows something other than its sheet
        more = f" ({len(problems) - 1} more: kdcore check lists them)" if len(problems) > 1 else ""
        print(f"kdcore: {problems[0]}{more}", file=sys.stderr)
    store = Store(folder)
    target = store.root(budget) / "executed" / f"{key}.ipynb"
    inside = folder.relative_to(root) if folder.is_relative_to(root) else folder  # keep this machine's paths out of the copy
    values = {"budget": budget, "device": device, "engine": engine, "results_dir": str(inside)}
    if seeds is not None:
        values["seeds"] = seeds
    parameters.refuse_unknown(source, values)
    refuse_foreign_kernel()
    page = Page(key, budget=budget, seeds=seeds, device=device, engine=engine, results_dir=str(folder))
    print(f"{key}: executing at budget {budget} ...", flush=True)
    page.run(quiet=False)
    outcome: dict = {}

    def run_to(temporary: str) -> None:
        _run(source, temporary, values)
        if problem := unfinished(Path(temporary)):
            raise KdcoreError(f"{source.name} did not finish ({problem}): run the same command again")
        _settle(Path(temporary), str(source.relative_to(root)), target.name)
        planned = plan.make(key, budget, None, seeds, store)
        outcome["trials"], outcome["done"] = len(planned.trials), len(planned.done)
        if outcome["done"] < outcome["trials"]:
            raise KdcoreError(
                f"{source.name} ran, but only {outcome['done']} of {outcome['trials']} trials have a record: run the same command again"
            )

    try:
        paths.write_atomically(target, run_to)
    except papermill.exceptions.PapermillExecutionError as error:
        raise KdcoreError(f"{source.name} stopped in cell {error.exec_count}: {error.evalue}") from error
    except KeyboardInterrupt:
        _end_children()
        raise
    except RuntimeError as error:  # nbclient's DeadKernelError
        raise KdcoreError(f"the kernel of {source.name} died ({error}): run the same command again") from error
    print(f"{key}: {outcome['trials']} trials at budget {budget}; {os.path.relpath(target)}")


def _run(source: Path, target: str, values: dict) -> None:
    """Execute a notebook, and once more if a cell hangs."""
    if (folder := validation.other_papers()) is not None:
        os.environ["KDCORE_PAPERS"] = str(folder)  # absolute, since the kernel starts in another folder
    for last in (False, True):
        try:
            papermill.execute_notebook(
                str(source),
                target,
                parameters=values,
                progress_bar=False,
                cwd=str(validation.checkout()),
                kernel_name="python3",
                execution_timeout=CELL_SECONDS,
                extra_arguments=["--IPKernelApp.log_level=50"],  # hide the kernel's notices about local TCP and shutdown
            )
            return
        except TimeoutError as error:  # Jupyter can lose a kernel's reply, and would wait for it forever
            if last:
                words = f"{source.name} hung twice ({str(error).splitlines()[0]}): execute it in JupyterLab to see why"
                raise KdcoreError(words) from error


def refuse_foreign_kernel() -> None:
    """Raises KdcoreError unless the kernel that papermill starts uses this Python, whose kdcore made the records."""
    cure = f"`{sys.executable} -m ipykernel install --sys-prefix` makes it this Python's"
    try:
        program = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except (NoSuchKernel, OSError, ValueError, IndexError) as error:
        raise KdcoreError(f"Jupyter has no kernel python3 that it can start ({error}): {cure}") from error
    major, minor = sys.version_info[:2]
    own = {"python", f"python{major}", f"python{major}.{minor}"}  # for Jupyter these mean the Python that runs it
    if program not in own and os.path.realpath(os.path.dirname(program)) != os.path.realpath(os.path.dirname(sys.executable)):
        raise KdcoreError(f"the Jupyter kernel python3 is {program}, not {sys.executable}, which runs kdcore: {cure}")


def unfinished(path: Path) -> str | None:
    """Why an executed notebook is not finished (a cell without an execution count, an error), or None."""
    for cell in nbformat.read(path, 4).cells:
        if cell.cell_type != "code":
            continue
        if cell.source.strip() and cell.execution_count is None:
            return "a cell was not executed"
        for output in cell.outputs:
            if output.output_type == "error":
                return f"{output.ename}: {output.evalue}"
    return None


def _end_children() -> None:
    """Kill all child processes, so that no kernel outlives this process."""
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


def _settle(path: Path, source: str, target: str) -> None:
    """Make an executed notebook the copy that is committed, which is read without a kernel: papermill's paths of this machine are
    replaced, a picture stands in place of each widget, and the style sheet of tables is kept only where it stands first."""
    notebook = nbformat.read(path, 4)
    notebook.metadata.papermill |= {"input_path": source, "output_path": target}
    widgets = notebook.metadata.pop("widgets", {}).get(STATE, {}).get("state", {})
    styles: set[str] = set()
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)  # how long it took, which no reader asks
    for data in (output.data for cell in notebook.cells for output in cell.get("outputs", ()) if "data" in output):
        if VIEW in data and (picture := _picture(widgets, data.pop(VIEW)["model_id"])):
            data["image/png"] = picture
        if "text/html" in data:
            data["text/html"] = _STYLE.sub(lambda found: "" if found[0] in styles else styles.add(found[0]) or found[0], data["text/html"])
    nbformat.write(notebook, path)


_STYLE = re.compile(r"<style>.*?</style>\s*", re.DOTALL)


def _picture(widgets: dict, name: str) -> str | None:
    """The image in a widget, or in one that it contains, in base64."""
    model = widgets.get(name, {})
    if model.get("model_name") == "ImageModel" and model["state"].get("format") == "png":
        return next((buffer["data"] for buffer in model.get("buffers", ()) if buffer["path"] == ["value"]), None)
    inside = (_picture(widgets, child.removeprefix("IPY_MODEL_")) for child in model.get("state", {}).get("children", ()))
    return next(filter(None, inside), None)
