"""Levels that a file writes as text, such as "850hPa"."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from convlstm_wx.cli import main
from convlstm_wx.data.reading import adopt_dataset, open_dataset
from convlstm_wx.errors import DataError
from tests.region_files import region, write

SMALL = ["--hidden-channels", "4", "--batch-size", "16", "--num-epochs", "1", "--device", "cpu"]


def with_levels(levels, *, units: str | None = None, name: str = "level") -> xr.Dataset:
    """A field whose value is the index of its level."""
    times = np.datetime64("2001-01-01", "ns") + np.arange(4) * np.timedelta64(1, "D")
    values = np.zeros((4, len(levels), 3, 2), np.float32) + np.arange(len(levels))[:, None, None]
    axes = {"time": times, name: levels, "lat": [1.0, 2.0, 3.0], "lon": [10.0, 20.0]}
    dataset = xr.Dataset({"t": (("time", name, "lat", "lon"), values, {"units": "K"})}, axes)
    if units:
        dataset[name].attrs["units"] = units
    return dataset


def read(dataset: xr.Dataset) -> list[float]:
    """The levels in hPa; each still has its own field."""
    canonical = adopt_dataset(dataset)
    assert canonical["t"][0, :, 0, 0].values.tolist() == list(range(canonical.sizes["level"]))
    return canonical["level"].values.tolist()


@pytest.mark.parametrize(
    "text",
    [
        "850hPa", "850 hPa", " 850 HPA ", "hPa850", "p850", "P_850", "850mb", "850 mbar", "850-millibars", "85000Pa",
        "8.5e4 Pa", "85kPa", "850.0", "850", "L850hPa", "level_850", "lev=850", "plev850", "isobaricInhPa 850",
        "isobaricInPa-85000", "850 hPa isobaric surface", "[850 hPa]", "850,0",
    ],
)  # fmt: skip
def test_every_usual_spelling_of_a_level_is_read_in_hpa(text):
    assert read(with_levels([text, "500 hPa"])) == [850, 500]


@pytest.mark.parametrize(
    ("levels", "units", "expected"),
    [
        (["1,000 hPa", "92500 Pa", "85 kPa"], None, [1000, 925, 850]),
        (["85000", "50000"], None, [850, 500]),
        (["85000", "500hPa"], None, [850, 500]),
        (["85000", "50000"], "Pa", [850, 500]),
        (["100", "50"], "Pa", [1, 0.5]),
        (["100", "50hPa"], "Pa", [1, 50]),
        (["850hPa", "500hPa"], "Pa", [850, 500]),
        (["850hPa", "500hPa"], "m", [850, 500]),
    ],
)
def test_a_unit_in_the_text_wins_over_the_units_of_the_coordinate(levels, units, expected):
    assert read(with_levels(levels, units=units)) == expected


@pytest.mark.parametrize(
    "levels",
    [
        np.array(["850hPa", "500hPa"]),
        np.array([b"850hPa", b"500hPa"]),
        np.array(["850hPa", "500hPa"], object),
        np.array([b"850hPa", "500hPa"], object),
        np.array(["850hPa", 500.0], object),
        pd.Index(["850hPa", "500hPa"], dtype="string"),
        pd.CategoricalIndex(["850hPa", "500hPa"]),
    ],
    ids=lambda levels: str(levels.dtype),
)
def test_any_kind_of_text_in_a_dataset_is_read(levels):
    assert read(with_levels(levels)) == [850, 500]
    assert read(with_levels(levels).chunk()) == [850, 500]


@pytest.mark.filterwarnings("ignore")  # of zarr: its format 3 has no standard for text
@pytest.mark.parametrize("ending", ["nc", "zarr"])
@pytest.mark.parametrize("levels", [["850hPa", "1000hPa"], np.array([b"850hPa", b"1000hPa"])], ids=["text", "bytes"])
def test_text_levels_of_files_and_stores_are_read(tmp_path, ending, levels):
    path = tmp_path / f"x.{ending}"
    dataset = with_levels(levels)
    dataset.to_zarr(path) if ending == "zarr" else dataset.to_netcdf(path)
    assert open_dataset([path])["level"].values.tolist() == [850, 1000]


def test_pressures_are_a_level_axis_whatever_their_coordinate_is_called(tmp_path):
    assert read(with_levels(["850hPa", "500hPa"], name="k")) == [850, 500]
    beside = with_levels([1, 2], name="k").drop_vars("k").assign_coords(label=("k", ["850 mb", "500 mb"]))
    beside.isel(time=slice(0, 2)).to_netcdf(tmp_path / "a.nc")
    beside.isel(time=slice(2, 4)).to_netcdf(tmp_path / "b.nc")
    assert open_dataset([tmp_path / "a.nc", tmp_path / "b.nc"])["level"].values.tolist() == [850, 500]


def test_files_by_level_period_and_variable_are_joined_however_they_write_levels(tmp_path):
    for name, levels in (("a", ["850hPa"]), ("b", [50000.0])):
        whole = with_levels(levels)
        for part, times in (("1", slice(0, 2)), ("2", slice(2, 4))):
            whole.isel(time=times).to_netcdf(tmp_path / f"{name}{part}.nc")
    with_levels(np.array([b"P_850", b"P_500"])).rename(t="q").to_netcdf(tmp_path / "q.nc")
    joined = open_dataset([tmp_path / "*.nc"])
    assert joined["level"].values.tolist() == [850, 500]
    assert joined["t"].shape == joined["q"].shape == (4, 2, 3, 2)


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        (["sfc", "850hPa"], "'level' holds 'sfc'; needed are pressure levels such as 850 or 850hPa"),
        (["2m", "10 m", "850hPa"], "'level' holds '2m', '10 m'; needed"),
        (["850", "msl", "tropopause"], "'level' holds 'msl', 'tropopause'; needed"),
        (["850hPa", ""], "'level' holds ''; needed"),
        (["1000-850hPa", "850hPa500"], "'level' holds '1000-850hPa', '850hPa500'; needed"),
        (["-850hPa", "z500", "850 m", "1.0.0 hPa"], "'level' holds '-850hPa', 'z500', '850 m', '1.0.0 hPa'; needed"),
        (["model level 1", "hybrid 2", "surface 3"], "'level' holds 'model level 1', 'hybrid 2', 'surface 3'; needed"),
        (["surface"], "'level' holds 'surface'; needed"),
        ([f"L{n}x" for n in range(8)], "'L4x', 'L5x' and 2 more; needed"),
    ],
)
@pytest.mark.parametrize("ending", ["nc", "zarr"])
@pytest.mark.filterwarnings("ignore")
def test_what_is_no_pressure_is_refused_with_advice_that_works(tmp_path, monkeypatch, capsys, levels, message, ending):
    monkeypatch.chdir(tmp_path)
    dataset = with_levels(levels)
    dataset.to_zarr("x.zarr") if ending == "zarr" else dataset.to_netcdf("x.nc")
    assert main(["inspect", "--data", f"x.{ending}"]) == 2
    assert message in capsys.readouterr().out.splitlines()[-1]
    assert main(["prepare", "--data", f"x.{ending}", "--output", "y.nc"]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    exec(said.partition("in Python: ")[2], {})
    pressures = [text for text in levels if f"'{text}'" not in message and not text.startswith("L")]
    changed = open_dataset(["changed.nc"])
    assert changed.sizes.get("level", 0) == len(pressures)
    assert changed["t"][0, ..., 0, 0].values.ravel().tolist() == [levels.index(text) for text in pressures] or [0]


def test_a_dataset_in_python_gets_advice_for_a_dataset(tmp_path):
    write(with_levels(["sfc", "850hPa"]), tmp_path / "x.nc")
    with xr.open_dataset(tmp_path / "x.nc") as dataset:
        with pytest.raises(DataError) as refused:
            adopt_dataset(dataset)
        line = str(refused.value).partition("in Python: ")[2]
        assert line == "dataset.drop_isel({'level': [0]})"
        assert adopt_dataset(eval(line))["level"].values.tolist() == [850]


def test_texts_that_number_levels_are_no_pressures_as_numbers_are_not(caplog):
    for levels in (["1", "2"], ["L1", "L2"]):
        dataset = with_levels(levels)
        dataset["z"] = dataset["t"].isel(level=0, drop=True)
        assert list(adopt_dataset(dataset).data_vars) == ["z"]
    assert "'t' has more than one value along level (2)" in caplog.text
    sigma = with_levels(["10", "20"])
    sigma["level"].attrs["standard_name"] = "model_level_number"
    with pytest.raises(DataError, match="more than one value along level"):
        adopt_dataset(sigma)


def test_a_level_of_text_occurs_once_and_one_that_is_unused_does_not_matter():
    with pytest.raises(DataError, match="a level occurs twice in 'level': 850, 850 hPa"):
        read(with_levels(["850hPa", "85000 Pa"]))
    unused = with_levels(["sfc", "850hPa"])
    unused["t"] = unused["t"].isel(level=0, drop=True)
    assert adopt_dataset(unused)["t"].dims == ("time", "lat", "lon")


@pytest.mark.slow
def test_a_file_with_text_levels_is_trained_forecast_and_scored(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    numbers = region(days=200, levels=(1000.0, 850.0, 500.0))
    texts = numbers.assign_coords(level=["1000hPa", "850hPa", "500hPa"])
    write(texts, tmp_path / "texts.nc")
    write(numbers, tmp_path / "numbers.nc")
    options = ["--variables", "z", "--levels", "850", "500", "--output-dir", "run", *SMALL]
    assert main(["train", "--data", "texts.nc", *options]) == 0
    for name in ("texts", "numbers"):
        assert main(["forecast", "--checkpoint", "run", "--data", f"{name}.nc", "--output", f"{name}_made.nc"]) == 0
    with xr.open_dataset("texts_made.nc") as made, xr.open_dataset("numbers_made.nc") as same:
        assert made["level"].values.tolist() == [850, 500]
        assert made["level"].attrs["units"] == "hPa"
        xr.testing.assert_equal(made.load(), same.load())
    assert main(["evaluate", "--checkpoint", "run", "--data", "texts.nc", "--output", "scores"]) == 0
    with xr.open_dataset("scores/scores.nc") as scores:
        assert {"z@850hPa", "z@500hPa"} <= set(scores["channel"].values.tolist())
    assert main(["prepare", "--data", "texts.nc", "--levels", "850", "--output", "clean.nc"]) == 0
    assert open_dataset(["clean.nc"])["level"].values.tolist() == [850]


def test_texts_beside_a_dimension_without_values_are_refused_with_the_remedy_too():
    dataset = with_levels(["sfc", "850hPa"]).rename_vars(level="level_name")
    dataset = dataset.drop_indexes("level_name") if "level_name" in dataset.indexes else dataset
    with pytest.raises(DataError, match=r"'sfc'.*drop_isel"):
        adopt_dataset(dataset)
