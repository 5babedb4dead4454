"""A process from its start to its first optimiser step; it then prints one line, its peak memory in MB. Started by ``suite``.

``python -m benchmarks.cold_start ours``: what a child process of kdcore imports and does. ``... peer``: torchvision and a DataLoader,
as in a typical script. The two share no import beyond torch, so nothing is imported at the top.
"""

import sys

CASES, SIZES, BATCH = 10_000, (784, 800, 800, 10), 128


def ours() -> None:
    import torch

    from kdcore import losses
    from kdcore.models import MLP
    from kdcore.training import Context, Stage

    x = torch.randint(256, (CASES, 784), dtype=torch.uint8).float().div_(255)
    labels = torch.randint(10, (CASES,))
    net = MLP(SIZES).reset([0])
    stage = Stage(
        name="train",
        epochs=1,
        indices=lambda generator: torch.randperm(CASES, generator=generator)[:BATCH].view(1, BATCH),
        loss=lambda case: losses.cross_entropy(net(x[case]), labels[case]),
        schedule=lambda epoch: {"lr": 0.01},
    )
    Context().fit(net, [stage], lambda: {})


def peer() -> None:
    import numpy
    import torch
    import torchvision  # noqa: F401 (typical scripts import it first)
    from torch import nn
    from torch.utils.data import DataLoader

    from benchmarks.mlp import PilImages, plain_net

    images = numpy.random.default_rng(0).integers(256, size=(CASES, 28, 28), dtype=numpy.uint8)
    loader = DataLoader(PilImages(images, torch.randint(10, (CASES,))), batch_size=BATCH, shuffle=True, num_workers=2)
    net = plain_net(SIZES)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.01)
    batch, labels = next(iter(loader))
    loss = nn.functional.cross_entropy(net(batch), labels)
    loss.backward()
    optimiser.step()
    loss.item()


if __name__ == "__main__":
    {"ours": ours, "peer": peer}[sys.argv[1]]()
    from benchmarks.measure import peak_memory_mb

    print(peak_memory_mb(), flush=True)
