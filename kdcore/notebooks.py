"""What the notebooks call, and how they are executed in batch.

    page = notebooks.open("hinton_mnist", budget=budget, seeds=seeds, device=device, engine=engine, results_dir=results_dir)
    page.run()              # trains what is missing
    page.table("errors")    # the committed records and this run's, each under its own budget

A notebook never trains by itself: it asks for trials and reads their records.
"""

import ast
import contextlib
import difflib
import math
import os
import sys
import textwrap
from pathlib import Path

from kdcore import papers, paths, validation
from kdcore.errors import KdcoreError, Stopped
from kdcore.trials import engine, environment, plan
from kdcore.trials.progress import Progress
from kdcore.trials.store import Store

TYPES = {"str": str, "int": int, "float": int | float, "bool": bool}
OPENED = ("budget", "seeds", "device", "engine", "results_dir")  # ``open`` checks them
CELL_SECONDS = 600.0  # the longest a cell may take in batch, where trials are recorded before: to draw takes seconds


def root() -> Path:
    """The checkout. Raises KdcoreError where there is none, or where the working directory is in another one."""
    return validation.checkout()


def open(paper: str, *, budget: str, seeds, device: str, engine: str, results_dir: str) -> "Page":
    """The page of a paper, its parameters checked. Raises KdcoreError for an unknown paper, budget, engine or parameter.

    budget: smoke, laptop, fast or paper. seeds: how many, or a list; 0 for the budget's own number. results_dir: relative
    to the checkout.
    """
    _refuse_unknown_parameters()
    return Page(paper, budget, seeds, device, engine, results_dir)


class Page:
    """One paper in a notebook: its trials at one budget beside the committed records of all others."""

    def __init__(self, key: str, budget: str, seeds, device: str, engine: str, results_dir: str):
        self.paper, self.budget, self.device = papers.get(key), budget, device
        validation.engine(engine)
        self.paper.budget(budget)
        environment.devices(device)
        self.seeds = validation.seeds(seeds)
        self.store = Store(validation.folder(root() / validation.folder(results_dir)))

    def run(self, *, quiet: bool = True) -> None:
        """Run the trials of this budget that have no record; one line says what there is. Raises KdcoreError on failure.

        quiet: without lines about trials that run.
        """
        planned = plan.make(self.paper.key, self.budget, None, self.seeds, self.store)
        with Progress(planned, quiet) as progress:
            outcome = engine.run(planned, self.store, device=self.device, watch=progress)
        if outcome.problems:
            raise KdcoreError("; ".join(outcome.problems))
        if outcome.paused:
            raise Stopped(f"stopped, {len(outcome.paused)} trials left")
        new = sum(len(job.ids) for job in planned.jobs)
        print(f"budget {self.budget}: {len(planned.trials)} trials recorded" + (f", {new} of them just now" if new else ""))

    def table(self, id: str) -> None:
        """Show one of the paper's tables, once for each budget that has records and runs its arms; where none does, the paper's numbers."""
        from kdcore.report import tables

        running = [budget for budget in self.budgets if any(table["id"] == id for table in tables.tables_of(self.paper, budget))]
        for budget in running or [self.budget]:
            self._show(tables.table(self.paper, id, self.store.records(self.paper.key, budget), budget))

    def claims(self) -> None:
        """Show every claim with its verdict, once for each budget that has records."""
        from kdcore.report import tables

        for budget in self.budgets:
            self._show(tables.claims(self.paper, self.store.records(self.paper.key, budget), budget))

    def facts(self, part: str) -> None:
        """Show "protocol" or "deviations" of the sheet, or "budget": what this run's budget changes."""
        from kdcore.report import tables

        self._show(tables.budget_table(self.paper, self.budget) if part == "budget" else tables.facts(self.paper, part))

    def figure(self, name: str) -> None:
        """Show one of the paper's figures at the first budget that can draw it (the committed ones come first).

        A larger budget may leave out what a figure shows, which is then said. Raises KdcoreError at smoke, which draws all.
        """
        from IPython.display import Image, display

        from kdcore.report import figures

        known: list[str] = []
        for budget in self.budgets:
            drawn = figures.figures_of(self.paper, self.store.records(self.paper.key, budget))
            if name in drawn:
                display(Image(figures.png(drawn[name]()), width=800, alt=f"{name}, budget {budget}"))
                print(textwrap.fill(f"budget {budget}: {self.paper.budget(budget)['about']}", 110))
                return
            known += drawn
        there = ", ".join(dict.fromkeys(known))
        if self.budget == "smoke":
            raise KdcoreError(f"no figure '{name}': choose one of {there}")
        words = f"No figure '{name}': budget {' or '.join(self.budgets)} leaves out or lacks what it shows. There are: {there or 'none'}."
        print(textwrap.fill(words, 110))

    def explore_temperature(self) -> None:
        """A slider for T: the softened targets of a digit that the teacher's record keeps, redrawn as it moves."""
        import ipywidgets

        from kdcore.report import figures

        galleries = [
            r["metrics"]["gallery"] for b in self.budgets for r in self.store.records(self.paper.key, b) if "gallery" in r["metrics"]
        ]
        if not galleries:
            raise KdcoreError("no record keeps a gallery: run the teacher's arm")
        entries = {entry["label"]: entry for entry in galleries[0]}
        _explore(
            lambda digit, temperature: figures.gallery([entries[digit]], (1.0, temperature)),
            ipywidgets.Dropdown(description="digit", options=sorted(entries)),
            ipywidgets.FloatSlider(description="T", value=20.0, min=1.0, max=50.0, step=0.5, continuous_update=False),
        )

    def explore_logits(self, logits: tuple[float, ...] = (10.0, 20.0, 30.0)) -> None:
        """A slider for what is added to every logit: the logits move, and their softmax stays."""
        import ipywidgets

        from kdcore.report import figures

        def draw(added: float):
            return figures.logits_and_softmax({"logits": list(logits), f"logits {added:+g}": [value + added for value in logits]})

        _explore(draw, ipywidgets.FloatSlider(description="added", value=-20.0, min=-40.0, max=40.0, step=5.0, continuous_update=False))

    @property
    def budgets(self) -> list[str]:
        """The budgets to show: those with committed records, then this run's own."""
        from kdcore.report import tables

        there = [name for name in tables.budgets(self.paper, self.store.records(self.paper.key)) if name not in ("smoke", self.budget)]
        return [*there, self.budget]

    @staticmethod
    def _show(frame) -> None:
        from IPython.display import HTML, display

        from kdcore.report import tables

        display(HTML(tables.to_html(frame)))


def _explore(draw, *controls) -> None:
    """Show controls and the figure that ``draw`` makes of their values, made anew when one of them moves.

    ipywidgets.interact would send the figure through an Output widget, for which nbclient writes to the channel on which it
    awaits the end of the cell; at times it then misses that end.
    """
    import ipywidgets
    from IPython.display import display

    from kdcore.report import figures

    image = ipywidgets.Image(format="png", width=800)

    def redraw(_=None) -> None:
        image.value = figures.png(draw(*(control.value for control in controls)))

    for control in controls:
        control.observe(redraw, "value")
    redraw()
    display(ipywidgets.VBox([*controls, image]))


def execute(key: str, options) -> int:
    """Run what is missing, then a paper's notebook with papermill; its copy with outputs appears only when every cell ran and
    every trial of the budget has a record. Smoke goes to results/smoke/executed, the rest to results/executed. Returns an exit
    code. Trials run before the notebook opens, so that a cell without an end is a kernel that was lost: such a notebook is
    executed once more.
    """
    import papermill

    source = root() / "notebooks" / f"{key}.ipynb"
    results = (Path.cwd() / options.results).resolve()
    papers.get(key)
    if not source.exists():
        raise KdcoreError(f"{source} is missing: restore it from git")
    store = Store(results)
    target = store.root(options.budget) / "executed" / f"{key}.ipynb"
    inside = results.relative_to(root()) if results.is_relative_to(root()) else results  # no path of this machine in the copy
    values = {"budget": options.budget, "device": options.device, "engine": options.engine, "results_dir": str(inside)}
    if options.seeds is not None:
        values["seeds"] = options.seeds
    refuse_unknown(source, values)
    _refuse_foreign_kernel()
    page = Page(key, options.budget, options.seeds, options.device, options.engine, str(results))
    print(f"{key}: executing at budget {options.budget} ...", flush=True)
    page.run(quiet=False)
    outcome: dict = {}

    def run_to(temporary: str) -> None:
        for last in (False, True):
            try:
                papermill.execute_notebook(
                    str(source),
                    temporary,
                    parameters=values,
                    progress_bar=False,
                    cwd=str(root()),
                    kernel_name="python3",
                    execution_timeout=CELL_SECONDS,
                    extra_arguments=["--IPKernelApp.log_level=50"],  # its notices about local TCP and its end are not for readers
                )
                break
            except TimeoutError as error:  # jupyter can lose a kernel's answer, and would wait for it forever
                if last:
                    words = f"{source.name} hung twice ({str(error).splitlines()[0]}): execute it in JupyterLab to see why"
                    raise KdcoreError(words) from error
        if problem := unfinished(Path(temporary)):
            raise KdcoreError(f"{source.name} did not finish ({problem}): run the same command again")
        _forget_paths(Path(temporary), f"notebooks/{source.name}", target.name)
        planned = plan.make(key, options.budget, None, options.seeds, store)
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
    print(f"{key}: {outcome['trials']} trials at budget {options.budget}; {os.path.relpath(target)}")
    return 0


def _refuse_foreign_kernel() -> None:
    """Raise KdcoreError unless the kernel that papermill starts is this Python, whose kdcore made the records."""
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    cure = f"`{sys.executable} -m ipykernel install --sys-prefix` makes it this Python's"
    try:
        program = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except (NoSuchKernel, OSError, ValueError, IndexError) as error:
        raise KdcoreError(f"Jupyter has no kernel python3 that it could start ({error}): {cure}") from error
    own = {
        "python",
        f"python{sys.version_info.major}",
        f"python{sys.version_info.major}.{sys.version_info.minor}",
    }  # jupyter's words for it
    if program not in own and os.path.realpath(os.path.dirname(program)) != os.path.realpath(os.path.dirname(sys.executable)):
        raise KdcoreError(f"the Jupyter kernel python3 is {program}, another Python than {sys.executable}, which runs kdcore: {cure}")


def _end_children() -> None:
    """Whatever was interrupted, no kernel outlives this process."""
    import psutil  # Jupyter's own dependency

    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


def _forget_paths(path: Path, source: str, target: str) -> None:
    """papermill notes where it read and wrote; a committed copy should not tell one machine's folders."""
    import nbformat

    notebook = nbformat.read(path, 4)
    notebook.metadata.papermill |= {"input_path": source, "output_path": target}
    nbformat.write(notebook, path)


def unfinished(path: Path) -> str | None:
    """Why an executed notebook is not a finished one (a cell without an execution count, an error), or None."""
    import nbformat

    for cell in nbformat.read(path, 4).cells:
        if cell.cell_type != "code":
            continue
        if cell.source.strip() and cell.execution_count is None:
            return "a cell was not executed"
        for output in cell.outputs:
            if output.output_type == "error":
                return f"{output.ename}: {output.evalue}"
    return None


def parameters(path: Path) -> dict[str, str]:
    """Names in a notebook's cell tagged ``parameters``, each with its annotation ("" where it has none)."""
    import nbformat

    for cell in nbformat.read(path, 4).cells:
        if "parameters" in cell.metadata.get("tags", []):
            return _declared(cell.source)
    raise KdcoreError(f"{path} has no cell tagged parameters: restore it from git")


def refuse_unknown(path: Path, values: dict) -> None:
    """Raise KdcoreError for a parameter that the notebook does not have, or of another type; papermill itself only warns."""
    _refuse(parameters(path), values, path.name)


def _refuse_unknown_parameters() -> None:
    """The same inside a running notebook: what papermill injected must be among the names of the parameters cell."""
    cells = getattr(sys.modules.get("__main__"), "In", None) or []
    injected = [i for i, cell in enumerate(cells) if cell.startswith("# Parameters\n")]
    if injected and injected[-1] >= 1:
        _refuse(_declared(cells[injected[-1] - 1]), _values(cells[injected[-1]]), "this notebook")


def _refuse(known: dict[str, str], values: dict, where: str) -> None:
    for name, value in values.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise KdcoreError(f"unknown parameter {name}: {where} has {', '.join(known)}{hint}")
        kind = TYPES.get(known[name])
        if name in OPENED or kind is None:
            continue
        if isinstance(value, bool) != (kind is bool) or not isinstance(value, kind) or value in (math.inf, -math.inf) or value != value:
            raise KdcoreError(f"the parameter {name} must be of type {known[name]}, not {validation.shown(value)}")


def _declared(source: str) -> dict[str, str]:
    """{name: annotation} of the variables that a cell assigns."""
    found = {}
    for node in _statements(source):
        for target in getattr(node, "targets", [getattr(node, "target", None)]):
            if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(target, ast.Name):
                found[target.id] = ast.unparse(node.annotation) if isinstance(node, ast.AnnAssign) else ""
    return found


def _values(source: str) -> dict:
    """{name: value} of the cell that papermill injects. What is no literal (nan, infinity) counts as nan."""
    found = {}
    for node in _statements(source):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                found[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:
                found[node.targets[0].id] = math.nan
    return found


def _statements(source: str) -> list[ast.stmt]:
    try:
        return ast.parse(source).body
    except SyntaxError:
        return []
