"""A table of a teacher's logits holds what float32 gives, whatever the step that asks for an entry trains in."""

import pytest
import torch
from torch import nn

from kdcore.data.augment import Views
from kdcore.methods import LogitTable, freeze


@pytest.mark.parametrize("way", ["asked in a step", "filled"])
def test_autocast_round_a_step_does_not_reach_the_table(way):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, 1, 8, 8), generator=generator, dtype=torch.uint8)
    teacher = freeze(nn.Sequential(nn.Flatten(), nn.Linear(64, 5)))
    views = Views(images, pad=1)
    table = LogitTable(teacher, views, 5)
    index = torch.tensor([[k, k % 3, (k + 1) % 3] for k in range(6)])
    x = views(index)
    with torch.autocast("cpu", torch.bfloat16):
        assert nn.functional.linear(x.flatten(1), teacher[1].weight).dtype == torch.bfloat16, "autocast is on"
        if way == "filled":
            table.fill()
        found = table(index, x)
    weight, bias = (part.double() for part in teacher[1].parameters())
    exact = x.double().flatten(1) @ weight.T + bias
    # float16 keeps 11 bits, bfloat16 8
    assert found.dtype == torch.float32
    assert ((found.double() - exact).abs() <= 2**-11 * exact.abs() + 1e-5).all()
