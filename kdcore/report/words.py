"""Formats numbers, intervals and commands as text, and any text as Markdown."""

import html
import math
import re
import shlex

from kdcore.report import statistics

SCALES = {  # of a budget, in words
    "protocol": "the paper's protocol",
    "short": "shorter training",
    "scaled": "scaled down",
    "demo": "a demonstration",
}
COMPARISON = {  # what is compared with the paper at each scale
    "protocol": "",
    "short": "Training is shorter than the paper's: a number that is not reproduced gets no verdict.",
    "scaled": "Networks or data are smaller than the paper's: numbers get no verdict.",
    "demo": "Embedded data: nothing is compared with the paper.",
}

FINDINGS = "Findings describe means. Whether a difference may be chance is what the claims test; what no claim covers is not tested."


def number(value: float, significant: int = 4, signed: bool = False) -> str:
    """``value`` with about ``significant`` digits; whole digits are never rounded off, trailing zeros are dropped.

    146.234 -> "146.2", 0.012345 -> "0.01235", 67.0 -> "67"; "" for nan.
    """
    return _short(fixed(value, _decimals(value, significant), signed))


def fixed(value: float, decimals: int, signed: bool = False) -> str:
    """``value`` with this number of ``decimals``, a real minus sign, commas from 10,000 on, and a plus sign if ``signed``; "" for
    nan. Values with more than 12 decimals or more than 15 whole digits are written as 1.234e+20."""
    if math.isnan(value):
        return ""
    sign = "+" if signed else ""
    if math.isinf(value):
        text = f"{value:{sign}}".replace("inf", "\N{INFINITY}")
    elif abs(value) >= 1e15 or (value and decimals > 12):
        text = f"{value:{sign}.4g}"
    else:
        text = f"{value:{sign}{',' if abs(round(value, decimals)) >= 10_000 else ''}.{decimals if decimals <= 12 else 0}f}"
        text = text if text.strip("+-0.") else text.strip("+-")  # no sign on a zero
    return _minus(text)


def difference(value: float, ours: float, low: float = math.nan, high: float = math.nan) -> str:
    """Ours minus the paper's, with a sign and no more decimals than ours has beside its interval."""
    alone = math.isnan(low) or math.isnan(high)
    return _short(fixed(value, _decimals(ours, 4) if alone else _places(low, high), signed=True))


def estimate(mean: float, low: float, high: float, signed: bool = False) -> str:
    """A mean with its interval, all with the same decimals: "146 [139, 153]"; the mean alone without an interval, "" without a mean."""
    if math.isnan(low) or math.isnan(high):
        return number(mean, signed=signed)
    ends = _places(low, high)
    return f"{fixed(mean, ends, signed)} [{fixed(low, ends)}, {fixed(high, ends)}]"


def reported(value: float, std: float | None = None, mark: str = "") -> str:
    """A number as printed in the paper: "146", "47.3", "8.47 ± 1.11" with its standard deviation, "67 [M?]" with the mark of an
    unverified number; "" for nan."""
    if not math.isfinite(value):
        return fixed(value, 0)
    text = _minus(f"{value + 0.0:.12g}")  # no sign on a zero
    text += "" if std is None or math.isnan(std) else f" \N{PLUS-MINUS SIGN} {std:g}"
    return f"{text} [{mark}]" if mark else text


def p_value(p: float) -> str:
    return "" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.2g}" if p < 0.995 else "1"


def level(value: float) -> str:
    """The level of an interval, in percent, with as many digits as tell it from its neighbours: "95 %", "99.29 %"."""
    return f"{_short(fixed(100 * value, 2))} %"


def of_planned(n: int, planned: int) -> str:
    """A number of seeds, with the planned number while it is smaller: "5", "3 of 6"."""
    return f"{n} of {planned}" if 0 < n < planned else str(n)


def measure(paper, name: str) -> str:
    """A metric of a paper's histories in words, with its unit: those of the sheet's ``measures``, or made from its name:
    "test_error_percent" -> "test error (%)"."""
    plain_name = f"{name.removesuffix('_percent')} (%)" if name.endswith("_percent") else name
    return paper.sheet.get("measures", {}).get(name) or plain_name.replace("_", " ")


def hours(value: float) -> str:
    return number(value, 2) if not value < 0.01 else "< 0.01" if value else "0"


def cost(about: dict) -> str:
    """The cost of a table's numbers, and the device, as a sentence."""
    if not about["device"]:
        return "Not run yet."
    cpu = f" ({hours(about['cpu_hours'])} of CPU time)" if not math.isnan(about["cpu_hours"]) else ""
    return f"{hours(about['hours'])} hours of wall time{cpu} of one process on {about['device']}."


def known(rows: list[dict], column: str) -> bool:
    """Whether a column has a number in any row."""
    return any(not math.isnan(row[column]) for row in rows)


def trained(about: dict) -> str:
    """What the arms of a table, or of the claims, train where that is smaller than the protocol, in a sentence or two; "" elsewhere."""
    lines = "; ".join(f"{line['parameter']} {listed(line['values'])}" for line in about.get("trained", ()))
    lead = "Title and labels are those of the protocol. " if about["kind"] == "table" else ""
    return f"{lead}Trained here: {lines}." if lines else ""


def corrected(about: dict) -> str:
    """What a table or the claims say of random test sets that overlap; "" elsewhere."""
    return "Test sets overlap; intervals and verdicts are corrected for it (Nadeau & Bengio 2003)." if about.get("resampled") else ""


def notes(about: dict) -> list[str]:
    """What a table or the claims say of verdicts by other rules: old margins, and test sets taken for independent."""
    found = []
    for change in about.get("margins", ()):
        labels = [label for label, _, _ in change["rows"]]
        several = f"{len(labels)} rows, {_quoted(labels[0])} to {_quoted(labels[-1])},"
        which = several if len(labels) > 3 else " and ".join(map(_quoted, labels))
        others = [row for row in change["rows"] if row[1] != row[2]]
        found.append(
            f"Until {change['since']} the margin of {which} was {reported(change['old'])}: {change['why']}. "
            + (f"With it: {_instead(others)}." if others else "With it the verdicts would be the same.")
        )
    if others := about.get("independent", ()):
        found.append(f"The earlier test, which took the overlapping test sets for independent, gave: {_instead(others)}.")
    return found


def _instead(rows: list[tuple[str, str, str]]) -> str:
    return "; ".join(f"{_quoted(label)} {verdict} (now {now})" for label, verdict, now in rows)


def _quoted(label: str) -> str:
    return f"\N{LEFT DOUBLE QUOTATION MARK}{label.rstrip('.')}\N{RIGHT DOUBLE QUOTATION MARK}"


def source(about: dict) -> str:
    """The source of the paper's numbers: "Table 1 (section 3). "."""
    if not about["source"]:
        return ""
    return f"Table {about['number']} ({about['source']}). " if about["number"] is not None else f"Source: {about['source']}. "


def command(key: str, budget: str, arm: str, seed: int) -> str:
    """The command line that runs one trial, quoted for a shell."""
    quoted = f'"{arm}"' if not re.search(r"""["$`\\!]|[^ -~]""", arm) else shlex.quote(arm)
    return f"kdcore run {key} --budget {budget} --arm {quoted} --seed {seed}"


def arms(names: list[str]) -> str:
    """The arms of a side of a claim; of many, the first and the last."""
    return " and ".join(names) if len(names) < 5 else f"{names[0]} \N{HORIZONTAL ELLIPSIS} {names[-1]} ({len(names)} arms)"


def listed(values) -> str:
    return ", ".join(map(str, values))


def plain(text) -> str:
    """``text`` with uniform line breaks, and replacement characters for terminal controls and text-direction controls."""
    text = re.sub(r"\r\n?|[\v\f\x85\u2028\u2029]", "\n", str(text))
    return re.sub(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text)


def markdown(text, line_break: str = " ") -> str:
    """Any text as one line of Markdown that shows it literally: nothing in it is read as markup, a table, a formula or a comment.

    Characters that need no escape in their context are left alone, so that the source stays legible.
    """
    text = re.sub(r"([\\`*|~$#])|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|(?<=\])[(\[]|^\s*\[(?=.*\]:)", r"\\\g<0>", plain(text))
    text = re.sub(r"&(?=#?\w+;)", "&amp;", text)
    text = re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text)
    return re.sub(r"\s*\n\s*", line_break, text.strip())


def attribute(text) -> str:
    """Any text as one line for HTML: in an attribute's quotes, or between tags."""
    return html.escape(" ".join(plain(text).split()))


def markdown_table(header: list[str], rows: list[list]) -> str:
    """A Markdown table of plain text, all escaped; line breaks within a cell are kept."""
    lines = [[markdown(cell, "<br>") for cell in line] for line in (header, *rows)]
    lines.insert(1, ["---"] * len(header))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _short(text: str) -> str:
    """A formatted number without trailing zeros."""
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text


def _minus(text: str) -> str:
    """A formatted number with a minus sign in place of a leading hyphen."""
    return re.sub(r"^-", "\N{MINUS SIGN}", text)


def _places(low: float, high: float) -> int:
    """As many decimals as show the width of an interval."""
    width = max(0, -statistics.exponent(high - low)) if 0 < high - low < math.inf else 0
    return max(width, min(_decimals(low, 3), _decimals(high, 3)))


def _decimals(value: float, significant: int) -> int:
    """The number of decimals that gives ``value`` this number of significant digits; at least 0."""
    return max(0, significant - 1 - (statistics.exponent(value) if value and math.isfinite(value) else 0))
