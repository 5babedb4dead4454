"""Speed benchmarks: kdcore against the usual training loop, both in one run. ``python -m benchmarks``."""
