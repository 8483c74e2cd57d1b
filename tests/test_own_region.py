"""The file of a user who forecasts rain over East Asia, in the three forms in which it comes, and its commands.

Five variables on eleven levels and rain, 12-hourly, without CF names: raw; cleaned, with a validity mask for each
variable (1 observed, 0 filled in); and with levels written as text.
"""

import csv

import numpy as np
import pytest
import xarray as xr

from convlstm_wx.checkpoint import load_checkpoint
from convlstm_wx.cli import main
from tests.region_files import write

LEVELS = [100, 150, 200, 250, 300, 400, 500, 700, 850, 925, 1000]
UNITS = {"DPT": "K", "GPH": "m", "TEM": "K", "U": "m/s", "V": "m/s"}
LONG_NAMES = {
    "DPT": "Dew point temperature", "GPH": "Geopotential height", "TEM": "Temperature",
    "U": "Eastward wind component", "V": "Northward wind component",
}  # fmt: skip
FAST = ["--device", "cpu", "--hidden-channels", "4", "4"]


def own_region(form: str, *, steps: int = 160) -> xr.Dataset:
    """Waves that drift east; rain is missing in places and sometimes below zero, or filled and masked if cleaned."""
    rng = np.random.default_rng(0)
    times = np.datetime64("2019-01-01", "ns") + np.arange(steps) * np.timedelta64(12, "h")
    lat, lon = np.arange(10.0, 40.0, 5), np.arange(70.0, 115.0, 5)
    phase = np.arange(steps)[:, None, None] * 0.7 - lon / 9 + lat[:, None] / 20
    wave = np.sin(phase) + 0.1 * rng.standard_normal(phase.shape)
    share = np.array(LEVELS)[:, None, None] / 1000
    fields = {
        "TEM": 288 * share**0.19 + 3 * wave[:, None] * share,
        "DPT": 280 * share**0.19 + 3 * wave[:, None] * share,
        "GPH": 44_330 * (1 - (share / 1.013) ** 0.19) + 60 * wave[:, None],
        "U": 10 + 4 * wave[:, None] * (1.2 - share),
        "V": 6 * wave[:, None] * (1.2 - share),
    }
    rain = np.where(wave > 0.3, (wave - 0.3) * 40, 0)
    rain[::7, :2] = -0.5
    rain[::11, 2:4] = np.nan
    coords = {"time": times, "level": LEVELS, "lat": lat, "lon": lon}
    dataset = xr.Dataset(coords=coords, attrs={"description": "Regional atmospheric and precipitation data"})
    for name, values in fields.items():
        attrs = {"long_name": LONG_NAMES[name], "units": UNITS[name]}
        dataset[name] = (("time", "level", "lat", "lon"), values.astype(np.float32), attrs)
    if form == "cleaned":
        for name in fields:
            dataset[f"{name}_mask"] = xr.ones_like(dataset[name]).assign_attrs(long_name="", units="")
            dataset[f"{name}_mask"].attrs.clear()
        observed = np.isfinite(rain) & (rain >= 0)
        dataset["precipitation_mask"] = (("time", "lat", "lon"), observed.astype(np.float32))
        rain = np.where(observed, rain, 0)
    attrs = {"long_name": "12-hour accumulated precipitation", "units": "mm"}
    dataset["precipitation"] = (("time", "lat", "lon"), rain.astype(np.float32), attrs)
    if form == "text levels":
        dataset["level"] = [f"{level}hPa" for level in LEVELS]
    return dataset


@pytest.mark.parametrize("form", ["raw", "cleaned", "text levels"])
def test_the_commands_run_as_they_stand(form, tmp_path, capsys):
    data, runs = str(write(own_region(form), tmp_path / "all_data.nc")), tmp_path / "checkpoints"
    common = ["train", "--data", data, *FAST, "--batch-size", "4", "--num-epochs", "1", "--use-amp"]
    assert main([*common, "--output-dir", str(runs / "baseline")]) == 0
    said = capsys.readouterr().out
    assert max(len(line) for line in said.splitlines() if str(tmp_path) not in line) < 140
    assert "_mask" not in said.replace("precipitation_mask", "").partition("mask")[0]
    assert main([*common, "--include-upstream", "--output-dir", str(runs / "with_upstream")]) == 0
    assert "--target-region 10 35 100 110 --include-upstream --upstream-region 10 35 70 95" in capsys.readouterr().out
    more = ["--batch-size", "2", "--gradient-accumulation-steps", "4", "--num-workers", "2", "--num-epochs", "2"]
    last = str(runs / "with_upstream" / "last.pt")
    assert main(["train", "--data", data, *FAST, *more, "--resume", last]) == 0
    best = load_checkpoint(runs / "with_upstream" / "best.pt")
    assert len(best.spec.channels) == len(best.spec.targets) == 56
    forecast = tmp_path / "forecast.nc"
    assert main(["forecast", "--checkpoint", str(runs / "baseline"), "--data", data, "--output", str(forecast)]) == 0
    with xr.open_dataset(forecast) as made:
        assert made["level"].values.tolist() == LEVELS
        assert set(made.data_vars) == {*UNITS, "precipitation"}
        assert float(made["precipitation"].min()) >= 0


def test_rain_alone_is_forecast_and_scored_where_it_was_observed(tmp_path, capsys):
    data = str(write(own_region("cleaned"), tmp_path / "cleaned.nc"))
    target = ["--target-variables", "precipitation", "--rain-weights", "10=5", "50=10"]
    runs = []
    for name, extra in (("baseline", []), ("with_upstream", ["--include-upstream"])):
        run, evaluation = tmp_path / name, tmp_path / f"evaluation_{name}"
        options = [*FAST, "--num-epochs", "1", "--output-dir", str(run), *target, *extra]
        assert main(["train", "--data", data, *options]) == 0
        evaluate = ["evaluate", "--checkpoint", str(run), "--data", data, "--output", str(evaluation)]
        assert main([*evaluate, "--baselines", "persistence"]) == 0
        runs.append(str(run))
    with open(tmp_path / "evaluation_baseline" / "events.csv", encoding="utf-8") as file:
        thresholds = {row["threshold_label"] for row in csv.DictReader(file)}
    assert {"1 mm", "5 mm", "10 mm", "25 mm", "50 mm"} <= thresholds
    compare = ["compare", *runs, "--data", data, "--output", str(tmp_path / "comparison")]
    assert main(compare) == 0
    assert "points     6 x 3, those that all have" in capsys.readouterr().out  # the lee third of the file
