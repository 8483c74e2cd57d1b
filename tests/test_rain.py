"""Forecasts of rain are means: of what fell on validation where so much was forecast."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr

from convlstm_wx.checkpoint import load_checkpoint, save_checkpoint
from convlstm_wx.cli import main
from convlstm_wx.conventions import Channel
from convlstm_wx.data.rain import RainMeans
from convlstm_wx.distributed import Processes
from convlstm_wx.training.rain import RainFit
from tests.region_files import region, write

LEADS = 2
SHAPE = (400, LEADS, 3, 4)


def fitted(forecast: np.ndarray, truth: np.ndarray, valid=None, emphasis=None, windows: int = 10**6):
    """Numbers [L, 3] and RMSE [L] of one channel, from batches of 100 windows."""
    fit = RainFit(["tp"], LEADS)
    tensors = [torch.from_numpy(np.float32(each)) for each in (forecast, truth)]
    valid = torch.ones(SHAPE) if valid is None else valid
    for at in range(0, len(forecast), 100):
        some = [each[at : at + 100] for each in (*tensors, valid)]
        fit.add(0, *some, None if emphasis is None else emphasis[at : at + 100])
    found, rmse_RL = fit.means(windows, Processes())
    return np.array(found["tp"]), rmse_RL[0]


def drawn(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).exponential(2.0, SHAPE)


def test_numbers_that_made_the_truth_are_found_for_each_lead_time():
    forecast = drawn()
    truth = forecast.copy()
    truth[:, 0] = 0.2 + 0.5 * forecast[:, 0] + 1.5 * np.log1p(forecast[:, 0])
    found, rmse = fitted(forecast, truth)
    assert found[0] == pytest.approx([0.2, 0.5, 1.5], abs=2e-3)
    assert found[1] == pytest.approx([0, 1, 0], abs=2e-3)
    assert rmse == pytest.approx([0, 0], abs=5e-3)


def test_the_error_is_that_of_the_means():
    forecast, truth = drawn(), 3 * drawn(1)
    found, rmse = fitted(forecast, truth)
    for lead, (a, b, c) in enumerate(found):
        means = a + b * forecast[:, lead] + c * np.log1p(forecast[:, lead])
        assert rmse[lead] == pytest.approx(np.sqrt(np.mean((means - truth[:, lead]) ** 2)), rel=1e-4)
        assert means.mean() == pytest.approx(truth[:, lead].mean(), rel=1e-3)


def test_more_rain_is_never_forecast_as_less():
    forecast = drawn()
    for truth in (6 - forecast, np.sqrt(forecast), forecast**2, 5 - 2 * np.log1p(forecast)):
        for _, b, c in fitted(forecast, truth)[0]:
            assert b >= 0
            assert c >= 0


def test_few_windows_change_little():
    forecast = drawn()
    many, few = (fitted(forecast, 3 * forecast, windows=windows)[0][0] for windows in (10**6, 1))
    assert many[1] == pytest.approx(3, rel=1e-2)
    assert few[1] < 2


def test_what_is_missing_does_not_count_and_nothing_known_changes_nothing():
    forecast = drawn()
    truth = np.where(np.arange(4) < 2, 2 * forecast, np.nan)
    valid = torch.from_numpy(np.float32(np.isfinite(truth)))
    assert fitted(forecast, truth, valid)[0] == pytest.approx(np.array([[0, 2, 0]] * 2), abs=2e-3)
    found, rmse = fitted(forecast, truth, torch.zeros(SHAPE))
    assert (found == [0, 1, 0]).all()
    assert np.isnan(rmse).all()


def test_a_forecast_that_is_no_number_changes_nothing():
    forecast = drawn()
    forecast[7] = np.nan
    assert (fitted(forecast, drawn(1))[0] == [0, 1, 0]).all()


def test_emphasised_rain_counts_more_for_the_numbers_and_not_for_the_error():
    forecast, truth = np.ones(SHAPE), np.ones(SHAPE)
    truth[::2] = 3
    emphasis = torch.from_numpy(np.float32(np.where(truth == 3, 3, 1)))
    found, rmse = fitted(forecast, truth, emphasis=emphasis)
    assert found @ [1, 1, np.log(2)] == pytest.approx([2.5, 2.5], rel=1e-3)
    assert rmse == pytest.approx([np.sqrt(0.5 * 0.5**2 + 0.5 * 1.5**2)] * 2, rel=1e-4)


def test_the_numbers_hold_in_the_files_units_and_the_last_ones_go_on():
    statistics = SimpleNamespace(channels=(Channel("t2m"), Channel("tp")), millimetres_C=np.float32([0, 1000]))
    values = np.full((3, 2, 1, 1), 0.002, np.float32)
    RainMeans({"tp": [[0.5, 1.0, 0.0], [-1.0, 0.0, 2.0]]}).apply(values, statistics)
    logarithmic = (2 * np.log(3) - 1) / 1000
    assert values[:, 1, 0, 0] == pytest.approx([0.0025, logarithmic, logarithmic], rel=1e-5)
    assert (values[:, 0] == np.float32(0.002)).all()
    dry = np.zeros((1, 2, 1, 1), np.float32)
    RainMeans({"tp": [[-1.0, 1.0, 0.0]]}).apply(dry, statistics)
    assert dry[0, 1] == 0


# Through the commands


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run of one epoch on skewed rain: a folder with region.nc, run/ and forecast.nc of a month of validation."""
    folder = tmp_path_factory.mktemp("rain")
    dataset = region(days=240, height=5, width=6)[["tp"]]
    dataset["tp"] = dataset["tp"].copy(data=np.float32(np.random.default_rng(0).gamma(0.3, 0.01, dataset["tp"].shape)))
    data = write(dataset, folder / "region.nc")
    options = ["--input-steps", "3", "--lead-steps", "2", "--num-epochs", "1", "--hidden-channels", "4"]
    options += ["--validation-months", "2001-06", "2001-07", "--held-out-months", "2001-08", "--device", "cpu"]
    assert main(["train", "--data", str(data), "--output-dir", str(folder / "run"), *options]) == 0
    assert forecast(folder, folder / "run/best.pt", "forecast.nc") == 0
    return folder


def forecast(folder, checkpoint, name: str) -> int:
    period = ["--start", "2001-06-05", "--end", "2001-07-25", "--device", "cpu"]
    arguments = ["--checkpoint", checkpoint, "--data", folder / "region.nc", "--output", folder / name]
    return main(["forecast", *map(str, arguments), *period])


def errors(folder, name: str) -> xr.DataArray:
    with xr.open_dataset(folder / name) as made, xr.open_dataset(folder / "region.nc") as data:
        return (made["tp"] - data["tp"].sel(time=made["valid_time"])).drop_vars("time").load()


def test_a_checkpoint_holds_the_numbers_of_its_rain(place):
    best = load_checkpoint(place / "run/best.pt")
    assert list(best.rain.by_channel) == ["tp"]
    assert np.shape(best.rain.by_channel["tp"]) == (2, 3)


def test_forecasts_are_about_as_wet_as_it_was_and_without_the_numbers_too_dry(place):
    best = load_checkpoint(place / "run/best.pt")
    progress = {name: value for name, value in best.training["progress"].items() if name != "rain"}
    save_checkpoint(place / "earlier.pt", replace(best, training=best.training | {"progress": progress}))
    assert forecast(place, place / "earlier.pt", "earlier.nc") == 0
    dry, mean = errors(place, "earlier.nc"), errors(place, "forecast.nc")
    assert float(dry.mean()) < -0.001
    assert abs(float(mean.mean())) < 0.3 * abs(float(dry.mean()))  # validation is short: not all is corrected
    assert float((mean**2).mean()) < float((dry**2).mean())
