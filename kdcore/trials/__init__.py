"""Trials: what to run, where the records lie, and who runs them. Nothing here knows a paper."""
