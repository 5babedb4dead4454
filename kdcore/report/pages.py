"""The pages that GitHub shows, as Markdown: the generated parts of the README, ``results/README.md``, and ``results/KEY.md`` of each paper.

All that they say comes from records and sheets, so ``outputs.stale`` can compare them word for word.
"""

import re
from collections import Counter
from functools import cached_property
from pathlib import Path

from kdcore.report import canvas, formats, records, select, tables, words
from kdcore.report.evidence import Evidence
from kdcore.report.summary import MARKS, Effect, Summary, summary

SCALES = {  # what ``words.SCALES`` mean
    "protocol": "the same networks, data and training",
    "short": "the same networks and data",
    "scaled": "smaller networks or less data",
}
SIGNS = {"holds": "✅", "contradicted": "❌", "undecided": "❔", "interim": "⏳", "not run": "⬜"}  # each beside its word
EFFECTS = "figures/effects"  # the picture of all papers, and with _dark the same for a dark page
CORES = 2  # of the machine whose time the README tells

_LEGEND = """An **effect** is the difference between two ways to train, such as soft targets minus labels; where it is below 0, the first
makes fewer errors. Its interval is the one that decides the verdict: of the difference between runs that share a seed, at a level of at
least 95 % that rises with the number of a paper's claims (Holm's correction). Random test sets that overlap widen it too (Nadeau & Bengio's
correction).

| a claim | when |
| --- | --- |
| ✅ holds | the interval lies below 0 (that two things are the same: inside the margin that the sheet declares) |
| ❌ contradicted | the interval lies above 0 (outside the margin) |
| ❔ undecided | the interval contains 0 (an end of the margin): the runs cannot tell |
| ⏳ interim | fewer seeds than planned have run; the verdict waits for the others |
| ⬜ not run | no seed has run |

A **number** of a table is compared with the paper's only where networks and data are the paper's. Its margin is declared in the sheet;
where a margin was replaced after trials had run, the table says why, and which verdicts the old one gave.

| a number | when |
| --- | --- |
| reproduced | the 90 % interval of our mean minus the paper's number lies inside the margin (an equivalence test) |
| better, worse | it does not, and lies on one side of 0 |
| higher, lower | the same, where neither side is better |
| undecided | it contains 0, and reaches beyond the margin |
| interim, not run | as for claims |
| shorter run | we train for less than the paper, so a number that is not reproduced gets no verdict |
| scaled down | our networks or data are smaller |
| unverified, quoted, no number | nobody could verify the paper's number; the paper takes it from others; it has none |"""
_COMPARED = """Each claim at the closest scale at which it was run. The second line says what is compared, in the words of
[records.csv](records.csv): left and right of `<`, or of "the same"; "and" stands for the mean of several. [Verdicts](README.md#verdicts)
explains the first column."""
_MARKS = """**V** read in the named source; **C** recomputed, and it gives a published number; **I** inferred; **M** from memory;
**M?** from memory, with low confidence; **?** stated nowhere."""
_FILES = {
    "KEY.md": "a page for each paper: effects, claims, findings, tables with their figures, costs, commands",
    "records.csv": "every trial as a row, described below",
    "records/KEY/ID.json": "what a trial measured, as the program wrote it: configuration, metrics, history, cost, machine, commit",
    "tables/KEY/": "each table, and the claims, at each budget, as `BUDGET_TABLE.csv` and `.md`",
    "figures/KEY/": "each figure at each budget, as `BUDGET_NAME.svg`",
    "executed/KEY.ipynb": "the paper's notebook as it ran",
}
_RECORDS = """[records.csv](records.csv) has a row for each trial: one way to train (`arm`), at one budget, with one seed. Only trials that
match the current code and protocol are in it, failed ones included. A cell without a value is empty. Floats have all digits that it takes
to read the same number again. First come the columns below, then the metrics; lists, such as the learning curves, are only in the JSON
files."""
_ANALYSIS = """Means over seeds with pandas, then the same with R:

```python
import pandas as pd

records = pd.read_csv("results/records.csv", float_precision="round_trip")
done = records[(records.paper == "hinton_mnist") & (records.status == "done")]
print(done.groupby(["budget", "arm"]).test_errors.agg(["mean", "std", "count"]))
```

```r
records <- read.csv("results/records.csv")
done <- subset(records, paper == "hinton_mnist" & status == "done")
aggregate(test_errors ~ budget + arm, done, function(x) c(mean = mean(x), sd = sd(x), n = length(x)))
```"""


class Board:
    """The evidence of all papers, and what their pages link to.

    results: the results folder. figures: those that the report draws, as paths relative to it, without a suffix.
    """

    def __init__(self, everything: list[Evidence], results: Path, figures: list[str]):
        self.everything, self.results, self.figures = everything, results, figures

    @cached_property
    def summaries(self) -> dict[str, Summary]:
        return {evidence.paper.key: summary(evidence) for evidence in self.everything}

    @property
    def ordered(self) -> list[Evidence]:
        """The papers, the closest to the protocol first; those without results last."""
        places = [*select.SCALES, ""]
        return sorted(self.everything, key=lambda evidence: places.index(self.summaries[evidence.paper.key].scale))

    def notebook(self, key: str) -> str:
        """The path of a paper's executed notebook, "" if there is none."""
        path = f"executed/{key}.ipynb"
        return path if (self.results / path).is_file() else ""

    def image(self, stem: str, alt: str) -> str:
        """A figure, with what it says of itself as alternative text; ``alt`` for one that says nothing."""
        path = f"{stem}.svg"
        return f"!{_link(canvas.alt(self.results / path) or alt, path)}"


def answer(board: Board, up: str = "") -> str:
    """What came out for all papers: a sentence, the picture of their effects, and a row a paper. up: where the results folder lies from
    the page, "" or with a slash at its end."""
    if not any(each.scale for each in board.summaries.values()):
        return "No records yet: `kdcore run PAPER --budget laptop` makes the first."
    return "\n\n".join(filter(None, (sentence(board), picture(board, up), scoreboard(board, up), contradicted(board, up))))


def sentence(board: Board) -> str:
    """How many claims hold: of all papers, then at each scale."""
    claims = [row for each in board.summaries.values() for row in select.rows(each.claims)]
    lines = [f"**{total(list(board.summaries.values()))}**", ""]
    for scale in (scale for scale in select.SCALES if any(row["scale"] == scale for row in claims)):
        counts = Counter(row["verdict"] for row in claims if row["scale"] == scale)
        lines.append(f"- **{words.SCALES[scale]}** ({SCALES[scale]}): {_marks(counts)}")
    return "\n".join(lines)


def total(summaries: list[Summary]) -> str:
    """How many claims of all papers hold, in one sentence."""
    every = sum((Counter(each.claims["verdict"]) for each in summaries), Counter())
    left = [
        f"{SIGNS[verdict]} {_are(every[verdict])} {what}"
        for verdict, what in (
            ("undecided", "undecided (the runs cannot tell)"),
            ("interim", "interim (some seeds are still to run)"),
            ("not run", "not run"),
        )
        if every[verdict]
    ]
    first = f"Of {_count(every.total(), 'claim')} in {_count(len(summaries), 'paper')}, {SIGNS['holds']} {every['holds'] or 'none'} "
    first += f"{_hold(every['holds'])} and {SIGNS['contradicted']} {_are(every['contradicted'])} contradicted"
    return first + (f"; {_joined(left)}." if left else ".")


def picture(board: Board, up: str = "") -> str:
    """The picture of the main effects, in a light and a dark variant; "" if the report does not draw it."""
    if EFFECTS not in board.figures:
        return ""
    ordered = [board.summaries[evidence.paper.key] for evidence in board.ordered]
    told = [
        f"{each.short}: {_percent(effect.relative)} (paper: {_percent(effect.relative_paper) or 'not reported'})"
        for each in ordered
        if (effect := each.main) and effect.n
    ]
    alt = words.attribute(f"Change of the error by the main effect of each paper, ours and the paper's own. {'; '.join(told)}.")
    dark = f"{EFFECTS}_dark"
    source = f'<source media="(prefers-color-scheme: dark)" srcset="{up}{dark}.svg">\n  ' if dark in board.figures else ""
    return f'<picture>\n  {source}<img alt="{alt}" src="{up}{EFFECTS}.svg">\n</picture>'


def scoreboard(board: Board, up: str = "") -> str:
    """A row a paper, grouped by scale, the closest to the protocol first."""
    header = ["paper", "claims", "main effect", "ours [interval]", "the paper's", "notebook"]
    rows, group = [], None
    for evidence in board.ordered:
        key, each = evidence.paper.key, board.summaries[evidence.paper.key]
        if each.scale != group:
            group = each.scale
            rows.append([f"**{words.SCALES.get(group, 'not run')}**", *[""] * (len(header) - 1)])
        effect, notebook = each.main, board.notebook(key)
        text, ours, theirs = "", "", ""
        if effect:
            text = effect.text + (f" ({words.SCALES[effect.scale]})" if effect.n and effect.scale != each.scale else "")
            ours, theirs = f"{SIGNS[effect.verdict]} {_ours(effect)}", _theirs(effect)
        rows.append(
            [
                _link(each.short, f"{up}{key}.md") if each.scale else words.markdown(each.short),
                ", ".join(f"{SIGNS[mark]} {count}" for mark, count in each.marks.items() if count),
                *map(words.markdown, (text, ours, theirs)),
                f"[executed]({up}{notebook})" if notebook else "",
            ]
        )
    return _table(header, rows)


def contradicted(board: Board, up: str = "") -> str:
    """The claims that our runs contradict, each with its scale: the answer that a reader looks for; "" if there is none."""
    lines = [
        f"- {words.markdown(row['text'])} ({_link(each.short, f'{up}{each.key}.md')}, {words.SCALES[row['scale']]})"
        for each in (board.summaries[evidence.paper.key] for evidence in board.ordered)
        for row in select.rows(each.claims)
        if row["verdict"] == "contradicted"
    ]
    return "\n".join([f"{SIGNS['contradicted']} **Contradicted:**", "", *lines]) if lines else ""


def times(board: Board) -> str:
    """How long each budget takes on two cores: measured, or as the sheet says where nothing was."""
    names = list(dict.fromkeys(name for evidence in board.everything for name in evidence.paper.budgets))
    names.sort(key=("smoke", "laptop", "fast", "paper").index)
    rows = []
    for evidence in board.ordered:
        paper = evidence.paper
        measured = {name: done for name in paper.budgets if name != "smoke" and (done := select.results(paper, evidence.records, name))}
        cells = [
            _measured(evidence, name, measured[name]) if name in measured else words.markdown(paper.budgets[name]["time"])
            for name in names
            if name in paper.budgets
        ]
        cells = [cells.pop(0) if name in paper.budgets else "–" for name in names]
        devices = tables.devices([record for done in measured.values() for record in done])
        rows.append([words.markdown(paper.sheet["short"]), *cells, words.markdown(devices)])
    return _table(["paper", *(f"`{name}`" for name in names), "measured on"], rows)


def index(board: Board) -> str:
    """``results/README.md``: the answer, what every file is, and the columns of records.csv."""
    blocks = [
        "# Results",
        answer(board),
        "## Verdicts",
        _LEGEND,
        "## What is here",
        _table(["file", "what"], [[f"`{name}`", what] for name, what in _FILES.items()]),
        "## records.csv",
        _RECORDS,
        _table(["column", "what"], [[f"`{name}`", what] for name, (what, _) in records.COLUMNS.items()]),
        "<details><summary>The columns of metrics</summary>",
        _table(
            ["column", "what", "papers"],
            [
                [_code(records.column(name)), words.markdown(what), ", ".join(f"`{key}`" for key in keys)]
                for name, meanings in records.metrics(board.everything).items()
                for what, keys in meanings.items()
            ],
        ),
        "</details>",
        _ANALYSIS,
    ]
    return "\n\n".join(blocks) + "\n"


def of_paper(board: Board, evidence: Evidence) -> str:
    """``results/KEY.md``: what one paper asks and claims, and what came out, table by table."""
    paper, each = evidence.paper, board.summaries[evidence.paper.key]
    sheet = paper.sheet
    text = words.markdown
    blocks = [
        f"# {text(sheet['short'])}",
        f"{text(sheet['authors'])} ({sheet['year']}). {_link(sheet['title'], sheet['url'])}. {text(sheet['citation']).rstrip('.')}.",
        f"**{text(sheet['question'])}**",
        f"{_marks(each.marks)}. Closest to the paper so far: **{words.SCALES[each.scale]}** ({SCALES[each.scale]}).",
    ]
    if each.effects:
        blocks += ["## Effects", _effects(each.effects)]
    blocks += ["## Claims", _COMPARED, _claims(paper, each)]
    if len(evidence.findings):
        blocks += ["## Findings", words.FINDINGS, _findings(evidence)]
    blocks.append("## Tables")
    for name in each.budgets:
        blocks += _budget(board, evidence, name, is_open=name == each.budgets[0])
    blocks += [
        "## Costs",
        _costs(evidence, each.budgets),
        "## Protocol and deviations",
        *_folded("What the paper says, and what we do", _facts(paper, "protocol"), _MARKS),
        *_folded("Where this replication departs from the paper", _facts(paper, "deviations") if sheet["deviations"] else "Nowhere."),
        "## Run it",
        _links(board, paper.key),
        _commands(paper.key, each.budgets),
    ]
    return "\n\n".join(blocks) + "\n"


def _budget(board: Board, evidence: Evidence, budget: str, is_open: bool) -> list[str]:
    """The tables and figures of a budget, folded."""
    paper, key = evidence.paper, evidence.paper.key
    facts = paper.budget(budget)
    prefix = f"figures/{key}/{budget}_"
    left = {stem.removeprefix(prefix): stem for stem in board.figures if stem.startswith(prefix)}
    title = f"Budget <b>{budget}</b> ({words.SCALES[facts['scale']]}): {words.attribute(facts['about'])}"
    blocks = [f"<details{' open' * is_open}><summary>{title}</summary>"]
    short = paper.sheet["short"]
    frames = [frame for frame in evidence.shown(budget) if frame.attrs["kind"] == "table"]
    for frame in (frame for frame in frames if frame["n"].any()):
        name = f"paper_{frame.attrs['id']}"
        blocks += [f"### {words.markdown(frame.attrs['title'])}", words.markdown(words.source(frame.attrs)), formats.body(frame)]
        if name in left:
            blocks.append(board.image(left.pop(name), f"{short}, budget {budget}: {frame.attrs['title']}, the paper's numbers and ours"))
    if missing := [frame.attrs["title"] for frame in frames if not frame["n"].any()]:
        blocks.append(words.markdown(f"Not run yet: {'; '.join(missing)}."))
    curves = {name: stem for name, stem in left.items() if name.startswith("learning_")}
    own, learning = (
        [board.image(stem, f"{short}, budget {budget}: {name.replace('_', ' ')}") for name, stem in figures.items()]
        for figures in ({name: stem for name, stem in left.items() if name not in curves}, curves)
    )
    blocks += own + (_folded("Learning curves", *learning) if learning else [])
    return [*filter(None, blocks), "</details>"]


def _effects(effects: list[Effect]) -> str:
    rows = [
        [
            *map(words.markdown, (effect.text, _ours(effect), _theirs(effect))),
            _percent(effect.relative),
            _percent(effect.relative_paper),
            _sign(effect.verdict),
            _where(effect.budget, effect.scale),
            words.of_planned(effect.n, effect.planned),
        ]
        for effect in effects
    ]
    return _table(["effect", "ours [interval]", "the paper's", "our change", "the paper's change", "verdict", "where", "seeds"], rows)


def _claims(paper, each: Summary) -> str:
    claims = {claim["id"]: claim for claim in paper.sheet["claims"]}
    rows = [
        [
            _sign(row["verdict"]),
            f"{words.markdown(row['text'])}<br>{words.markdown(_compared(claims[row['id']]))}",
            words.estimate(row["difference"], row["low"], row["high"], signed=True),
            words.estimate(row["reported"], row["reported_low"], row["reported_high"], signed=True),
            words.markdown(row["unit"]),
            _where(row["budget"], row["scale"]),
            words.of_planned(row["n"], row["planned"]),
        ]
        for row in select.rows(each.claims)
    ]
    header = ["verdict", "claim", "left − right [interval]", "the paper's", "unit", "where", "seeds"]
    return _table(header, rows)


def _compared(claim: dict) -> str:
    """What a claim compares, in the words of records.csv: "test_errors: small with KD < small; section 3"."""
    sides = [claim["left"], claim["right"]]
    names = [words.arms(side["arms"]) if "arms" in side else words.reported(side["value"]) for side in sides]
    metrics = list(dict.fromkeys(side["metric"] for side in sides if "arms" in side))
    if len(metrics) > 1:
        names = [f"{name} ({side['metric']})" for name, side in zip(names, sides, strict=True)]
    relation = f"the same, within {words.reported(claim['margin'])}, as" if claim["relation"] == "same" else claim["relation"]
    return f"{f'{metrics[0]}: ' if len(metrics) == 1 else ''}{names[0]} {relation} {names[1]}; {claim['source']}"


def _findings(evidence: Evidence) -> str:
    lines = []
    for row in select.rows(evidence.findings):
        more = [f" **{name}:** {_ended(words.markdown(row[key]))}" for key, name in (("paper", "The paper"), ("why", "Why")) if row[key]]
        seeds = words.of_planned(row["n"], row["planned"])
        lines.append(f"- {_ended(words.markdown(row['text']))}{''.join(more)} ({_code(row['budget'])}, seeds: {seeds})")
    return "\n".join(lines)


def _costs(evidence: Evidence, budgets: list[str]) -> str:
    rows = []
    for name in budgets:
        done = select.results(evidence.paper, evidence.records, name)
        failed = sum(record["budget"] == name and record["status"] != "done" for record in records.committed(evidence))
        rows.append(
            [
                f"`{name}`",
                f"{len(done)} of {_planned(evidence.paper, name)}" + (f", {failed} failed" if failed else ""),
                _seeds(done),
                words.hours(tables.wall_hours(done)),
                words.markdown(tables.devices(done)),
            ]
        )
    return _table(["budget", "trials done", "seeds", "hours of one process", "device"], rows)


def _facts(paper, part: str) -> str:
    frame = tables.facts(paper, part)
    return words.markdown_table(list(frame.columns), [[words.plain(cell) for cell in row] for row in frame.itertuples(index=False)])


def _links(board: Board, key: str) -> str:
    lines = [f"[Executed notebook]({path})"] if (path := board.notebook(key)) else []
    return "\n".join(
        f"- {line}" for line in [*lines, f"[records](records/{key}), one JSON file per trial; as a table in [records.csv](records.csv)"]
    )


def _commands(key: str, budgets: list[str]) -> str:
    lines = [f"kdcore plan {key} --budget {budgets[0]}    # what is done, what is missing, hours on this machine"]
    lines += [f"kdcore replicate {key} --budget {name}" for name in budgets]
    return "```sh\n" + "\n".join(lines) + "\n```"


def _folded(title: str, *blocks: str) -> list[str]:
    return [f"<details><summary>{title}</summary>", *blocks, "</details>"]


def _ours(effect: Effect) -> str:
    """Ours with its interval: "-32 [-39, -25] errors"."""
    return f"{words.estimate(effect.mean, effect.low, effect.high, signed=True)} {effect.unit}" if effect.n else "not run"


def _theirs(effect: Effect) -> str:
    return words.estimate(effect.paper, effect.paper_low, effect.paper_high, signed=True) or "not reported"


def _measured(evidence: Evidence, budget: str, done: list[dict]) -> str:
    """The time of a budget's trials on ``CORES`` cores, or on a GPU: "**4.4 h**, 3 seeds"."""
    on_gpu = [record for record in done if record["environment"].get("gpu") == record["cost"]["device"]]
    on_cores = [record for record in done if record not in on_gpu]
    shares = [min(record["environment"].get("threads") or 1, CORES) / CORES for record in on_cores]
    hours = [
        (sum(record["cost"]["seconds"] * share for record, share in zip(on_cores, shares, strict=True)) / 3600, ""),
        (tables.wall_hours(on_gpu), " of one GPU"),
    ]
    spent = " and ".join(f"**{_duration(value)}**{what}" for value, what in hours if value)
    seeds, planned = _seeds(done), _planned(evidence.paper, budget)
    some = f", {len(done)} of {planned} trials" if len(done) < planned else ""
    return f"{spent or 'no time'}, {seeds} seed{'s' * (seeds != '1')}{some}"


def _seeds(done: list[dict]) -> str:
    """The number of seeds of an arm: "3", or "3 to 5" where arms differ."""
    counts = sorted(set(Counter(record["arm"] for record in done).values()))
    return " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))


def _duration(hours: float) -> str:
    minutes = max(1, round(60 * hours))
    return _count(minutes, "minute") if minutes < 60 else f"{(number := words.number(hours, 2))} hour{'s' * (number != '1')}"


def _planned(paper, budget: str) -> int:
    """How many trials the sheet asks for at a budget."""
    return sum(paper.seeds(budget, arm) for arm in paper.budget_arms(budget))


def _marks(counts) -> str:
    """Counts of verdicts as signs and words: "✅ 5 hold, ❔ 3 undecided"."""
    return ", ".join(f"{SIGNS[mark]} {counts[mark]} {_hold(counts[mark]) if mark == 'holds' else mark}" for mark in MARKS if counts[mark])


def _sign(verdict: str) -> str:
    return f"{SIGNS[verdict]} {verdict}" if verdict in SIGNS else verdict


def _where(budget: str, scale: str) -> str:
    return f"`{budget}`, {words.SCALES[scale]}" if budget else ""


def _percent(value: float) -> str:
    text = words.number(value, 2, signed=True)
    return f"{text} %" if text else ""


def _code(name: str) -> str:
    return f"`{words.plain(name)}`".replace("|", "\\|")


def _link(text: str, target: str) -> str:
    """A Markdown link. text: any; target: a path of ours, or a URL without spaces."""
    shown = re.sub(r"(\\.)|[\[\]]", lambda found: found[1] or f"\\{found[0]}", words.markdown(text))
    place = re.sub(r"[<>()|\\`]", lambda found: f"%{ord(found[0]):02X}", target)
    return f"[{shown}]({place})"


def _ended(text: str) -> str:
    return text if text.endswith((".", "?", "!")) else f"{text}."


def _hold(count: int) -> str:
    return "hold" if count > 1 else "holds"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _are(count: int) -> str:
    return f"{count or 'none'} {'are' if count > 1 else 'is'}"


def _joined(parts: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(parts[:-1]), *parts[-1:])))


def _table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table of cells that are Markdown already."""
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *rows))
