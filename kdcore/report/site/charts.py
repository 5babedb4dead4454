"""Small line charts of a trial's history, as SVG that takes the colours of the page."""

import math

from markupsafe import Markup

from kdcore.report import words

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 320, 120, 46, 8, 10, 20
NO_MEASURE = ("stage", "epoch", "lr")


def charts(history: list[dict]) -> list[dict]:
    """A chart for each measure of a record's history: [{measure, svg}]. Stages follow one another; a line marks where one starts."""
    measures = [key for key in dict.fromkeys(key for row in history for key in row) if key not in NO_MEASURE]
    drawn = [(measure, _chart(history, measure)) for measure in measures]
    return [{"measure": measure.replace("_", " "), "svg": svg} for measure, svg in drawn if svg]


def _chart(history: list[dict], measure: str) -> Markup | None:
    """None unless at least two rows have a finite number."""
    points = [(place, value) for place, row in enumerate(history) if _finite(value := row.get(measure))]
    if len(points) < 2:
        return None
    values = [value for _, value in points]
    low, high = min(values), max(values)
    spread = (high - low) or 1.0

    def x(place: float) -> str:
        return f"{LEFT + place / (len(history) - 1) * (WIDTH - LEFT - RIGHT):.1f}"

    def y(value: float) -> str:
        return f"{HEIGHT - BOTTOM - (value - low) / spread * (HEIGHT - TOP - BOTTOM):.1f}"

    line = " ".join(f"{x(place)},{y(value)}" for place, value in points)
    starts = [place for place in range(1, len(history)) if history[place].get("stage") != history[place - 1].get("stage")]
    stages = Markup("").join(
        Markup('<path class="stage" d="M{0} {1}V{2}"/>').format(x(place - 0.5), TOP, HEIGHT - BOTTOM) for place in starts
    )
    first, last = words.number(values[0]), words.number(values[-1])
    return Markup(
        '<svg class="chart" viewBox="0 0 {w} {h}" role="img" aria-label="{label}">'
        '<path class="axis" d="M{left} {top}V{floor}H{end}"/>{stages}<polyline points="{line}"/>'
        '<text x="{at}" y="{upper}" text-anchor="end">{high}</text><text x="{at}" y="{floor}" text-anchor="end">{low}</text>'
        '<text x="{left}" y="{under}">1</text><text x="{end}" y="{under}" text-anchor="end">{n}</text></svg>'
    ).format(
        w=WIDTH,
        h=HEIGHT,
        label=f"{measure.replace('_', ' ')} over {len(history)} epochs: {first} at first, {last} at last",
        left=LEFT,
        top=TOP,
        floor=HEIGHT - BOTTOM,
        end=WIDTH - RIGHT,
        stages=stages,
        line=line,
        at=LEFT - 4,
        upper=TOP + 8,
        under=HEIGHT - 5,
        high=words.number(high, 3),
        low=words.number(low, 3),
        n=len(history),
    )


def _finite(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
