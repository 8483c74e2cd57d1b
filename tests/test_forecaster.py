"""The encoder-forecaster: shapes, its starting point, its gradients, its upstream regions."""

import pytest
import torch

from convlstm_wx.errors import ConfigError
from convlstm_wx.models import compiled
from convlstm_wx.models.blocks import fold_times, unfold_times
from convlstm_wx.models.build import build, count_parameters
from convlstm_wx.models.convlstm import ConvLSTM

OPTIONS = {
    "input_channels": 4,
    "target_indices": [0, 2],
    "target_mask_indices": [-1, 0],
    "mask_channels": 1,
    "forcing_channels": 3,
    "upstream_channels": [5, 6],
    "increment_scale": [0.5, 0.25],
    "hidden_channels": [4, 8],
    "kernel_size": 3,
    "dropout": 0.0,
}


def inputs(height: int = 9, width: int = 7, leads: int = 3):
    torch.manual_seed(0)
    x = torch.randn(2, 2, 4, height, width)
    x[:, :, 3] = 1
    forcing = torch.randn(2, 2 + leads, 3, height, width)
    upstream = [torch.randn(2, 2, 5, 6, 11), torch.randn(2, 2, 6, 3, 4)]
    return x, forcing, upstream


def a_network(**changes):
    torch.manual_seed(1)
    return build("encoder-forecaster", OPTIONS | changes)


def test_an_untrained_network_is_persistence():
    x, forcing, upstream = inputs()
    y = a_network()(x, forcing, upstream)
    assert y.shape == (2, 3, 2, 9, 7)
    assert torch.equal(y, x[:, -1:, [0, 2]].expand_as(y))


@pytest.mark.parametrize("hidden_channels", [[4], [4, 8], [4, 8, 8]])
@pytest.mark.parametrize("size", [(6, 9), (61, 65), (1, 5)])
def test_any_grid_and_number_of_resolutions_work(hidden_channels, size):
    x, forcing, upstream = inputs(*size)
    y = a_network(hidden_channels=hidden_channels)(x, forcing, upstream)
    assert y.shape[-2:] == size


@pytest.mark.parametrize("hidden_channels", [[4], [4, 8], [6, 5, 3]])
def test_every_parameter_gets_a_gradient(hidden_channels):
    network = a_network(hidden_channels=hidden_channels)
    torch.nn.init.normal_(network.head.weight)
    x, forcing, upstream = inputs()
    network(x, forcing, upstream).square().sum().backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []
    assert count_parameters(network) == sum(p.numel() for p in network.parameters())


def test_the_forecast_depends_on_each_upstream_region():
    network = a_network()
    torch.nn.init.normal_(network.head.weight)
    x, forcing, upstream = inputs()
    before = network(x, forcing, upstream)
    for index in range(2):
        changed = [u.clone() for u in upstream]
        changed[index][:, 0] += 1
        assert not torch.allclose(network(x, forcing, changed), before)


def test_a_forecast_never_looks_at_later_forcings():
    network = a_network()
    torch.nn.init.normal_(network.head.weight)
    x, forcing, upstream = inputs(leads=3)
    before = network(x, forcing, upstream)
    forcing[:, -1] += 1
    after = network(x, forcing, upstream)
    assert torch.equal(after[:, :2], before[:, :2])
    assert not torch.equal(after[:, 2], before[:, 2])


def test_a_longer_rollout_begins_with_the_shorter_one():
    network = a_network()
    torch.nn.init.normal_(network.head.weight)
    x, forcing, upstream = inputs(leads=5)
    torch.testing.assert_close(network(x, forcing, upstream)[:, :2], network(x, forcing[:, :4], upstream))


def test_nothing_is_fed_back_where_the_last_input_was_missing():
    network = a_network()
    state = network.encode(*(lambda x, f, u: (x, f[:, :2], u))(*inputs()))
    mask = state.mask_BMHW.clone()
    mask[:, :, 0, 0] = 0
    fed = network.where_observed(torch.ones_like(state.fields_BDHW), mask)
    assert fed[0, 0, 0, 0] == 1  # target 0 has no gaps
    assert fed[0, 1, 0, 0] == 0
    assert fed[0, 1, 1, 1] == 1


def test_the_wrong_number_of_upstream_inputs_is_an_error():
    x, forcing, upstream = inputs()
    with pytest.raises(ValueError, match="1 upstream inputs for 2"):
        a_network()(x, forcing, upstream[:1])


def test_an_unknown_network_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match="no network is called 'transformer'; there are: encoder-forecaster"):
        build("transformer", {})


@pytest.mark.parametrize("path", ["plain", "function", "compiled"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_seed_gives_the_losses_that_it_always_gave(path, layout, monkeypatch):
    """Recorded when the layers were plain PyTorch, batch-major: three steps of gradient descent."""
    monkeypatch.setenv(compiled.NO_COMPILER, "0" if path == "compiled" else "1")
    if path == "plain":
        monkeypatch.setattr(ConvLSTM, "_is_fast", lambda *_: False)
    network = a_network().to(memory_format=layout)
    torch.nn.init.constant_(network.head.weight, 0.3)
    x, forcing, upstream = inputs()
    optimizer = torch.optim.SGD(network.parameters(), 0.05)
    losses = []
    for _ in range(3):
        loss = (network(x, forcing, upstream) - 1).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses == pytest.approx([2.0338072776794434, 1.959157109260559, 1.89291250705719], rel=1e-5)


def test_times_fold_into_the_batch_and_back():
    x = torch.arange(2 * 3 * 4 * 5 * 6).reshape(2, 3, 4, 5, 6)
    folded = fold_times(x)
    assert torch.equal(folded[2 * 1 + 0], x[0, 1])
    assert torch.equal(unfold_times(folded, 3), x)


def test_layers_hand_on_their_output_without_a_copy():
    h, _ = ConvLSTM(3, 4)(torch.randn(2, 3, 3, 7, 5))
    folded = fold_times(h)
    assert folded.data_ptr() == h.data_ptr()
    assert folded.is_contiguous(memory_format=torch.channels_last)
    assert unfold_times(folded, 3).data_ptr() == h.data_ptr()
