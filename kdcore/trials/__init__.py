"""Trials: plans, records, and the processes that run them. Nothing here depends on a particular paper."""

import sys

if sys.platform == "win32":
    raise ImportError("kdcore does not run trials on Windows (they need POSIX file locks and signals): use WSL, Linux or macOS")
