"""The functions that notebooks call.

    page = notebooks.Page("hinton_mnist", budget=budget, seeds=seeds, device=device, engine=engine, results_dir=results_dir)
    page.run()              # trains what is missing
    page.table("errors")    # the committed records and this run's, each under its own budget

A notebook never trains by itself: it asks for trials and reads their records. ``batch`` executes notebooks with papermill,
``parameters`` refuses parameters that a notebook does not have.
"""

from kdcore.notebooks.page import Page

__all__ = ["Page"]
