"""The ConvLSTM layer against the textbook cell."""

import pytest
import torch
from torch import Tensor

from convlstm_wx.models.convlstm import ConvLSTM, State
from tests.textbook import convlstm

STEPS = 4


def case(kernel_size: int = 3, *, dtype: torch.dtype = torch.float64, given_state: bool = False):
    """A layer with random weights, an input on an odd grid, a state."""
    torch.manual_seed(3)
    layer = ConvLSTM(3, 5, kernel_size).to(dtype)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, STEPS, 3, 7, 5, dtype=dtype, requires_grad=True)
    state = tuple(torch.randn(2, 5, 7, 5, dtype=dtype, requires_grad=True) for _ in range(2))
    return layer, x, state if given_state else None


def textbook(layer: ConvLSTM, x: Tensor, state: State | None) -> tuple[Tensor, State]:
    weight = torch.cat([layer.input_conv.weight, layer.hidden_conv.weight], dim=1)
    zeros = torch.zeros(x.shape[0], layer.hidden_channels, *x.shape[3:], dtype=x.dtype)
    return convlstm(x, weight, layer.input_conv.bias, *(state or (zeros, zeros)))


def relative(a: Tensor, b: Tensor) -> float:
    return float(((a - b).norm() / b.norm()).detach())


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("given_state", [False, True])
def test_layer_equals_the_textbook_cell_forward_and_backward(kernel_size, given_state):
    layer, x, state = case(kernel_size, given_state=given_state)
    inputs = [*layer.parameters(), x, *(state or ())]
    (h, (h_last, c_last)), (h_ref, (_, c_ref)) = layer(x, state), textbook(layer, x, state)
    torch.testing.assert_close(h, h_ref, rtol=0, atol=1e-13)
    torch.testing.assert_close(c_last, c_ref, rtol=0, atol=1e-13)
    assert torch.equal(h_last, h[:, -1])
    weights = torch.randn_like(h)
    got = torch.autograd.grad((h * weights).sum() + c_last.square().sum(), inputs)
    expected = torch.autograd.grad((h_ref * weights).sum() + c_ref.square().sum(), inputs)
    for a, b in zip(got, expected, strict=True):
        assert relative(a, b) < 1e-12


def test_float32_stays_within_two_millionths_of_float64():
    layer, x, _ = case()
    exact = layer(x)[0]
    assert relative(layer.float()(x.float())[0].double(), exact) < 2e-6


def test_bfloat16_autocast_keeps_the_cell_state_in_float32():
    layer, x, _ = case(dtype=torch.float32)
    exact = layer(x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        h, (_, c) = layer(x)
    assert c.dtype is torch.float32
    assert relative(h.float(), exact) < 2e-2


def test_two_halves_of_a_sequence_equal_the_whole():
    layer, x, _ = case()
    whole, (_, c_whole) = layer(x)
    first, state = layer(x[:, :2])
    second, (_, c) = layer(x[:, 2:], state)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole)
    torch.testing.assert_close(c, c_whole)


def test_a_step_is_a_sequence_of_one():
    layer, x, state = case(given_state=True)
    h, c = layer.step(x[:, 0], state)
    sequence, (_, c_sequence) = layer(x[:, :1], state)
    torch.testing.assert_close(h, sequence[:, 0])
    torch.testing.assert_close(c, c_sequence)


@pytest.mark.parametrize("value", [1e4, 1e30, float("inf")])
def test_extreme_inputs_stay_finite_where_the_textbook_cell_does(value):
    layer, x, _ = case(dtype=torch.float32)
    extreme = x.detach().clone()
    extreme[0, 1, 0, 3, 2] = value
    got, reference = layer(extreme)[0], textbook(layer, extreme, None)[0]
    assert torch.equal(torch.isfinite(got), torch.isfinite(reference))


def test_nan_propagates():
    layer, x, _ = case(dtype=torch.float32)
    with_nan = x.detach().clone()
    with_nan[0, 0, 0, 3, 2] = float("nan")
    got = layer(with_nan)[0]
    assert torch.isnan(got[0, 0, :, 3, 2]).all()
    assert torch.isfinite(got[1]).all()


def test_a_non_contiguous_input_gives_the_same():
    layer, x, _ = case()
    turned = x.detach().transpose(3, 4).contiguous().transpose(3, 4)
    assert not turned.is_contiguous()
    torch.testing.assert_close(layer(turned)[0], layer(x)[0])


def test_the_forget_gate_starts_open():
    bias = ConvLSTM(2, 3).input_conv.bias
    assert bias[3:6].tolist() == [1, 1, 1]
    assert bias[:3].tolist() == [0, 0, 0]


@pytest.mark.parametrize(("channels", "hidden", "kernel"), [(1, 1, 2), (0, 1, 3), (1, 0, 3)])
def test_impossible_sizes_are_refused(channels, hidden, kernel):
    with pytest.raises(ValueError, match="odd kernel size and at least one channel"):
        ConvLSTM(channels, hidden, kernel)
