"""kdcore: a replication suite for knowledge distillation."""

__version__ = "0.1.0"
