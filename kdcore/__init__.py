"""kdcore: the replication suite of knowledge distillation."""

__version__ = "0.1.0"
