"""Speed benchmarks: kdcore against the loop that users know, both in one run. ``python -m benchmarks``."""
