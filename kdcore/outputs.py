"""Writes results/ and the README's generated parts from the records of all papers: every file has one description, ``described``.

    outputs.write("results")                  # everything that is committed; site=True: and the site
    outputs.write("results", budget="smoke")  # tables and figures of a smoke run, in results/smoke
    outputs.stale("results")                  # what is out of date

The same records give the same bytes.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from matplotlib.figure import Figure

from kdcore import papers, paths
from kdcore.errors import KdcoreError
from kdcore.report import canvas, origin, pages, readme, records
from kdcore.report.catalogue import figures_of, overview
from kdcore.report.evidence import Evidence
from kdcore.report.formats import to_csv, to_markdown
from kdcore.report.site import write_site
from kdcore.report.summary import scales, summary
from kdcore.trials.store import Store, order


@dataclass(frozen=True)
class Outputs:
    """What follows from the records: each file with the function that makes it."""

    figures: dict[Path, Callable[[], Figure]] = field(default_factory=dict)
    texts: dict[Path, Callable[[], str]] = field(default_factory=dict)  # made after the figures, which some of them describe

    @cached_property
    def origins(self) -> dict[Path, str]:
        """The digest of what each figure is made from."""
        return {path: origin.digest(draw) for path, draw in self.figures.items()}

    @property
    def paths(self) -> list[Path]:
        return [*self.figures, *self.texts]


def described(store: Store, everything: list[Evidence], budget: str | None = None) -> Outputs:
    """Every file that ``write`` writes and ``stale`` checks.

    By default: tables and figures of every budget with records except smoke, and the pages about all papers. budget="smoke": only
    tables and figures of the smoke records.
    """
    outputs = Outputs()
    for evidence in everything:
        for name in _budgets(evidence, budget):
            folder, key = store.root(name), evidence.paper.key
            for title, draw in figures_of(evidence.paper, evidence.of_budget(name), evidence.frames(name)).items():
                outputs.figures[folder / "figures" / key / f"{name}_{title}.svg"] = draw
            for frame in evidence.shown(name):
                stem = folder / "tables" / key / f"{name}_{frame.attrs['id']}"
                outputs.texts[stem.with_name(f"{stem.name}.csv")] = lambda frame=frame: to_csv(frame)
                outputs.texts[stem.with_name(f"{stem.name}.md")] = lambda frame=frame: to_markdown(frame)
    if budget is None:
        if any(_budgets(evidence, None) for evidence in everything):
            picture = overview(scales([summary(evidence) for evidence in everything]))
            # PNG for what shows no SVG: the preview of a link to the repository
            names = ("effects.svg", "effects_dark.svg", "effects.png")
            outputs.figures.update({store.results / "figures" / name: picture for name in names})
        outputs.texts.update(_pages(store, everything, list(outputs.figures)))
    return outputs


def _pages(store: Store, everything: list[Evidence], figures: list[Path]) -> dict[Path, Callable[[], str]]:
    """The pages for GitHub and records.csv, where there are results; and the README beside the results folder, of which parts are
    replaced."""
    results = store.results
    stems = dict.fromkeys(path.relative_to(results).as_posix().removesuffix(path.suffix) for path in figures)
    board = pages.Board(everything, results, list(stems))
    made: dict[Path, Callable[[], str]] = {}
    if any(_budgets(evidence, None) for evidence in everything):
        made[results / "records.csv"] = lambda: records.to_csv(everything)
        made[results / "README.md"] = lambda: pages.index(board)
        for evidence in everything:
            if _budgets(evidence, None):
                made[results / f"{evidence.paper.key}.md"] = lambda evidence=evidence: pages.of_paper(board, evidence)
    file = results.resolve().parent / "README.md"
    if file.exists():
        up = f"{results.resolve().name}/"
        made[file] = lambda: readme.with_parts(
            readme.text_of(file), {"scoreboard": pages.answer(board, up), "times": pages.times(board)}, file
        )
    return made


def write(results_dir: Path | str, budget: str | None = None, site: bool = False) -> list[Path]:
    """Write everything that follows from the records (``described``) and, if asked for, the site; return the paths.
    Figures that are current are not drawn again.

    Files of earlier reports that no longer follow from any record are removed.
    Raises KdcoreError for a damaged record, or a README without markers.
    """
    store = Store(results_dir)
    everything = gather(store)
    outputs = described(store, everything, budget)
    _draw({path: draw for path, draw in outputs.figures.items() if canvas.trouble(path, outputs.origins[path])}, outputs.origins)
    for path, make in outputs.texts.items():
        paths.write_text(path, make())
    for path in _leftovers(store, everything, outputs, budget):
        path.unlink()
    return outputs.paths + ([write_site(store.results, everything)] if site else [])


def stale(results_dir: Path | str, records: dict[str, list[dict]] | None = None) -> list[str]:
    """One sentence for each file that is out of date with the records; nothing is written.

    records: those of each paper, if already read. Texts are compared word for word; figures must have been made from the
    same numbers by the same code (``origin.digest``), and not have been edited since.
    """
    store = Store(results_dir)
    everything = gather(store, records)
    outputs = described(store, everything)
    troubles = {path: canvas.trouble(path, outputs.origins[path]) for path in outputs.figures}
    problems = [f"{path} is {trouble}: run kdcore report" for path, trouble in troubles.items() if trouble]
    for path, make in outputs.texts.items():
        try:
            text = make()
        except KdcoreError as error:
            problems.append(str(error))
        else:
            problems += [_problem(path)] if _read(path) != text else []
    left = _leftovers(store, everything, outputs, None)
    return problems + [f"{path} follows from no record: run kdcore report to remove it" for path in left]


def _draw(figures: dict[Path, Callable[[], Figure]], origins: dict[Path, str]) -> None:
    """Draw figures into their files, in one process per core if there are many. Raises KdcoreError if such a process dies."""
    count = min(os.cpu_count() or 1, len(figures) // 8)
    if count < 2:
        for path, draw in figures.items():
            canvas.write(path, draw, origins[path])
        return
    # "spawn", since a fork of a process with threads can hang
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), initializer=_leave_interrupts_to_parent)
    try:
        for drawn in [pool.submit(canvas.write, path, draw, origins[path]) for path, draw in figures.items()]:
            drawn.result()
    except BrokenProcessPool as error:
        raise KdcoreError("a process that was drawing figures died, perhaps for lack of memory: run the same command again") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _leave_interrupts_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def gather(store: Store, records: dict[str, list[dict]] | None = None) -> list[Evidence]:
    """The evidence of every paper. records: those of each paper, if already read."""
    read = store.records if records is None else lambda key: sorted(records.get(key, ()), key=order)
    return [Evidence(papers.get(key), read(key)) for key in papers.names()]


def _budgets(evidence: Evidence, budget: str | None) -> list[str]:
    """The budgets with current records to report: all but smoke, or the given one."""
    return [name for name in evidence.budgets if (name != "smoke" if budget is None else name == budget)]


def _leftovers(store: Store, everything: list[Evidence], outputs: Outputs, budget: str | None) -> list[Path]:
    """Tables and figures of earlier reports, recognised by name, that are not among the ``outputs``."""
    there = [
        path
        for paper in (evidence.paper for evidence in everything)
        for name in ([name for name in paper.budgets if name != "smoke"] if budget is None else [budget])
        for folder, kinds in (("tables", ("csv", "md")), ("figures", ("svg", "png")))
        for kind in kinds
        for path in sorted((store.root(name) / folder / paper.key).glob(f"{name}_*.{kind}"))
    ]
    expected = set(outputs.paths)
    return [path for path in there if path not in expected]


def _read(path: Path) -> str | None:
    """The text of a generated file; None if it does not exist, "" (which counts as out of date) if it is not text."""
    try:
        return paths.regular(path).read_text(encoding="utf-8") if path.exists() else None
    except (OSError, ValueError):
        return ""


def _problem(path: Path) -> str:
    """The problem with a generated file: missing or out of date."""
    return f"{path} is {'out of date' if path.exists() else 'missing'}: run kdcore report"
