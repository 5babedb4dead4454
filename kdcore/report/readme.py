"""The scoreboard, as shown in the README."""

import math
from pathlib import Path

import pandas as pd

from kdcore import paths
from kdcore.errors import KdcoreError
from kdcore.report import claims, select, tables, words
from kdcore.report.evidence import Evidence

MARKERS = ("<!-- scoreboard -->", "<!-- /scoreboard -->")
HEADLINE_ROWS = 6
COLUMNS = ["paper", "key", "budget", "headline", "claims", "verdicts", "seeds", "device", "hours"]


def scoreboard(everything: list[Evidence]) -> pd.DataFrame:
    """One row for each paper and budget with current records, except smoke.

    Columns: paper, key, budget, headline (rows of the first table with results, one per line), claims, verdicts (both as counts
    in words), seeds, device, hours (wall time, including failed trials).
    """
    rows = []
    for evidence in everything:
        paper = evidence.paper
        for budget in evidence.budgets:
            if budget == "smoke":
                continue
            known, _ = select.current(paper, evidence.of_budget(budget))
            done = [record for record in known if record["status"] == "done"]
            *frames, tested = evidence.frames(budget)
            others = words.counts(tested["verdict"], claims.VERDICTS[1:])
            seeds = pd.Series([record["arm"] for record in done], dtype=object).value_counts()
            rows.append(
                {
                    "paper": paper.sheet["short"],
                    "key": paper.key,
                    "budget": budget,
                    "headline": headline(next((frame for frame in frames if frame["n"].any()), frames[0])),
                    "claims": f"holds {(tested['verdict'] == 'holds').sum()} of {len(tested)}" + (f" ({others})" if others else ""),
                    "verdicts": words.counts(pd.concat([frame["verdict"] for frame in frames]), tables.VERDICTS),
                    "seeds": _range(seeds),
                    "device": tables.devices(done),
                    "hours": tables.wall_hours(known),
                }
            )
    return pd.DataFrame(rows, columns=COLUMNS)


def block(everything: list[Evidence]) -> str:
    """The scoreboard as a Markdown table, or a sentence if there is no record yet."""
    frame = scoreboard(everything)
    if frame.empty:
        return "No records yet: `kdcore run PAPER --budget laptop` makes the first."
    header = ["paper", "budget", "ours: mean [95 % interval] (paper)", "claims", "numbers", "seeds", "device", "hours of wall time"]
    columns = ["paper", "budget", "headline", "claims", "verdicts", "seeds", "device"]
    return words.markdown_table(header, [[*(row[c] for c in columns), words.hours(row["hours"])] for row in frame.to_dict("records")])


def update(path: Path | str, block: str) -> None:
    """Write ``block`` between the scoreboard's markers in a Markdown file. Raises KdcoreError if a marker is missing."""
    path = Path(path)
    paths.write_text(path, with_block(text_of(path), block, path))


def with_block(text: str, block: str, where: Path | str = "the README") -> str:
    """``text`` with ``block`` between the markers. Raises KdcoreError unless each occurs once, in order."""
    start, end = MARKERS
    if text.count(start) != 1 or text.count(end) != 1 or text.index(start) > text.index(end):
        raise KdcoreError(f"{where} must contain the lines {start} and {end}, once each and in this order, around the scoreboard")
    before, _, rest = text.partition(start)
    return f"{before}{start}\n\n{block}\n\n{end}{rest.partition(end)[2]}"


def text_of(path: Path) -> str:
    """The text of a Markdown file. Raises KdcoreError if it cannot be read."""
    try:
        return paths.regular(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise KdcoreError(f"{path} cannot be read as UTF-8 text ({error}): restore it from git") from error


def headline(frame: pd.DataFrame) -> str:
    """The rows of a table, one per line, with those that have results first: "small: 146.2 [139, 153] (paper 146)"."""
    lines, own = [], frame[frame["verdict"] != "quoted"]
    for row in own.sort_values("n", key=lambda n: n == 0, kind="stable").to_dict("records"):
        ours = words.estimate(row["ours"], row["low"], row["high"]) or "not run"
        theirs = words.reported(row["paper"], mark=select.doubt(row))
        lines.append(f"{row['label']}: {ours}" + (f" (paper {theirs})" if not math.isnan(row["paper"]) else ""))
    more = len(lines) - HEADLINE_ROWS
    return "\n".join(lines[:HEADLINE_ROWS] + ([f"and {more} more rows"] if more > 0 else []))


def _range(counts: pd.Series) -> str:
    if counts.empty:
        return "0"
    return str(counts.min()) if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"
