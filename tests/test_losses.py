"""What an error costs: at a point, in heavy rain, in a variable that counts more."""

import math
from dataclasses import fields

import numpy as np
import pytest
import torch
import xarray as xr

from convlstm_wx.checkpoint import load_checkpoint
from convlstm_wx.cli import main
from convlstm_wx.config import TrainConfig
from convlstm_wx.conventions import Channel
from convlstm_wx.data.inputs import prepare_training
from convlstm_wx.data.rain import rain_emphasis
from convlstm_wx.data.splits import TRAIN
from convlstm_wx.errors import ConfigError
from convlstm_wx.training.losses import WeightedLoss, lead_weights, pointwise, target_weights
from tests.region_files import region, write
from tests.test_training_parts import a_learner, batches_of

LOSSES = next(entry.metadata["choices"] for entry in fields(TrainConfig) if entry.name == "loss")


# At a point


@pytest.mark.parametrize(
    ("name", "delta", "small", "large"),
    [
        ("mse", 1, 0.25, 9),
        ("mae", 1, 0.5, 3),
        ("huber", 1, 0.125, 2.5),
        ("huber", 2, 0.125, 4),
        ("log-cosh", 1, math.log(math.cosh(0.5)), math.log(math.cosh(3))),
    ],
)
def test_errors_of_half_a_unit_and_of_three(name, delta, small, large):
    unit = torch.tensor(2.0)
    cost = pointwise(name, huber_delta=delta)(torch.tensor([1.0, -1.0, 6.0, -6.0]), unit) / unit**2
    assert cost.tolist() == pytest.approx([small, small, large, large])


@pytest.mark.parametrize("name", LOSSES)
def test_no_error_costs_nothing_and_an_enormous_one_is_finite(name):
    error = torch.tensor([0.0, 1e4, -1e4], requires_grad=True)
    cost = pointwise(name)(error, torch.tensor(1.0))
    cost.sum().backward()
    assert cost[0] == 0
    assert error.grad[0] == 0
    assert torch.isfinite(cost).all()
    assert torch.isfinite(error.grad).all()
    assert error.grad[1] == -error.grad[2] > 0


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_weights_rows_by_area_and_leaves_missing_points_out(name):
    loss = WeightedLoss(torch.tensor([0.5, 1.5]), torch.tensor([2.0]), loss_at=pointwise(name))
    y = torch.zeros(1, 1, 1, 2, 2)
    forecast = torch.tensor([[3.0, 1e6], [0.0, 3.0]])[None, None, None]
    valid = torch.tensor([[1.0, 0.0], [1.0, 1.0]])[None, None, None]
    error, points = loss(forecast, y, valid)
    at_point = float(pointwise(name)(torch.tensor(3.0), torch.tensor(2.0))) / 4
    assert float(points) == 0.5 + 1.5 + 1.5
    assert float(error) == pytest.approx((0.5 + 1.5) * at_point)


@pytest.mark.parametrize("name", LOSSES)
def test_micro_batches_teach_the_same_with_every_loss(name):
    settings = {"loss": name, "variable_weights": ("tp=3",)}
    whole, parts = a_learner(**settings), a_learner(**settings)
    whole.learn(batches_of([8]), 1e-2)
    parts.learn(batches_of([2, 2, 2, 2]), 1e-2)
    for a, b in zip(whole.network.parameters(), parts.network.parameters()):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


# Variables

TARGETS = (Channel("t2m"), Channel("z", 500.0), Channel("z", 850.0))


@pytest.mark.parametrize(
    ("entries", "weights"),
    [
        ([], [1, 1, 1]),
        (["t2m=4"], [2, 0.5, 0.5]),
        (["z=0"], [3, 0, 0]),
        (["z@500hPa=4"], [0.5, 2, 0.5]),
        (["z=0", "z@850hPa=2"], [1, 0, 2]),
    ],
)
def test_variable_weights_have_a_mean_of_one(entries, weights):
    assert target_weights(entries, TARGETS).tolist() == weights


def test_a_variable_that_counts_double_costs_double():
    y, valid = torch.zeros(1, 1, 2, 1, 1), torch.ones(1, 1, 2, 1, 1)
    loss = WeightedLoss(torch.ones(1), torch.ones(2), torch.tensor([2.0, 0.0]))
    assert [float(part) for part in loss(torch.tensor([3.0, 5.0]).reshape(y.shape), y, valid)] == [18, 2]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["rain=2"], "--variable-weights rain: not forecast; there are t2m, z@500hPa, z@850hPa"),
        (["t2m=0", "z=0"], "--variable-weights leaves nothing to learn"),
    ],
)
def test_weights_of_what_is_not_forecast_are_refused(entries, message):
    with pytest.raises(ConfigError, match=message):
        target_weights(entries, TARGETS)


# Lead times


def test_lead_times_count_as_a_power_of_their_number_and_on_average_one():
    weights = lead_weights(4, 1.0)
    assert weights.shape == (4, 1, 1, 1)
    assert float(weights.mean()) == pytest.approx(1)
    assert (weights[0] / weights).flatten().tolist() == pytest.approx([1, 2, 3, 4])
    assert lead_weights(3, 0.0).flatten().tolist() == [1, 1, 1]


@pytest.mark.parametrize("with_emphasis", [False, True])
def test_training_weights_lead_times_and_validation_takes_all_alike(with_emphasis):
    alike, weighted = a_learner(), a_learner()
    weighted.lead_power = 2.0
    (batch,) = batches_of([3])
    if with_emphasis:
        batch = batch._replace(emphasis_BLDHW=1 + batch.y_BLDHW.abs())
    by_lead = []
    for lead in range(2):
        valid = batch.valid_BLDHW.clone()
        valid[:, 1 - lead] = 0
        by_lead.append(float(alike.error(batch._replace(valid_BLDHW=valid), with_noise=False)[0]))
    error, points = weighted.error(batch, with_noise=False)
    assert float(error) == pytest.approx((by_lead[0] + by_lead[1] / 4) / 0.625, rel=1e-6)
    assert float(points) == float(alike.error(batch, with_noise=False)[1])
    assert weighted.validate([batch]) == pytest.approx(alike.validate([batch]), rel=1e-9)


# Rain


def emphasis_beside_truth(tmp_path, dataset: xr.Dataset, weights: dict[float, float], **settings):
    """The emphasis of a batch of training windows, and the file's values at the same times, latitudes ascending."""
    path = write(dataset, tmp_path / "rain.nc")
    inputs = prepare_training(TrainConfig(data=(str(path),), input_steps=3, lead_steps=2, **settings))
    windows = inputs.windows(TRAIN)
    emphasis = rain_emphasis(weights, inputs.spec)
    init_B = windows.init_indices[:40]
    times_BL = windows.times[init_B[:, None] + [1, 2]]
    truth = dataset.sel(time=xr.DataArray(times_BL, dims=("init", "lead"))).sortby("lat")
    return emphasis(windows.gather(range(40)).y_BLDHW, times_BL), truth


def test_points_of_heavy_rain_count_as_their_threshold_says(tmp_path):
    emphasis, truth = emphasis_beside_truth(tmp_path, region(), {0.5: 2, 1.5: 7})
    millimetres = 1000 * truth["tp"].values
    assert (emphasis[:, :, 0] == 1).all()  # t2m
    rain = emphasis[:, :, 1]
    assert set(rain[millimetres < 0.5].tolist()) == {1}
    assert set(rain[(millimetres >= 0.5) & (millimetres < 1.5)].tolist()) == {2}
    assert set(rain[millimetres >= 1.5].tolist()) == {7}


def test_rain_that_is_exactly_at_a_threshold_reaches_it(tmp_path):
    dataset = region()
    dataset["tp"] = dataset["tp"].copy(data=np.round(dataset["tp"] * 1000) / 1000)  # whole millimetres
    emphasis, truth = emphasis_beside_truth(tmp_path, dataset, {1: 2, 2: 3})
    expected = np.array([1, 2, 3, 3])[np.round(1000 * truth["tp"].values).astype(int)]
    assert set(expected.ravel()) == {1, 2, 3}
    assert (emphasis[:, :, 1] == expected).all()


def test_a_rate_is_counted_in_millimetres_per_step(tmp_path):
    dataset = region(days=105, step_hours=6)
    dataset["tp"] = (4 * 1000 * dataset["tp"]).assign_attrs(units="mm d-1")
    emphasis, truth = emphasis_beside_truth(tmp_path, dataset, {1: 5}, target_variables=("tp",))
    assert emphasis.shape[2] == 1
    assert ((emphasis[:, :, 0] == 5) == (truth["tp"].values >= 4)).all()


def test_rain_weights_need_rain(tmp_path):
    path = write(region()[["t2m"]], tmp_path / "dry.nc")
    spec = prepare_training(TrainConfig(data=(str(path),))).spec
    assert rain_emphasis({}, spec) is None
    with pytest.raises(ConfigError, match="--rain-weights: none of the targets is precipitation; there are t2m"):
        rain_emphasis({1: 2}, spec)


def test_emphasis_multiplies_the_loss_and_not_the_points():
    loss = WeightedLoss(torch.ones(1), torch.ones(1))
    y, valid = torch.zeros(1, 1, 1, 1, 3), torch.tensor([1.0, 1.0, 0.0]).reshape(1, 1, 1, 1, 3)
    emphasis = torch.tensor([1.0, 10.0, 10.0]).reshape(y.shape)
    assert [float(part) for part in loss(torch.full_like(y, 2.0), y, valid, emphasis)] == [44, 2]


# The real command


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Trains one quick epoch; returns the checkpoint, or the exit code if there is none."""
    folder = tmp_path_factory.mktemp("losses")
    path = write(region(days=150, height=5, width=6), folder / "region.nc")
    short = ["--input-steps", "3", "--lead-steps", "2", "--num-epochs", "1", "--hidden-channels", "4", "8"]
    short += ["--batch-size", "16"]

    def run(name: str, *options: str):
        output = folder / name
        arguments = ["train", "--data", str(path), "--device", "cpu", "--output-dir", str(output), *short, *options]
        code = main(arguments)
        return load_checkpoint(output / "last.pt") if code == 0 else code

    run.folder = folder
    return run


@pytest.fixture(scope="module")
def reference(train):
    return train("reference")


@pytest.mark.parametrize(
    "options",
    [
        *(["--loss", name] for name in LOSSES[1:]),
        ["--loss", "huber", "--huber-delta", "0.1"],
        ["--variable-weights", "tp=3"],
        ["--rain-weights", "0.5=2", "1=5"],
    ],
    ids=" ".join,
)
def test_each_option_changes_what_is_learned_and_what_is_validated(train, reference, options):
    other = train("-".join(options).replace(".", "_"), *options)
    assert not torch.equal(reference.weights["head.weight"], other.weights["head.weight"])
    assert validated(other) != validated(reference)


def validated(checkpoint) -> float:
    return checkpoint.training["progress"]["history"][0]["validation_loss"]


def test_another_loss_than_the_resumed_run_had_is_refused(train, reference, capsys):
    resume = ["--resume", str(train.folder / "reference/last.pt"), "--num-epochs", "2"]
    assert train("reference", *resume, "--loss", "mae", "--rain-weights", "1=2") == 2
    said = capsys.readouterr().err
    assert "--loss mse there, mae here; --rain-weights none there, 1=2 here" in said
    assert train("reference", *resume).training["progress"]["epoch"] == 3


@pytest.mark.parametrize(
    "options", [["--variable-weights", "z=2"], ["--target-variables", "t2m", "--rain-weights", "1=2"]]
)
def test_a_mistake_is_one_line_and_nothing_is_written(train, capsys, options):
    assert train("mistake", *options) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (train.folder / "mistake").exists()


def test_the_log_says_what_an_error_costs(train, capsys):
    assert train("said", "--loss", "huber", "--huber-delta", "2", "--variable-weights", "tp=3", "--rain-weights", "5=2")
    said = capsys.readouterr().out
    for line in ("huber with delta 2", "weights tp=3, of the others 1", "count 2 from 5 mm per step"):
        assert line in said
