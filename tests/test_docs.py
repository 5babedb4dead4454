"""The documents: their code runs (registry.py), and what they name exists."""

import torch
from registry import EXAMPLES, METHODS, NETS

from kdcore import losses, methods, models


def test_the_examples_stand_where_their_documents_say_and_run():
    names = EXAMPLES["adding_a_method.md"]
    assert losses.similarity.__module__ == "kdcore.losses" and methods.similarity.__module__ == "kdcore.methods"
    assert names["loss"].isfinite() and "similarity" in METHODS
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in names["student"].parameters())

    names = EXAMPLES["adding_a_network.md"]
    assert type(models.create("plain_2")).__module__ == "kdcore.models.plain" and "plain_2" in NETS
    (stage,) = names["method"].stages
    assert stage.loss(torch.randn(2, 3, 32, 32), torch.tensor([1, 2])).isfinite()
