"""Errors that end in one clear sentence for the person at the keyboard."""


class KdcoreError(Exception):
    """Something the user can mend: the message says what is wrong and what to do."""


class DataMissing(KdcoreError):
    """A data set that is neither here nor to be fetched; trials on other data can go on."""


class Damaged(KdcoreError):
    """A file whose contents are not those that were written; it lies aside now, and what it held can be made anew."""


class Stopped(KdcoreError):
    """Somebody stopped the run, or its time was up; the same command goes on from there."""


class TrialFailed(KdcoreError):
    """A trial that cannot give a number. ``status`` is what its record says: nan, oom, timeout or killed."""

    def __init__(self, status: str, message: str):
        super().__init__(message)
        self.status = status


class Paused(Exception):
    """A trial stopped at a checkpoint on request; the same command goes on from there."""
