"""Trials: what to run, where the records lie, and who runs them. Nothing here knows a paper."""

import sys

if sys.platform == "win32":
    raise ImportError("kdcore does not run trials on Windows (they need POSIX file locks and signals): use WSL, Linux or macOS")
