"""Ba & Caruana 2014: the notebook's sliders."""

import ipywidgets
from matplotlib.figure import Figure

from kdcore.papers.ba_caruana_mimic.figures import logits_and_softmax
from kdcore.report.sliders import explore


def explore_logits(logits: tuple[float, ...] = (10.0, 20.0, 30.0)) -> None:
    """A slider for a number added to every logit: the logits change, their softmax does not."""

    def draw(added: float) -> Figure:
        return logits_and_softmax({"logits": list(logits), f"logits {added:+g}": [value + added for value in logits]})

    explore(draw, ipywidgets.FloatSlider(description="added", value=-20.0, min=-40.0, max=40.0, step=5.0, continuous_update=False))
