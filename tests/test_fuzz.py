"""Hundreds of mutated files: each gives the right values, or one clear line; never a traceback, never a wrong number.

A mutation changes a dataset, and beside it the truth: what a reader must make of it (None: it must refuse). Files get
one to five mutations, drawn from a seed, so that each can be looked at again by its number.
"""

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from convlstm_wx.cli import main
from convlstm_wx.config import TrainConfig
from convlstm_wx.data.inputs import prepare_training
from convlstm_wx.data.reading import open_dataset
from convlstm_wx.errors import ConvlstmWxError
from tests.region_files import region

FILES = 400
COMMANDS = 40
FIELDS = ("t2m", "tp", "z")
TOLERANCE = {"t2m": 2e-3, "tp": 1e-6, "z": 0.6}  # of values packed as int16


@dataclass(frozen=True)
class Case:
    """A file in the making.

    Attributes:
        dataset: what is written.
        truth: its meaning in canonical form, with the file's units; None if it must be refused.
        writing: keyword arguments of to_netcdf.
        damage: what is done to the written file.
        trained: whether training must be possible when it can be read.
    """

    dataset: xr.Dataset
    truth: xr.Dataset | None
    writing: dict[str, Any] = field(default_factory=dict)
    damage: Callable[[Path], None] | None = None
    trained: bool = True


def base() -> Case:
    dataset = region(days=75, height=5, width=6, levels=(850, 500))
    truth = dataset.sortby("lat")[["t2m", "tp", "z"]]
    return Case(dataset, truth, {"encoding": {"time": {"units": "hours since 1900-01-01"}}})


# Mutations that keep the meaning: (random numbers, case) -> case


def changed(case: Case, dataset: xr.Dataset, **changes: Any) -> Case:
    return replace(case, dataset=dataset, **changes)


def other_order(rng: random.Random, case: Case) -> Case:
    dims = list(case.dataset.dims)
    rng.shuffle(dims)
    return changed(case, case.dataset.transpose(*dims))


def north_up(_rng: random.Random, case: Case) -> Case:
    return changed(case, case.dataset.isel({row_axis(case): slice(None, None, -1)}))


def around_the_globe(_rng: random.Random, case: Case) -> Case:
    axis = column_axis(case)
    turned = case.dataset.assign_coords({axis: case.dataset[axis] % 360})
    turned[axis].attrs = case.dataset[axis].attrs
    return changed(case, turned.sortby(axis))


def row_axis(case: Case) -> str:
    return next(name for name in case.dataset.dims if str(name).lower() in ("lat", "latitude", "nav_lat"))


def column_axis(case: Case) -> str:
    return next(name for name in case.dataset.dims if str(name).lower() in ("lon", "longitude", "nav_lon"))


def other_names(rng: random.Random, case: Case) -> Case:
    if "lat" not in case.dataset.dims:
        return case
    choices = [
        {"lat": "latitude", "lon": "longitude", "time": "valid_time", "level": "pressure_level"},
        {"lat": "LATITUDE", "lon": "LONGITUDE", "time": "TIME"},
        {"lat": "nav_lat", "lon": "nav_lon"},
        {"level": "isobaricInhPa", "lon": "Longitude"},
    ]
    names = rng.choice(choices)
    encoding = {names.get(name, name): entry for name, entry in case.writing["encoding"].items()}
    return changed(case, case.dataset.rename(names), writing=case.writing | {"encoding": encoding})


def without_axis_attributes(_rng: random.Random, case: Case) -> Case:
    bare = case.dataset.copy()
    for axis in (row_axis(case), column_axis(case)):
        bare[axis].attrs = {}
    return changed(case, bare)


def doubles(_rng: random.Random, case: Case) -> Case:
    wide = {name: case.dataset[name].astype(np.float64) for name in FIELDS}
    return changed(case, case.dataset.assign(wide))


def packed(_rng: random.Random, case: Case) -> Case:
    scales = {"t2m": (1e-3, 280.0), "tp": (2e-6, 0.0), "z": (1.0, 20_000.0)}
    entries = {
        name: {"dtype": "int16", "scale_factor": scale, "add_offset": offset, "_FillValue": np.int16(-32768)}
        for name, (scale, offset) in scales.items()
        if float(abs(case.dataset[name].fillna(offset) - offset).max()) < 32_000 * scale
    }
    return replace(case, writing=case.writing | {"encoding": case.writing["encoding"] | entries})


def classic(rng: random.Random, case: Case) -> Case:
    return replace(case, writing=case.writing | {"format": rng.choice(["NETCDF3_CLASSIC", "NETCDF3_64BIT"])})


def other_clock(rng: random.Random, case: Case) -> Case:
    name = next(name for name in case.dataset.dims if "time" in str(name).lower())
    units = rng.choice(["days since 1800-01-01", "seconds since 1970-01-01", "minutes since 2001-01-01 00:00:00"])
    entry = {"units": units, "dtype": rng.choice(["float64", "int64" if "format" not in case.writing else "float64"])}
    return replace(case, writing=case.writing | {"encoding": case.writing["encoding"] | {name: entry}})


def company(rng: random.Random, case: Case) -> Case:
    extra = rng.choice(
        [
            {"number": ((), 0), "surface": ((), 0.0)},
            {"note": (("words",), np.array(["a", "b"]))},
            {"crs": ((), 7, {"grid_mapping_name": "latitude_longitude"})},
            {"profile": (("height",), np.arange(3.0))},
        ]
    )
    return changed(case, case.dataset.assign(extra))


def strange_attributes(rng: random.Random, case: Case) -> Case:
    dataset = case.dataset.copy()
    name = rng.choice(["t2m", "tp", "z"])
    value = rng.choice([7, np.float32(2.5), np.arange(3), "degrés Kelvin", "", "x" * 5000])
    dataset[name].attrs |= {"comment": value, "standard_name": value if isinstance(value, str) else "t"}
    dataset.attrs["history"] = value
    return changed(case, dataset)


# Mutations that change values, and the truth with them


def holes(rng: random.Random, case: Case) -> Case:
    name, at = rng.choice(["t2m", "z"]), [rng.randrange(75) for _ in range(9)]
    return with_values(case, name, at, np.nan)


def infinities(rng: random.Random, case: Case) -> Case:
    return with_values(case, "t2m", [rng.randrange(75)], np.inf)


def forgotten_fill(rng: random.Random, case: Case) -> Case:
    return with_values(case, "t2m", [rng.randrange(75)], -9999.0)


def with_values(case: Case, name: str, at: list[int], value: float) -> Case:
    """The same point of both, at some times."""
    dataset, truth = case.dataset.copy(deep=True), case.truth.copy(deep=True)
    place = {"lat": 52.0 + 2, "lon": -4.0}
    times = truth["time"].values[at]
    truth[name].loc[{"time": times, **place}] = value
    axis = next(axis for axis in dataset.dims if "time" in str(axis).lower())
    east = column_axis(case)
    column = place["lon"] if float(dataset[east].min()) < 0 else place["lon"] % 360
    dataset[name].loc[{axis: times, row_axis(case): place["lat"], east: column}] = value
    return changed(case, dataset, truth=truth)


def wrong_units(_rng: random.Random, case: Case) -> Case:
    dataset, truth = case.dataset.copy(), case.truth.copy()
    dataset["t2m"].attrs["units"] = truth["t2m"].attrs["units"] = "degC"
    return changed(case, dataset, truth=truth)


def a_gap(rng: random.Random, case: Case) -> Case:
    first = rng.randrange(5, 70)
    keep = [index for index in range(case.dataset["t2m"].sizes[time_axis(case)]) if not first <= index < first + 2]
    return changed(case, case.dataset.isel({time_axis(case): keep}), truth=case.truth.isel(time=keep), trained=False)


def time_axis(case: Case) -> str:
    return next(str(name) for name in case.dataset.dims if "time" in str(name).lower())


# Mutations that must be refused


def refused(case: Case, dataset: xr.Dataset) -> Case:
    return changed(case, dataset, truth=None)


def shuffled(rng: random.Random, case: Case) -> Case:
    order = list(range(case.dataset.sizes[time_axis(case)]))
    rng.shuffle(order)
    return refused(case, case.dataset.isel({time_axis(case): order}))


def twice(rng: random.Random, case: Case) -> Case:
    at = rng.randrange(60)
    return refused(case, case.dataset.isel({time_axis(case): [*range(at + 1), *range(at, 60)]}))


def one_time(_rng: random.Random, case: Case) -> Case:
    return refused(case, case.dataset.isel({time_axis(case): [0]}))


def no_time_at_all(_rng: random.Random, case: Case) -> Case:
    return refused(case, case.dataset.isel({time_axis(case): []}).transpose(time_axis(case), ...))


def all_missing(_rng: random.Random, case: Case) -> Case:
    return refused(case, case.dataset.assign(t2m=case.dataset["t2m"] * np.nan))


def lost_axis(rng: random.Random, case: Case) -> Case:
    return refused(case, case.dataset.drop_vars(rng.choice([time_axis(case), row_axis(case), column_axis(case)])))


def broken_axis(rng: random.Random, case: Case) -> Case:
    axis = rng.choice([row_axis(case), column_axis(case)])
    values = case.dataset[axis].values.astype(float).copy()
    values[2] = rng.choice([np.nan, values[1], values[0], 1e30])
    return refused(case, case.dataset.assign_coords({axis: (axis, values, case.dataset[axis].attrs)}))


def words_for_numbers(_rng: random.Random, case: Case) -> Case:
    words = {name: xr.zeros_like(case.dataset[name], dtype="U1") for name in FIELDS}
    return replace(refused(case, case.dataset.assign(words)), writing={})


def unknown_dates(rng: random.Random, case: Case) -> Case:
    axis = time_axis(case)
    units = rng.choice(["hours since yesterday", "fortnights", ""])
    numbers = np.arange(case.dataset.sizes[axis], dtype=np.float64)
    encoding = {name: entry for name, entry in case.writing["encoding"].items() if name != axis}
    dated = case.dataset.assign_coords({axis: (axis, numbers, {"units": units} if units else {})})
    return replace(refused(case, dated), writing=case.writing | {"encoding": encoding})


def rain_in_furlongs(_rng: random.Random, case: Case) -> Case:
    dataset = case.dataset.copy()
    dataset["tp"].attrs = {"units": "furlong", "standard_name": "precipitation_amount"}
    return refused(case, dataset)


def truncated(rng: random.Random, case: Case) -> Case:
    share = rng.choice([0.0, 0.001, 0.1, 0.5, 0.9, 0.99])

    def cut(path: Path) -> None:
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])

    return replace(case, truth=None, damage=cut)


def something_else(rng: random.Random, case: Case) -> Case:
    content = rng.choice(
        [b"<html>404</html>", b"GRIB" + bytes(400), b"\x89PNG\r\n" + bytes(90), b"time,lat,lon\n1,2,3\n"]
    )
    return replace(case, truth=None, damage=lambda path: path.write_bytes(content))


def a_folder(_rng: random.Random, case: Case) -> Case:
    def instead(path: Path) -> None:
        path.unlink()
        path.mkdir()

    return replace(case, truth=None, damage=instead)


KEEPING = [other_order, north_up, around_the_globe, other_names, without_axis_attributes, doubles, packed, classic,
           other_clock, company, strange_attributes]  # fmt: skip
CHANGING = [holes, infinities, forgotten_fill, wrong_units, a_gap]
REFUSED = [shuffled, twice, one_time, no_time_at_all, all_missing, lost_axis, broken_axis, words_for_numbers,
           unknown_dates, rain_in_furlongs, truncated, something_else, a_folder]  # fmt: skip


def make(number: int) -> tuple[Case, list[str]]:
    """The case of a number, and what was done to it."""
    rng = random.Random(number)
    case = base()
    chosen = rng.sample(CHANGING, k=rng.choice([0, 0, 1]))
    chosen += rng.sample(KEEPING, k=rng.choice([1, 2, 3]))
    if number % 3 == 0:
        chosen.append(REFUSED[number // 3 % len(REFUSED)])
    for mutate in chosen:
        case = mutate(rng, case)
    return case, [mutate.__name__ for mutate in chosen]


def write(case: Case, folder: Path) -> Path:
    path = folder / "fuzzed.nc"
    there = {name: entry for name, entry in case.writing.get("encoding", {}).items() if name in case.dataset.variables}
    case.dataset.to_netcdf(path, **case.writing | {"encoding": there})
    if case.damage:
        case.damage(path)
    return path


def config(path: Path) -> TrainConfig:
    return TrainConfig(data=(str(path),), input_steps=2, lead_steps=2)


def is_one_clear_line(message: str) -> bool:
    return 20 < len(message) < 900 and "\n" not in message and "Traceback" not in message


@pytest.mark.parametrize("number", range(FILES))
def test_a_mutated_file_is_read_right_or_refused_in_one_line(number, tmp_path):
    case, names = make(number)
    path = write(case, tmp_path)
    try:
        dataset = open_dataset([path])
        inputs, told = prepare_training(config(path)), ""
    except ConvlstmWxError as error:
        told = str(error)
    if told:
        assert case.truth is None or not case.trained, f"{names}: {told}"
        assert is_one_clear_line(told), f"{names}: {told}"
        assert "fuzzed.nc" in told, f"{names}: {told}"
        return
    assert case.truth is not None, f"{names}: was not refused"
    for name, truth in case.truth.data_vars.items():
        read = dataset[name].assign_coords(lon=truth["lon"], lat=truth["lat"])
        assert read.dims == truth.dims, names
        tolerance = TOLERANCE[name] if "packed" in names else 0
        np.testing.assert_allclose(read.values, truth.values, rtol=1e-6, atol=tolerance, err_msg=str(names))
        np.testing.assert_allclose((dataset["lon"].values - truth["lon"].values + 180) % 360, 180, atol=1e-4)
        assert dataset[name].attrs["units"] == truth.attrs["units"], names
    assert np.array_equal(dataset["time"].values, case.truth["time"].values), names
    batch = inputs.windows(0).gather([0])
    assert np.isfinite(batch.x_BTCHW).all(), names
    for suspicious in {"forgotten_fill", "wrong_units", "infinities"} & set(names):
        assert inputs.account.warnings(), suspicious


@pytest.mark.parametrize("number", range(COMMANDS))
def test_the_command_ends_well_or_with_one_line(number, tmp_path, capsys):
    case, names = make(number)
    path = write(case, tmp_path)
    options = ["--hidden-channels", "2", "--num-epochs", "1", "--input-steps", "2", "--lead-steps", "2"]
    code = main(["train", "--data", str(path), *options, "--output-dir", str(tmp_path / "run")])
    told = capsys.readouterr().err.strip()
    if case.truth is None:
        assert code == 2, names
    if code == 2:
        assert is_one_clear_line(told), f"{names}: {told}"
        assert not (tmp_path / "run").exists(), names
    else:
        assert code == 0, names
        assert (tmp_path / "run" / "best.pt").exists(), names
    shutil.rmtree(tmp_path, ignore_errors=True)
