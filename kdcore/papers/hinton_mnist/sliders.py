"""Hinton, Vinyals & Dean 2015: the notebook's sliders."""

import ipywidgets

from kdcore.papers.hinton_mnist.figures import gallery
from kdcore.report.sliders import explore


def explore_temperature(entries: list[dict]) -> None:
    """A slider for T that redraws a digit's softened targets. entries: as for ``figures.gallery``, from a teacher's record."""
    by_digit = {entry["label"]: entry for entry in entries}
    explore(
        lambda digit, temperature: gallery([by_digit[digit]], (1.0, temperature)),
        ipywidgets.Dropdown(description="digit", options=sorted(by_digit)),
        ipywidgets.FloatSlider(description="T", value=20.0, min=1.0, max=50.0, step=0.5, continuous_update=False),
    )
