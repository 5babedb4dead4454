"""Networks: published parameter counts, stacks that equal single nets, norms, taps, gradients."""

import pytest
import torch
from torch import nn

from kdcore.models import MLP, count_parameters


@pytest.mark.parametrize(
    "sizes, published",
    [((784, 1200, 1200, 10), 2_395_210), ((784, 800, 800, 10), 1_276_810)],  # recounted from Hinton 2015's layer sizes
)
def test_parameter_counts(sizes, published):
    assert count_parameters(MLP(sizes)) == published
    assert count_parameters(MLP(sizes, members=3)) == 3 * published


def test_forward_equals_torch_layers():
    net = MLP((6, 5, 4, 3)).reset([7])
    layers = [nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)]
    for i, layer in enumerate(layers[::2]):
        layer.weight.data, layer.bias.data = net.weights[i].data[0], net.biases[i].data[0]
    x = torch.randn(9, 2, 3)
    assert torch.allclose(net(x), nn.Sequential(*layers)(x.flatten(1)), atol=1e-6)


def test_a_member_of_a_stack_equals_the_net_alone():
    stack, alone = MLP((6, 5, 3), members=3).reset([1, 2, 3]), MLP((6, 5, 3)).reset([2])
    x = torch.randn(4, 6)
    assert torch.allclose(stack(x)[1], alone(x), atol=1e-6)
    own = torch.randn(3, 4, 6)
    assert torch.allclose(stack(own)[1], alone(own[1]), atol=1e-6), "each member sees its own batch"
    # gradients never mix: the loss of member 1 leaves the others alone
    stack(x)[1].square().sum().backward()
    alone(x).square().sum().backward()
    assert torch.allclose(stack.weights[0].grad[1], alone.weights[0].grad[0], atol=1e-5)
    assert stack.weights[0].grad[0].abs().sum() == 0


def test_initial_weights():
    net = MLP((784, 800, 10)).reset([0], std=0.01)
    assert net.weights[0].std().item() == pytest.approx(0.01, rel=0.02)
    assert MLP((784, 800, 10)).reset([0]).weights[0].std().item() == pytest.approx((2 / 784) ** 0.5, rel=0.02)
    assert all(bias.abs().sum() == 0 for bias in net.biases)
    with pytest.raises(ValueError, match="2 seeds for 3 members"):
        MLP((4, 3), members=3).reset([1, 2])


def test_norm_limit_touches_only_what_is_too_long():
    net = MLP((4, 2, 2))
    with torch.no_grad():
        net.weights[0][0] = torch.tensor([[3.0, 4.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]])  # squared lengths 25 and 2
        net.weights[1][0] = torch.tensor([[30.0, 40.0], [1.0, 1.0]])
    net.limit_norms(15.0)
    assert net.weights[0][0, 0].square().sum().item() == pytest.approx(15, rel=1e-5)
    assert torch.equal(net.weights[0][0, 1], torch.tensor([1.0, 1.0, 0.0, 0.0]))
    assert net.weights[1][0, 0].tolist() == [30.0, 40.0], "the output layer is no hidden unit"
    assert (net.weights[0][0, 0, 0] / net.weights[0][0, 0, 1]).item() == pytest.approx(0.75), "the direction stays"


def test_dropout_only_in_training_and_at_its_rates():
    net = MLP((1000, 500, 10), input_dropout=0.2, hidden_dropout=0.5).reset([0])
    x = torch.ones(64, 1000)
    net.eval()
    assert torch.equal(net(x), net(x))
    net.train()
    assert not torch.equal(net(x), net(x))
    seen = torch.nn.functional.dropout(x, net.input_dropout, True)
    assert (seen == 0).float().mean().item() == pytest.approx(0.2, abs=0.01)


def test_taps_name_what_features_gives():
    net = MLP((6, 5, 4, 3)).reset([0])
    logits, taps = net.features(torch.randn(2, 6))
    assert (
        {name: tensor.shape[-1] for name, tensor in taps.items()}
        == net.taps
        == {"hidden1.pre": 5, "hidden1": 5, "hidden2.pre": 4, "hidden2": 4}
    )
    assert torch.equal(taps["hidden1"], taps["hidden1.pre"].relu())
    assert logits.shape == (2, 3)
