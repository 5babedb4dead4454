"""One step of a method, and what it moves."""

import torch


def batch(size=16, count=8, seed=0):
    """Images [count, 3, size, size] and their labels, of ten classes."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, size, size, generator=generator), torch.randint(10, (count,), generator=generator)


def state(net):
    return {key: value.clone() for key, value in net.state_dict().items()}


def moved(net, before):
    """The keys of a network's state that are not as they were."""
    return {key for key, value in net.state_dict().items() if not torch.equal(value, before[key])}


def step(method, stage, x, labels, **options):
    method.train()
    stage.loss(x, labels, **options).backward()
    torch.optim.SGD(stage.parameters, lr=0.1, momentum=0.9, weight_decay=0.1).step()
    method.zero_grad()


def gradients(method, stage, x, labels):
    method.train().zero_grad()
    stage.loss(x, labels).backward()
    return [None if p.grad is None else p.grad.clone() for p in stage.parameters]
