"""The generated parts of the README, each between two markers."""

from pathlib import Path

from kdcore import paths
from kdcore.errors import KdcoreError

PARTS = ("scoreboard", "times")


def with_parts(text: str, parts: dict[str, str], where: Path | str = "the README") -> str:
    """``text`` with each part between its markers, ``<!-- NAME -->`` and ``<!-- /NAME -->``. Raises KdcoreError unless each marker occurs
    once, in order."""
    for name, part in parts.items():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        if text.count(start) != 1 or text.count(end) != 1 or text.index(start) > text.index(end):
            raise KdcoreError(f"{where} must contain the lines {start} and {end}, once each and in this order, around a generated part")
        before, _, rest = text.partition(start)
        text = f"{before}{start}\n\n{part}\n\n{end}{rest.partition(end)[2]}"
    return text


def text_of(path: Path) -> str:
    """The text of a Markdown file. Raises KdcoreError if it cannot be read."""
    try:
        return paths.regular(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise KdcoreError(f"{path} cannot be read as UTF-8 text ({error}): restore it from git") from error
