"""Interactive figures for notebooks."""

from collections.abc import Callable

import ipywidgets
from IPython.display import display
from matplotlib.figure import Figure

from kdcore.report import canvas


def explore(draw: Callable[..., Figure], *controls: ipywidgets.ValueWidget) -> None:
    """Show ``controls`` above the figure that ``draw`` makes from their values, and redraw it when one of them changes.

    ipywidgets.interact would send the figure through an Output widget, for which nbclient writes to the channel on which it waits
    for the end of the cell; at times it then misses that end.
    """
    image = ipywidgets.Image(format="png", width=800)

    def redraw(_=None) -> None:
        image.value = canvas.png(draw(*(control.value for control in controls)))

    for control in controls:
        control.observe(redraw, "value")
    redraw()
    display(ipywidgets.VBox([*controls, image]))
