"""Are the texts of a figure legible?"""

import itertools


def overlaps(figure, monkeypatch) -> list[tuple[str, str]]:
    """Pairs of texts of a figure that overlap once it is drawn, or that leave its canvas."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.text import Text

    from kdcore.report import drawing

    canvas, texts = FigureCanvasAgg(figure), {}
    draw = Text.draw
    with drawing.style(), monkeypatch.context() as patched:
        patched.setattr(Text, "draw", lambda text, renderer: texts.setdefault(id(text), text) and draw(text, renderer))
        canvas.draw()
    texts = [text for text in texts.values() if text.get_visible() and text.get_text().strip()]
    # the text alone, without the line that an annotation may have to its place
    boxes = [(text.get_text(), Text.get_window_extent(text, canvas.get_renderer())) for text in texts]
    pairs = [(text, "the edge") for text, box in boxes if box.x0 < 0 or box.y0 < 0 or box.x1 > figure.bbox.x1 or box.y1 > figure.bbox.y1]
    for (a, one), (b, two) in itertools.combinations(boxes, 2):
        if min(one.x1, two.x1) - max(one.x0, two.x0) > 1 and min(one.y1, two.y1) - max(one.y0, two.y0) > 1:
            pairs.append((a, b))
    return pairs
