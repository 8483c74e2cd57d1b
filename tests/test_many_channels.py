"""A file of 56 channels, five variables on eleven levels and rain: what is printed is short, and no number is lost."""

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from convlstm_wx.cli import main

LEVELS = (100, 150, 200, 250, 300, 400, 500, 700, 850, 925, 1000)
VARIABLES = {"DPT": "K", "GPH": "m", "TEM": "K", "U": "m s-1", "V": "m s-1"}
ALL = "DPT GPH TEM U V on 11 levels (100 to 1000 hPa), precipitation: 56 channels"
SMALL = ["--hidden-channels", "4", "--input-steps", "2", "--lead-steps", "2", "--batch-size", "8", "--device", "cpu"]


def weather(days: int = 150) -> xr.Dataset:
    """Noise about a mean of each level; rain up to some 40 mm, a tenth of its values below zero."""
    rng = np.random.default_rng(0)
    shape = (days, len(LEVELS), 4, 5)
    means = {"DPT": 240, "GPH": 5000, "TEM": 250, "U": 5, "V": 0}
    found = {
        name: (
            ("time", "level", "lat", "lon"),
            (means[name] + rng.standard_normal(shape)).astype("f4"),
            {"units": units},
        )
        for name, units in VARIABLES.items()
    }
    rain = np.where(rng.random((days, 4, 5)) < 0.1, -0.5, rng.gamma(0.5, 15, (days, 4, 5)).clip(max=40)).astype("f4")
    found["precipitation"] = (("time", "lat", "lon"), rain, {"units": "mm"})
    times = np.datetime64("2001-01-01", "ns") + np.arange(days) * np.timedelta64(1, "D")
    level = ("level", list(LEVELS), {"units": "hPa", "standard_name": "air_pressure"})
    return xr.Dataset(found, {"time": times, "level": level, "lat": 30.0 + np.arange(4), "lon": 100.0 + np.arange(5)})


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    """The file."""
    file = tmp_path_factory.mktemp("many") / "all_data.nc"
    weather().to_netcdf(file)
    return file


@pytest.fixture(scope="module")
def run(path) -> Path:
    """A run that forecasts all, whose log is in training.log."""
    folder = path.parent / "all"
    assert main(["train", "--data", str(path), *SMALL, "--num-epochs", "1", "--output-dir", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def rain(path) -> Path:
    """A run that forecasts precipitation alone, heavy rain counting more."""
    folder = path.parent / "rain"
    options = ["--target-variables", "precipitation", "--rain-weights", "10=5", "50=10"]
    assert main(["train", "--data", str(path), *SMALL, *options, "--num-epochs", "1", "--output-dir", str(folder)]) == 0
    return folder


def inspect(path, *options) -> int:
    return main(["inspect", "--data", str(path), *SMALL, *options])


# inspect


def test_inspect_has_a_row_for_each_variable(path, capsys):
    assert inspect(path) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = lines[lines.index("Variables") + 2 :][:6]
    assert [row.split()[0] for row in rows] == [*VARIABLES, "precipitation"]
    assert all("11 levels, 100 to 1000 hPa" in row for row in rows[:5])
    assert rows[1].split()[-4:-2] == ["m", f"{float(weather()['GPH'].min()):.6g}"]
    assert "  56 channels; --channels shows a row for each" in lines
    assert f"  targets     {ALL}" in lines
    assert max(len(line) for line in lines if not line.startswith(("ready: ", "  source"))) <= 120


def test_inspect_shows_each_channel_on_request(path, capsys):
    assert inspect(path, "--channels") == 0
    lines = capsys.readouterr().out.splitlines()
    rows = lines[lines.index("Variables") + 2 :][:56]
    dpt = weather()["DPT"].sel(level=100).values.astype(float)
    assert rows[0].split()[0] == "DPT@100hPa"
    assert rows[55].split()[0] == "precipitation"
    assert rows[0].split()[-4:-1] == [f"{value:.6g}" for value in (dpt.min(), dpt.mean(), dpt.max())]


def test_equal_warnings_are_counted(tmp_path, capsys):
    ds = weather()
    for name in VARIABLES:
        ds[f"{name}_extra"] = xr.ones_like(ds[name]).assign_attrs(units="1")
    ds["GPH_extra"][:, 3] = 2
    ds["precipitation"][5] = np.nan
    ds.to_netcdf(tmp_path / "constant.nc")
    assert inspect(tmp_path / "constant.nc", "--json", str(tmp_path / "found.json")) == 0
    lines = capsys.readouterr().out.splitlines()
    negative = int((ds["precipitation"] < 0).sum())
    share = negative / int(ds["precipitation"].notnull().sum())
    said = " ".join(" ".join(lines[lines.index("To look at") + 1 : -2]).split())
    assert said == (
        "DPT_extra, GPH_extra and 3 more variables (55 channels) are constant (each, 1 to 2): there is nothing to "
        f"learn from them precipitation has {negative} values ({100 * share:.3g} %) below zero, down to -0.5 mm "
        "precipitation has no value at all at 1 time: no window reaches across"
    )
    account = json.loads((tmp_path / "found.json").read_text())["account"]
    assert len(account["channels"]) == 111
    assert sum("is constant" in text for text in account["warnings"]) == 55
    assert "GPH_extra@250hPa is constant (2): there is nothing to learn from it" in account["warnings"]


def test_what_some_levels_have_is_told_in_the_row_of_their_variable(tmp_path, capsys):
    ds = weather()
    ds["TEM"][:, :3] = ds["TEM"][0, :3]  # the same field at each time
    ds.to_netcdf(tmp_path / "frozen.nc")
    assert inspect(tmp_path / "frozen.nc") == 0
    said = capsys.readouterr().out
    (row,) = [line for line in said.splitlines() if line.startswith("  TEM  ")]
    assert row.endswith("frozen up to 149 times on 3 levels")
    assert "TEM on 3 levels (100, 150, 200 hPa) repeats the field before it point by point at up to 149 times" in said


def test_variables_without_any_value_are_one_line(tmp_path, capsys):
    ds = weather()
    ds["U"][:], ds["V"][:] = np.nan, np.nan
    ds.to_netcdf(tmp_path / "empty.nc")
    assert inspect(tmp_path / "empty.nc") == 2
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == (
        "not ready: empty.nc: all values of U and V (22 channels) are missing. "
        "Leave them out with --variables or --levels."
    )


# train, info, forecast, evaluate


def test_the_first_lines_of_training_are_short(run):
    lines = (run / "training.log").read_text().splitlines()
    said = "\n".join(lines)
    assert f"inputs       {ALL}" in said
    assert f"forecast     {ALL}" in said
    assert "DPT on 11 levels" in said
    assert "@100hPa" not in said
    first = [line for line in lines if not any(word in line for word in ("next:", "done:", "output", "convlstm-wx"))]
    assert max(map(len, first)) <= 120 + len("2001-01-01T00:00:00 INFO ")  # training.log has the time before each line


def test_info_names_variables_and_shows_some_channels_of_each(run, capsys):
    assert main(["info", str(run)]) == 0
    said = capsys.readouterr().out
    assert f"reads 2 steps of 1 d: {ALL}" in said
    assert "8 of 56 channels; --json and validation_rmse.csv have all" in said
    rows = [line.split()[0] for line in said.splitlines() if "(" in line and "hPa " in line and "@" in line]
    assert rows == ["DPT@500hPa", "DPT@850hPa", "GPH@500hPa", "GPH@850hPa", "TEM@500hPa", "U@500hPa", "V@500hPa"]
    assert main(["info", str(run), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert len(facts["inputs"]) == 56
    assert len({score["variable"] for score in facts["validation_rmse"]["scores"]}) == 56


def test_forecast_and_evaluate_name_variables(run, path, tmp_path, capsys):
    assert main(["forecast", "--checkpoint", str(run), "--data", str(path), "--output", str(tmp_path / "f.nc")]) == 0
    assert f"variables  {ALL}" in capsys.readouterr().out
    options = ["--checkpoint", str(run), "--data", str(path), "--output", str(tmp_path / "e")]
    assert main(["evaluate", *options, "--baselines", "damped_persistence"]) == 0
    said = capsys.readouterr().out
    assert f"variables  {ALL}" in said
    assert "8 of 56 channels; all are in scores.csv." in said
    assert sum(line.split()[-1:] == ["(K)"] for line in said.splitlines()) == 3  # DPT twice, TEM
    page = (tmp_path / "e/report.html").read_text()
    assert f"<dd>2 steps of 24 h: {ALL}</dd>" in page
    assert "12 of 56 channels are drawn: " in page
    assert "<summary>Scores of each channel (56)</summary>" in page
    found = json.loads((tmp_path / "e/scores.json").read_text())
    assert len({row["channel"] for row in found["scores"]}) == 56


def test_a_comparison_prints_some_channels_and_its_page_has_all(run, path, tmp_path, capsys):
    options = ["--data", str(path), "--output", str(tmp_path / "c")]
    assert main(["compare", str(run), str(run), *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum("makes the same errors as A" in line for line in lines) == 8
    assert "sentences on 8 of 56 channels; --output FOLDER writes all" in lines
    page = (tmp_path / "c/comparison.html").read_text()
    assert page.count("B makes the same errors as A") == 56
    assert "<summary>of 56 channels</summary>" in page
    assert "12 of 56 channels are drawn: " in page


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target-variables", "wind"], f"--target-variables wind: not among the inputs, which are {ALL}"),
        (["--variable-weights", "wind=2"], f"--variable-weights wind: not forecast; there are {ALL}"),
        (
            ["--target-variables", "TEM", "--rain-weights", "10=5"],
            "none of the targets is precipitation; there are TEM on 11 levels (100 to 1000 hPa): 11 channels",
        ),
    ],
)
def test_errors_name_variables(path, tmp_path, capsys, options, message):
    assert main(["train", "--data", str(path), *SMALL, *options, "--output-dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error) < 300


def test_a_network_of_other_targets_is_refused_in_a_line(run, path, tmp_path, capsys):
    options = ["--target-variables", "precipitation", "--init-from", str(run), "--output-dir", str(tmp_path / "run")]
    assert main(["train", "--data", str(path), *SMALL, *options]) == 2
    error = capsys.readouterr().err
    assert f"0 1 2 3 4 5 6 7 8 9 10 11 and 44 more there, 55 here (--target-variables: it forecasts {ALL})" in error


# Precipitation alone


def test_precipitation_alone_is_learned_from_all(rain, capsys):
    said = (rain / "training.log").read_text()
    assert f"inputs       {ALL}" in said
    assert "forecast     precipitation\n" in said
    assert "errors of precipitation count 5 from 10 mm per step, 10 from 50 mm per step" in said


def test_rain_that_never_reached_a_threshold_has_a_dash_on_the_page(rain, path, tmp_path, capsys):
    options = ["--checkpoint", str(rain), "--data", str(path), "--output", str(tmp_path / "e")]
    assert main(["evaluate", *options, "--baselines", "damped_persistence"]) == 0
    page = (tmp_path / "e/report.html").read_text()
    for mm in (1, 5, 10, 25):
        assert f"Events: critical success index by lead time: precipitation, {mm} mm" in page
    assert "critical success index by lead time: precipitation, 50 mm" not in page  # at most 40 mm fell
    rows = [row.split("</td>") for row in page.split("<tr>") if row.startswith("<td>&gt;= 50 mm</td>")]
    assert rows
    for row in rows:
        cells = [cell.removeprefix("<td>") for cell in row[:-1]]
        assert cells[2] in ("0", "CSI") or cells[2].startswith("FSS")
        assert set(cells[3:]) == {"-"}
