"""Loss, schedule, early stopping, averaging and one optimiser step."""

import math
import weakref
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch

from convlstm_wx.config import TrainConfig
from convlstm_wx.conventions import Channel
from convlstm_wx.data.loaders import TensorBatch
from convlstm_wx.device import choose_device
from convlstm_wx.distributed import Processes
from convlstm_wx.models.build import build
from convlstm_wx.training.averaging import AveragedWeights
from convlstm_wx.training.losses import WeightedLoss, make_loss, persistence
from convlstm_wx.training.schedule import EarlyStopping, epochs_for, learning_rate_at
from convlstm_wx.training.step import Learner, make_optimizer


def test_loss_of_an_error_of_one_typical_change_is_one():
    loss = WeightedLoss(torch.tensor([0.5, 1.5]), torch.tensor([0.1, 2.0]))
    y = torch.zeros(1, 1, 2, 2, 3)
    forecast = torch.tensor([0.1, 2.0])[:, None, None].expand_as(y)
    error, points = loss(forecast, y, torch.ones_like(y))
    assert float(error / points) == pytest.approx(1)


def test_loss_leaves_missing_points_out_whatever_is_forecast_there():
    loss = WeightedLoss(torch.ones(2), torch.ones(1))
    y = torch.zeros(1, 1, 1, 2, 2)
    valid = torch.tensor([[1.0, 1.0], [1.0, 0.0]])[None, None, None]
    forecast = torch.tensor([[1.0, 1.0], [1.0, 1e6]])[None, None, None]
    error, points = loss(forecast, y, valid)
    assert float(points) == 3
    assert float(error) == 3


def test_loss_weights_rows_by_their_area():
    loss = WeightedLoss(torch.tensor([0.5, 1.5]), torch.ones(1))
    y, valid = torch.zeros(1, 1, 1, 2, 1), torch.ones(1, 1, 1, 2, 1)
    forecast = torch.tensor([[2.0], [0.0]])[None, None, None]
    error, points = loss(forecast, y, valid)
    assert float(error / points) == pytest.approx(0.5 * 4 / 2)


def test_persistence_repeats_the_last_input():
    x = torch.arange(2 * 3).reshape(1, 2, 3, 1, 1).float()
    assert persistence(x, [2, 0], lead_steps=2)[0, :, :, 0, 0].tolist() == [[5, 3], [5, 3]]


def test_learning_rate_warms_up_peaks_and_falls_to_its_floor():
    rates = [learning_rate_at(s, total_steps=100, warmup_steps=10, peak=1.0) for s in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.01)
    assert all(a >= b for a, b in pairwise(rates[10:]))


@pytest.mark.parametrize(
    ("windows", "epochs"), [(20, 12), (2_550, 12), (8_690, 12), (8_700, 11), (13_651, 7), (10**6, 4)]
)
def test_a_long_record_is_gone_over_less_often(windows, epochs):
    assert epochs_for(windows) == epochs


def test_early_stopping_counts_epochs_without_improvement():
    stopping = EarlyStopping(patience=2)
    assert [stopping.update(loss) for loss in (3.0, 2.0, 2.5)] == [True, True, False]
    assert not stopping.should_stop
    stopping.update(math.nan)
    assert stopping.should_stop
    assert not EarlyStopping(patience=0, waited=99).should_stop


def test_averaged_weights_follow_and_are_only_lent_to_the_network():
    network = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(network.weight)
    averaged = AveragedWeights(network, decay=0.5)
    torch.nn.init.ones_(network.weight)
    averaged.update()  # early decay is (1 + 1) / (10 + 1)
    assert float(averaged.shadow["weight"]) == pytest.approx(1 - 2 / 11)
    with averaged.applied():
        assert float(network.weight.detach()) == pytest.approx(1 - 2 / 11)
    assert float(network.weight.detach()) == 1


def a_learner(*, network: str = "encoder-forecaster", dtype: torch.dtype = torch.float64, **changes) -> Learner:
    config = TrainConfig(data=("none.nc",), dropout=0.0, input_noise=0.0, **changes)
    torch.manual_seed(0)
    options = {
        "input_channels": 2,
        "target_indices": [0, 1],
        "target_mask_indices": [-1, -1],
        "mask_channels": 0,
        "forcing_channels": 5,
        "upstream_channels": [],
        "increment_scale": [1.0, 1.0],
        "hidden_channels": [3, 4],
        "kernel_size": 3,
        "dropout": 0.0,
    }
    built = build(network, options).to(dtype)
    torch.nn.init.normal_(built.head.weight, std=0.1)
    policy = choose_device("cpu")
    return Learner(
        network=built,
        loss=make_loss(config, torch.ones(5), torch.ones(2), (Channel("t2m"), Channel("tp"))).to(dtype),
        optimizer=make_optimizer(built, config, policy),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        averaged=AveragedWeights(built, 0.9),
        policy=policy,
        processes=Processes(),
        noise_C11=torch.zeros(2, 1, 1, dtype=dtype),
        clip_norm=1.0,
    )


def batches_of(sizes: list[int], dtype: torch.dtype = torch.float64) -> list[TensorBatch]:
    """The same windows cut into micro-batches, with unequal numbers of missing points."""
    rng = np.random.default_rng(5)
    total = sum(sizes)

    def field(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.normal(size=shape)).to(dtype)

    x, clock, y = field(total, 3, 2, 5, 6), field(total, 5, 7), field(total, 2, 2, 5, 6)
    places = [field(3, 5, 6)]
    valid = (field(total, 2, 2, 5, 6) > torch.linspace(-2, 1, total)[:, None, None, None, None]).to(dtype)
    cut = zip(*(torch.split(t, sizes) for t in (x, clock, y, valid)))
    return [TensorBatch(x, c, places, [], y, v) for x, c, y, v in cut]


def test_four_micro_batches_of_two_teach_the_same_as_one_batch_of_eight():
    whole, parts = a_learner(), a_learner()
    assert whole.learn(batches_of([8]), 1e-2)[0] == pytest.approx(parts.learn(batches_of([2, 2, 2, 2]), 1e-2)[0])
    for a, b in zip(whole.network.parameters(), parts.network.parameters()):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_a_step_holds_two_of_its_micro_batches_at_most():
    """The one at work, and the next one as it comes."""
    held, most = weakref.WeakSet(), []

    def stream() -> Iterator[TensorBatch]:
        for size in (2, 2, 2, 2):
            (batch,) = batches_of([size])
            held.add(batch.x_BTCHW)
            most.append(len(held))
            yield batch

    a_learner().learn(stream(), 1e-2)
    assert most == [1, 2, 2, 2]


def test_a_step_without_one_valid_point_changes_nothing():
    learner = a_learner()
    before = [parameter.detach().clone() for parameter in learner.network.parameters()]
    batches = [batch._replace(valid_BLDHW=torch.zeros_like(batch.valid_BLDHW)) for batch in batches_of([2, 2])]
    assert learner.learn(batches, 1e-2) == (0, 0)
    assert all(torch.equal(a, b) for a, b in zip(before, learner.network.parameters()))
    assert all(parameter.grad is None for parameter in learner.network.parameters())


def test_a_step_with_a_non_finite_gradient_changes_nothing():
    learner = a_learner()
    before = [p.detach().clone() for p in learner.network.parameters()]
    (batch,) = batches_of([2])
    batch.x_BTCHW[0, 0, 0, 0, 0] = torch.nan
    assert learner.learn([batch], 1e-2) is None
    assert all(torch.equal(a, b) for a, b in zip(before, learner.network.parameters()))
    assert learner.averaged.updates == 0


def test_biases_are_not_decayed():
    learner = a_learner(weight_decay=0.5)
    decays = {p.ndim > 1: group["weight_decay"] for group in learner.optimizer.param_groups for p in group["params"]}
    assert decays == {True: 0.5, False: 0.0}


def test_noise_is_for_training_only():
    learner = a_learner()
    learner.noise_C11 = torch.ones(2, 1, 1, dtype=torch.float64)
    batch = batches_of([2])
    assert learner.validate(batch) == learner.validate(batch)
