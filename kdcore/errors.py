"""Errors that reach the user as one clear sentence."""


class KdcoreError(Exception):
    """An error that the user can fix: the message says what is wrong and what to do."""


class DataMissing(KdcoreError):
    """A data set that is not here and cannot be downloaded; trials on other data can go on."""


class Damaged(KdcoreError):
    """A file whose contents are not what was written; it has been moved aside, and its contents can be made again."""


class Stopped(KdcoreError):
    """The run was stopped by the user or by its time limit; the same command resumes it."""


class TrialFailed(KdcoreError):
    """A trial that failed to give a result. ``status`` is that of its record: nan, oom, timeout or killed."""

    def __init__(self, status: str, message: str):
        super().__init__(message)
        self.status = status


class Paused(Exception):
    """A trial stopped at a checkpoint on request; the same command resumes it."""
