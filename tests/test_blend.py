"""A network blended with a linear inverse model: what the model says in it, and how much each counts."""

import re

import numpy as np
import pytest
import torch

from convlstm_wx.checkpoint import load_checkpoint
from convlstm_wx.cli import main
from convlstm_wx.config import TrainConfig
from convlstm_wx.data.inputs import TrainingInputs, prepare_training
from convlstm_wx.data.loaders import TensorBatch, load_batches
from convlstm_wx.data.records import ChannelRecord, channel_names
from convlstm_wx.data.splits import VALIDATION
from convlstm_wx.distributed import Processes
from convlstm_wx.errors import DataError
from convlstm_wx.models.build import NETWORKS, build
from convlstm_wx.models.network import Network
from convlstm_wx.training.blending import BlendFit
from convlstm_wx.training.blueprint import blueprint
from tests.region_files import region, write

SMALL = {"hidden_channels": (3, 4), "input_steps": 4, "lead_steps": 3, "blend": "linear"}
BOX = (48.0, 60.0, 0.0, 6.0)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Waves that come from the west, and here and there a value that is missing."""
    data = region(days=300)
    holed = np.random.default_rng(0).random(data["t2m"].shape) < 0.03
    data["t2m"] = data["t2m"].where(~holed)
    return str(write(data, tmp_path_factory.mktemp("base") / "region.nc"))


def a_network(inputs: TrainingInputs, config: TrainConfig) -> Network:
    """Of which only the linear model counts."""
    network = build(*blueprint(config, inputs.spec, inputs.linear)).eval()
    network.blend.fill(inputs.linear, channel_names(inputs.spec))
    network.blend.weights_2LD[0], network.blend.weights_2LD[1] = 0.0, 1.0
    return network


def a_batch(inputs: TrainingInputs, role: int, windows: list[int]) -> TensorBatch:
    return next(load_batches(inputs.windows(role), [np.array(windows)], CPU))


def forecast(network: Network, batch: TensorBatch, **changes) -> torch.Tensor:
    batch = batch._replace(**changes)
    with torch.no_grad():
        return network(batch.x_BTCHW, batch.forcing_BSFHW, batch.upstream)


def by_the_model(inputs: TrainingInputs, windows: list[int]) -> np.ndarray:
    """What the fitted model says for windows of validation, [B, L, D, H, W]."""
    spec, sources = inputs.spec, inputs.sources
    gaps = spec.target.statistics.gaps_C
    masks = np.where(gaps, np.cumsum(gaps) - 1, -1)
    records = {}
    for number, (names, source) in enumerate(zip(channel_names(spec), (sources.target, *sources.upstream))):
        for index, name in enumerate(names):
            mask = masks[index] if number == 0 else -1
            records[name] = ChannelRecord(source, index, mask, sources.times, sources.complete_N)
    inits = sources.times[inputs.windows(VALIDATION).init_indices[windows]]
    made = inputs.linear.forecast(records, inits)
    names = channel_names(spec)[0]
    targets = [names[index] for index in spec.target_indices]
    now = {name: records[name].anomalies(inits) for name in targets}
    return np.stack(
        [
            np.stack([made.anomaly(name, inits, lead * spec.step, now[name]) for name in targets], axis=1)
            for lead in range(1, spec.lead_steps + 1)
        ],
        axis=1,
    )


@pytest.mark.parametrize("model", NETWORKS)
def test_a_network_that_does_not_count_leaves_what_the_linear_model_says(path, model):
    config = TrainConfig(data=(path,), model=model, **SMALL)
    inputs = prepare_training(config)
    said = forecast(a_network(inputs, config), a_batch(inputs, VALIDATION, [0, 3, 11]))
    np.testing.assert_allclose(said, by_the_model(inputs, [0, 3, 11]), atol=2e-5)


@pytest.mark.parametrize("fusion", ["resample", "attention"])
@pytest.mark.parametrize("model", ["encoder-forecaster", "unet"])
def test_in_half_precision_the_network_is_what_it_is_alone(path, model, fusion):
    config = TrainConfig(
        data=(path,), include_upstream=True, target_region=BOX, model=model, upstream_fusion=fusion, **SMALL
    )
    inputs = prepare_training(config)
    network, batch = a_network(inputs, config), a_batch(inputs, VALIDATION, [0, 1])
    torch.nn.init.normal_(network.head.weight, std=0.3)
    network.blend.weights_2LD[0], network.blend.weights_2LD[1] = 1.0, 0.0
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        alone = torch.stack(list(network.alone(batch.x_BTCHW, batch.forcing_BSFHW, batch.upstream)), dim=1)
        assert torch.equal(forecast(network, batch), alone)


def test_while_it_learns_the_network_is_alone(path):
    config = TrainConfig(data=(path,), **SMALL)
    inputs = prepare_training(config)
    network, batch = a_network(inputs, config), a_batch(inputs, VALIDATION, [0, 1])
    alone = torch.stack(list(network.alone(batch.x_BTCHW, batch.forcing_BSFHW, ())), dim=1)
    assert not torch.allclose(forecast(network, batch), alone)
    assert torch.equal(forecast(network.train(), batch), alone)


# How much each counts


def a_fit(network: torch.Tensor, linear: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Weights [2, L, D] from made-up forecasts [B, L, D, H, W], all points valid."""
    valid = torch.ones_like(truth)
    batch = TensorBatch(truth, truth, [], [], truth, valid)
    fit = BlendFit(torch.ones(truth.shape[-2], 1), truth.shape[1], truth.shape[2])
    for part in (slice(0, 40), slice(40, None)):
        fit.add(network[part], linear[part], batch._replace(y_BLDHW=truth[part], valid_BLDHW=valid[part]))
    return fit.weights(Processes())


def noisy(*sizes: float) -> list[torch.Tensor]:
    """The truth, and forecasts that miss it independently by so many standard deviations."""
    generator = torch.Generator().manual_seed(1)
    draw = torch.randn(len(sizes) + 1, 2000, 2, 1, 4, 5, generator=generator)
    return [draw[0], *(draw[0] + size * error for size, error in zip(sizes, draw[1:]))]


def test_the_weights_are_those_of_the_least_error():
    truth, good, poor = noisy(0.5, 1.0)
    weights = a_fit(good, poor, truth)
    # Of independent errors: precision of each over the sum of precisions, that of the truth itself included.
    precisions = torch.tensor([1 / 0.5**2, 1.0])
    expected = precisions / (precisions.sum() + 1)
    torch.testing.assert_close(weights, expected[:, None, None].expand(2, 2, 1), atol=0.01, rtol=0)


def test_what_only_adds_noise_is_left_out_and_nothing_counts_negatively():
    truth, good, _ = noisy(0.5, 1.0)
    worse = good + (good - truth)  # its error is twice that of the good one, and known from it
    weights = a_fit(worse, good, truth)
    assert (weights[0] == 0).all()
    assert (weights[1] > 0.7).all()
    torch.testing.assert_close(a_fit(good, worse, truth), weights.flip(0))


def test_with_few_windows_both_count_about_alike():
    truth, good, poor = (field[:2] for field in noisy(0.1, 3.0))
    weights = a_fit(good, poor, truth)
    assert (abs(weights[0] - weights[1]) < 0.3).all()


def test_points_without_truth_do_not_count():
    truth, good, poor = noisy(0.5, 1.0)
    batch = TensorBatch(truth, truth, [], [], truth, torch.ones_like(truth))
    fits = []
    for wrong in (0.0, 100.0):
        valid = torch.ones_like(truth)
        valid[..., 0] = 0
        fit = BlendFit(torch.ones(4, 1), 2, 1)
        spoiled = truth.clone()
        spoiled[..., 0] += wrong
        fit.add(good, poor, batch._replace(y_BLDHW=spoiled, valid_BLDHW=valid))
        fits.append(fit.weights(Processes()))
    assert torch.equal(*fits)


def test_beyond_the_fitted_leads_it_goes_on_from_its_own_forecast(path):
    config = TrainConfig(data=(path,), **SMALL)
    inputs = prepare_training(config)
    network, batch = a_network(inputs, config), a_batch(inputs, VALIDATION, [2])
    blend, x = network.blend, batch.x_BTCHW
    fields = list(blend.linear(x, [], 5))
    torch.testing.assert_close(torch.stack(fields[:3]), torch.stack(list(blend.linear(x, [], 3))))
    assert all(bool(torch.isfinite(field).all()) for field in fields)
    # A model of one fitted lead, of which the longer ones are powers.
    short = build(*blueprint(config, inputs.spec, inputs.linear)).blend
    short.load_state_dict(blend.state_dict())
    short.leads = 1
    moved = torch.cat([x[:, 1:], x[:, -1:]], dim=1)
    moved[:, -1, : len(inputs.spec.channels)] = next(iter(short.linear(x, [], 1)))
    torch.testing.assert_close(
        list(short.linear(x, [], 2))[1], next(iter(short.linear(moved, [], 1))), rtol=0.05, atol=0.02
    )


def test_upstream_regions_are_among_the_predictors(path):
    config = TrainConfig(data=(path,), include_upstream=True, target_region=BOX, **SMALL)
    inputs = prepare_training(config)
    network, batch = a_network(inputs, config), a_batch(inputs, VALIDATION, [0, 5])
    said = forecast(network, batch)
    np.testing.assert_allclose(said, by_the_model(inputs, [0, 5]), atol=2e-5)
    moved = forecast(network, batch, upstream_fields=[batch.upstream_fields[0] + 1])
    assert not torch.allclose(moved, said)


def test_waves_are_foreseen_far_better_than_by_the_last_state(path):
    config = TrainConfig(data=(path,), **SMALL)
    inputs = prepare_training(config)
    windows = list(range(len(inputs.windows(VALIDATION))))
    batch = a_batch(inputs, VALIDATION, windows)
    errors = [
        ((said - batch.y_BLDHW) * batch.valid_BLDHW).square().mean()
        for said in (forecast(a_network(inputs, config), batch), batch.x_BTCHW[:, -1:, [0, 1]])
    ]
    assert errors[0] < 0.3 * errors[1]


def test_too_short_a_record_is_told_or_left_to_the_last_state(tmp_path):
    short = str(write(region(days=46), tmp_path / "short.nc"))
    settings = SMALL | {"data": (short,), "input_steps": 2, "lead_steps": 1}
    with pytest.raises(DataError, match=re.escape("needs 40 training times or more, there are")) as caught:
        prepare_training(TrainConfig(**settings))
    assert "take --blend none" in str(caught.value)
    assert prepare_training(TrainConfig(**settings | {"blend": "auto"})).linear is None


def test_one_input_time_is_enough(path):
    config = TrainConfig(data=(path,), **SMALL | {"input_steps": 1})
    inputs = prepare_training(config)
    assert inputs.linear.past == 1
    assert torch.isfinite(forecast(a_network(inputs, config), a_batch(inputs, VALIDATION, [0]))).all()


def test_the_real_commands_train_resume_and_forecast_with_it(path, tmp_path):
    settings = ["--hidden-channels", "3", "4", "--input-steps", "4", "--lead-steps", "3", "--blend", "linear"]
    train = ["train", "--data", path, "--output-dir", str(tmp_path / "run"), *settings]
    assert main([*train, "--num-epochs", "1"]) == 0
    assert main(["train", "--data", path, "--resume", str(tmp_path / "run" / "last.pt"), "--num-epochs", "2"]) == 0
    checkpoint = load_checkpoint(tmp_path / "run" / "best.pt")
    weights = checkpoint.network().blend.weights_2LD
    assert (weights[1] > 0.3).all()  # after two epochs the linear model knows waves better
    output = str(tmp_path / "forecast.nc")
    wanted = ["--checkpoint", str(tmp_path / "run" / "best.pt"), "--data", path, "--output", output]
    assert main(["forecast", *wanted, "--lead-steps", "5"]) == 0
