"""Training: a ``Stage`` is one optimisation phase, ``fit`` a training loop that resumes exactly, a ``Run`` all that a trial trains."""

from kdcore.training.checkpoint import Checkpoint
from kdcore.training.context import Context, fast_precision
from kdcore.training.loop import evaluated, fit
from kdcore.training.run import Run, forecast
from kdcore.training.stage import Stage, seed_of
from kdcore.training.step import Step

__all__ = ["Checkpoint", "Context", "Run", "Stage", "Step", "evaluated", "fast_precision", "fit", "forecast", "seed_of"]
