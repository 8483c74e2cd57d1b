"""Masks in files: which variables are masks, which of their values mean observed, and what is left out."""

import logging

import numpy as np
import pytest
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from convlstm_wx.data.masks import Masking, same_masking
from convlstm_wx.data.meanings import meaning_of
from convlstm_wx.data.polarity import Look
from convlstm_wx.data.reading import adopt_dataset, observed_only, open_dataset
from convlstm_wx.errors import CheckpointError, DataError

DIMS = ("time", "lat", "lon")
DAY = np.timedelta64(1, "D")
SPELLINGS = (
    *("t2m_mask", "mask_t2m", "t2m_valid", "valid_t2m", "t2m_qc", "qc_t2m", "t2m_flag", "t2m_quality"),
    *("t2m_quality_flag", "t2m_validity", "T2M_MASK", "t2m_filled"),
)


def gaps(days: int = 40) -> np.ndarray:
    """Where values are filled: some points on some days."""
    where = np.zeros((days, 4, 5), bool)
    where[5:8, 1, 1:3] = where[20, 2, 2] = where[33:, 3, 4] = True
    return where


def weather(days: int = 40, *, fill: float | None = 0.0, seed: int = 0, name: str = "t2m") -> xr.Dataset:
    """Values that never repeat, but at the gaps, where they are `fill`."""
    values = 280 + np.random.default_rng(seed).normal(size=(days, 4, 5)).astype(np.float32)
    if fill is not None:
        values[gaps(days)] = fill
    times = np.datetime64("2001-01-01", "ns") + np.arange(days) * DAY
    axes = {"time": times, "lat": [50.0, 51, 52, 53], "lon": [0.0, 1, 2, 3, 4]}
    return xr.Dataset({name: (DIMS, values, {"units": "K"})}, axes)


def masked(name: str = "t2m_mask", *, observed: float = 1, dtype="float32", **attrs) -> xr.Dataset:
    """Weather with a mask of zeros and ones."""
    values = np.where(gaps(), 1 - observed, observed).astype(dtype)
    return weather().assign({name: (DIMS, values, attrs)})


@pytest.fixture
def opened(tmp_path):
    """Write a dataset, and open it again."""

    def write_and_open(dataset: xr.Dataset, **options) -> xr.Dataset:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.nc"
        dataset.to_netcdf(path)
        return open_dataset([path], **options)

    return write_and_open


def told(caplog) -> str:
    (line,) = [record.getMessage() for record in caplog.records if "masks:" in record.getMessage()]
    return line.partition("masks: ")[2]


# Which variables are masks


@pytest.mark.parametrize("observed", [0, 1])
@pytest.mark.parametrize("name", SPELLINGS)
def test_a_mask_is_known_by_its_name_whatever_its_values_mean(opened, name, observed):
    dataset = opened(masked(name, observed=observed))
    assert list(dataset.data_vars) == ["t2m"]
    assert dataset["t2m_filled"].dims == DIMS
    np.testing.assert_array_equal(dataset["t2m_filled"], gaps())
    np.testing.assert_array_equal(np.isnan(observed_only(dataset["t2m"])), gaps())


@pytest.mark.parametrize("dtype", ["float32", "float64", "int8", "int16", "uint8", "bool"])
def test_a_mask_may_be_stored_as_any_number(opened, dtype):
    dataset = opened(masked(dtype=dtype))
    np.testing.assert_array_equal(dataset["t2m_filled"], gaps())
    assert dataset["t2m_filled"].dtype == np.int8


@pytest.mark.parametrize(
    "attrs",
    [
        {"standard_name": "status_flag"},
        {"standard_name": "quality_flag"},
        {"standard_name": "air_temperature status_flag"},
        {"flag_values": np.array([0, 1], np.int8), "flag_meanings": "bad good"},
        {"flag_masks": np.array([1], np.int8), "flag_meanings": "good"},
    ],
)
def test_cf_says_what_a_mask_belongs_to(opened, attrs):
    dataset = masked("checked", dtype="int8", **attrs).assign(d2m=weather(seed=1, name="d2m")["d2m"])
    for name in ("t2m", "d2m"):
        dataset[name].attrs["ancillary_variables"] = "something_else checked"
    found = opened(dataset)
    assert list(found.data_vars) == ["t2m", "d2m"]
    for name in ("t2m", "d2m"):
        np.testing.assert_array_equal(found[f"{name}_filled"], gaps())


def test_what_belongs_to_nothing_or_holds_weather_stays_a_variable(opened):
    zeros_and_ones = gaps().astype(np.float32)
    dataset = weather(fill=None).assign(
        snow_cover=(DIMS, zeros_and_ones),
        mask=(DIMS, zeros_and_ones),
        sst_mask=(("lat", "lon"), zeros_and_ones[0]),
        t2m_valid=weather(seed=3)["t2m"],
        t2m_quality=(DIMS, np.where(gaps(), 0.25, 0.75)),
        error_of_t2m=(DIMS, zeros_and_ones),
    )
    dataset["t2m"].attrs["ancillary_variables"] = "error_of_t2m"  # not a flag by attributes
    found = opened(dataset)
    assert set(found.data_vars) == set(dataset.data_vars)
    assert "t2m_filled" not in found.coords


# Dimensions


def test_a_mask_without_levels_or_without_time_holds_for_all_of_them(opened, monkeypatch):
    levels = weather().expand_dims(level=[1000.0, 850.0], axis=1)
    surface = masked(observed=0)["t2m_mask"]
    dataset = opened(levels.assign(t2m_mask=surface, sea=weather(fill=None)["t2m"], sea_mask=surface[20]))
    flags = dataset["t2m_filled"]
    assert flags.dims == ("time", "level", "lat", "lon")
    assert not flags.variable._in_memory
    np.testing.assert_array_equal(flags.sel(level=850.0), gaps())
    np.testing.assert_array_equal(flags.isel(time=[5, 33], lat=[3, 1], level=1), gaps()[[5, 33]][:, [3, 1]])
    np.testing.assert_array_equal(dataset["sea_filled"], np.broadcast_to(gaps()[20], (40, 4, 5)))
    assert dataset["sea_filled"].isel(time=3).sum() == 1


def test_a_mask_of_whole_times_is_one(opened):
    whole = np.zeros(40, np.int8)
    whole[[3, 4]] = 1
    dataset = opened(weather(fill=None).assign(t2m_qc=("time", whole, {"comment": "1: bad"})))
    assert dataset["t2m_filled"].sum(("lat", "lon")).values.tolist() == (20 * whole).tolist()


def test_rows_are_turned_with_those_of_the_variable(opened):
    dataset = opened(masked().isel(lat=slice(None, None, -1)).transpose("lon", "lat", "time"))
    np.testing.assert_array_equal(dataset["t2m_filled"], gaps())


def test_a_mask_on_other_dimensions_is_refused_with_a_remedy_that_works(opened):
    stations = weather().assign(t2m_mask=("station", np.array([0, 1, 1], np.int8)))
    with pytest.raises(DataError, match=r"'t2m_mask' marks values of 't2m', but is on other dimensions \(station\)"):
        opened(stations)
    with pytest.raises(
        DataError, match="'t2m_mask' marks values of 't2m', but has the dimension level, which 't2m' lacks; leave"
    ):
        opened(masked().assign(t2m_mask=masked()["t2m_mask"].expand_dims(level=[1000.0, 850.0], axis=1)))
    assert list(opened(stations, masking=Masking(ignored=("t2m_mask",))).data_vars) == ["t2m"]


def test_a_variable_in_the_place_of_the_flags_is_refused(opened):
    with pytest.raises(DataError, match="'t2m_filled' is a variable, but the flags made of 't2m_mask' need this name"):
        opened(masked().assign(t2m_filled=weather(fill=None)["t2m"]))


# What the values mean, by attributes


@pytest.mark.parametrize(
    ("text", "observed", "missing"),
    [
        ("1 = observed, 0 = filled", {1}, {0}),
        ("observed = 0; interpolated = 1", {0}, {1}),
        ("observed=1 filled=0", {1}, {0}),
        ("original (0), estimated (1)", {0}, {1}),
        ("1 observed 0 filled", {1}, {0}),
        ("1 if missing", set(), {1}),
        ("0: good", {0}, set()),
        ("quality: 0 good 1 suspect 2 bad", {0}, {1, 2}),
        ("1 denotes gap-filled values", set(), {1}),
        ("0 means that it is not missing, 1 that it is", {0}, set()),
        ("1: not observed", set(), {1}),
        ("0 = no data", set(), {0}),
        ("nonzero where invalid", set(), {1}),
    ],
)
def test_texts_say_what_values_mean(text, observed, missing):
    meaning = meaning_of({"long_name": text})
    assert (set(meaning.observed), set(meaning.missing)) == (observed, missing)


@pytest.mark.parametrize("text", ["12-hour accumulated rain", "1/0 = valid/missing", "1 = good, 1 = bad", "land"])
def test_texts_that_say_nothing_clear_say_nothing(text):
    assert meaning_of({"long_name": text}) is None


@pytest.mark.parametrize(
    ("attrs", "observed"),
    [
        ({"flag_values": [0, 1, 2], "flag_meanings": "good suspect bad"}, {0}),
        ({"flag_values": "0b, 1b, 9b", "flag_meanings": "no_qc good_data missing_value"}, {1}),
        ({"flag_values": [1, 2, 3], "flag_meanings": "station satellite missing"}, {1, 2}),
        ({"flag_masks": np.array([1, 2, -128], np.int8), "flag_meanings": "interpolated cloudy invalid"}, {0, 2, 4}),
        ({"flag_masks": [1, 2], "flag_meanings": "observed filled"}, {1, 5, 9}),
        ({"flag_masks": [3, 3, 4], "flag_values": [0, 1, 4], "flag_meanings": "good bad estimated"}, {0, -128}),
    ],
)
def test_flag_meanings_say_which_values_are_observed(opened, attrs, observed):
    values = np.resize(np.array([0, 1, 2, 3, 4, 5, 9, -128], np.int8), (40, 4, 5))
    dataset = weather(fill=None).assign(t2m_qc=(DIMS, values, attrs))
    flags = opened(dataset)["t2m_filled"].values
    assert {int(value) for value in values[flags == 0]} == observed


def test_what_the_attributes_say_outweighs_the_data(opened, caplog):
    caplog.set_level(logging.INFO)
    dataset = opened(masked(observed=1, comment="0 = observed, 1 = filled"))
    np.testing.assert_array_equal(dataset["t2m_filled"], ~gaps())
    assert told(caplog) == "0 is observed in t2m_mask (by attributes); --mask-values to overrule"


# What the values mean, by the data


def flagged_by_data(values: np.ndarray, where: np.ndarray, observed: int) -> tuple[bool, str]:
    """Whether a mask without attributes is read rightly, and the reason."""
    axes = {"time": np.datetime64("2001-01-01", "ns") + np.arange(len(values)) * DAY, "lat": np.arange(4.0)}
    fields = {"x": (DIMS, values.astype(np.float32)), "x_mask": (DIMS, np.where(where, 1 - observed, observed))}
    with_log = logging.getLogger("convlstm_wx.data.masks")
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    with_log.addHandler(handler)
    with_log.setLevel(logging.INFO)
    try:
        dataset = adopt_dataset(xr.Dataset(fields, axes | {"lon": np.arange(5.0)}))
    finally:
        with_log.removeHandler(handler)
    return bool((dataset["x_filled"].values == where).all()), lines[0].partition("(")[2].partition(")")[0]


@pytest.mark.parametrize("observed", [0, 1])
@pytest.mark.parametrize("most", [False, True])
@pytest.mark.parametrize("how", ["constant", "before", "after", "line", "north", "point", "missing"])
def test_what_fills_gaps_repeats_something(how, most, observed):
    where = gaps(60)
    if most:  # four of five times
        where = np.broadcast_to((np.arange(60) % 5 > 0)[:, None, None], (60, 4, 5))
    if how == "north":  # the row beside it is observed
        where = np.zeros((60, 4, 5), bool)
        where[:, :2] = most
        where[10:20, 1, 2] = not most
    values = np.random.default_rng(1).normal(size=where.shape)
    series = xr.DataArray(np.where(where, np.nan, values), dims=DIMS)
    values = {
        "constant": lambda: series.fillna(0),
        "before": lambda: series.ffill("time").bfill("time"),
        "after": lambda: series.bfill("time").ffill("time"),
        "line": lambda: series.interpolate_na("time", fill_value="extrapolate"),
        "north": lambda: series.bfill("lat").ffill("lat"),
        "point": lambda: series.fillna(series.mean("time")),
        "missing": lambda: series,
    }[how]()
    is_right, reason = flagged_by_data(values.values, where, observed)
    assert is_right, reason
    words = {
        "constant": "repeats a constant",
        "before": "a neighbour in time",
        "after": "a neighbour in time",
        "line": "lies on lines in time",
        "north": "repeats a neighbour in space",
        "point": "repeats one value at each point",
        "missing": "marks missing values",
    }
    assert reason.endswith(words["before" if how == "point" else how])  # where gaps last


@pytest.mark.parametrize("observed", [0, 1])
def test_dry_days_do_not_pass_for_filled_ones(observed):
    generator = np.random.default_rng(2)
    rain = np.maximum(generator.normal(-1.5, 1, (60, 4, 5)), 0)
    where = generator.random(rain.shape) < 0.05
    assert flagged_by_data(np.where(where, 0, rain), where, observed)[0]  # filled with zeros
    unlike = np.where(where, generator.random(rain.shape), rain)
    assert flagged_by_data(unlike, where, observed) == (True, f"{100 * (~where).mean():.3g} % of the values")


def test_masks_of_one_kind_are_decided_together_and_told_in_one_line(opened, caplog):
    caplog.set_level(logging.INFO)
    dataset = masked()
    for number, name in enumerate(("d2m", "sst", "ws"), 1):
        dataset[name] = weather(fill=None, seed=number)["t2m"]
        dataset[f"{name}_mask"] = xr.ones_like(dataset["t2m_mask"])
    dataset["qc_d2m"] = xr.zeros_like(dataset["t2m_mask"]).assign_attrs(comment="0: ok")
    found = opened(dataset)
    assert list(found.data_vars) == ["t2m", "d2m", "sst", "ws"]
    assert int(sum(found[f"{name}_filled"].sum() for name in ("d2m", "sst", "ws"))) == 0
    assert told(caplog) == (
        "1 is observed in t2m_mask, d2m_mask and 2 more (0 repeats a constant), 0 is observed in qc_d2m (by "
        "attributes); --mask-values to overrule"
    )


def test_a_mask_of_one_value_says_that_all_is_observed(opened, caplog):
    caplog.set_level(logging.INFO)
    dataset = weather(fill=None)
    for value in (0, 1):
        found = opened(dataset.assign(t2m_mask=xr.full_like(dataset["t2m"], value)))
        assert int(found["t2m_filled"].sum()) == 0
    assert "1 is observed in t2m_mask (1 is the only value); --mask-values to overrule" in caplog.text


def test_what_is_missing_in_a_mask_was_not_observed(opened):
    dataset = masked()
    dataset["t2m_mask"] = dataset["t2m_mask"].where(~gaps())
    np.testing.assert_array_equal(opened(dataset)["t2m_filled"], gaps())


def undecided(values=(0, 1)) -> xr.Dataset:
    """A mask that says nothing: each value as often as the others, and all weather alike."""
    return weather(fill=None).assign(t2m_qc=(DIMS, np.resize(np.array(values, np.int8), (40, 4, 5))))


@pytest.mark.parametrize("values", [(0, 1), (0, 1, 2), (0, 0, 0, 0, 1, 2)])
def test_a_mask_that_says_nothing_is_refused_with_remedies_that_work(opened, values):
    with pytest.raises(DataError, match=r"nothing says which value of t2m_qc means observed .*--mask-values 0 "):
        opened(undecided(values))
    told = opened(undecided(values), masking=Masking(values={"": (0.0,)}))
    np.testing.assert_array_equal(told["t2m_filled"], undecided(values)["t2m_qc"] != 0)
    ignored = opened(undecided(values), masking=Masking(ignored=("t2m_qc",)))
    assert "t2m_filled" not in ignored.coords
    assert ignored.attrs["ignored"] == ("t2m_qc",)


def test_a_mask_of_a_variable_that_is_not_used_is_not_asked_about(opened):
    dataset = undecided().assign(d2m=weather(fill=None)["t2m"])
    found = opened(dataset, masking=Masking(wanted=("d2m",)))
    assert list(found.data_vars) == ["t2m", "d2m"]
    assert "masks" not in found.attrs


def test_told_values_outweigh_all_else_and_may_be_of_one_mask(opened, caplog):
    caplog.set_level(logging.INFO)
    dataset = undecided((0, 1, 2)).assign(d2m_mask=masked(comment="1 = observed")["t2m_mask"])
    dataset["d2m"] = weather()["t2m"]
    found = opened(dataset, masking=Masking(values={"t2m_qc": (0.0, 2.0)}))
    np.testing.assert_array_equal(found["t2m_filled"], dataset["t2m_qc"] == 1)
    np.testing.assert_array_equal(found["d2m_filled"], gaps())
    assert "0 and 2 are observed in t2m_qc (--mask-values)" in told(caplog)


def test_a_value_that_is_observed_by_one_mask_and_not_by_another_is_not(opened):
    dataset = masked()
    dataset["t2m_qc"] = (DIMS, np.zeros((40, 4, 5), np.int8), {"comment": "0: good, 3: bad"})
    dataset["t2m_qc"][0, 0, 0] = 3
    flags = opened(dataset)["t2m_filled"].values
    assert flags[0, 0, 0] == 1
    flags[0, 0, 0] = 0
    np.testing.assert_array_equal(flags, gaps())


# Several files, stores, datasets


def write_all(tmp_path, **files: xr.Dataset) -> list:
    for name, dataset in files.items():
        dataset.to_netcdf(tmp_path / f"{name}.nc")
    return [tmp_path / f"{name}.nc" for name in files]


def test_files_with_and_without_a_mask_are_read_alike(tmp_path):
    first, second, third = masked().isel(time=slice(10)), weather().isel(time=slice(10, 20)), masked()
    third = third.isel(time=slice(20, 40))  # its mask holds little: what it means the first file says
    found = open_dataset(write_all(tmp_path, a=first, b=second, c=third))
    expected = gaps()
    expected[10:20] = False
    np.testing.assert_array_equal(found["t2m_filled"], expected)
    assert [(mark.mask, mark.observed) for mark in found.attrs["masks"]] == [("t2m_mask", (1.0,))]


def test_masks_may_be_in_files_of_their_own(tmp_path):
    masks = masked(observed=0)[["t2m_mask"]]
    found = open_dataset(write_all(tmp_path, fields=weather(), masks=masks))
    assert list(found.data_vars) == ["t2m"]
    np.testing.assert_array_equal(found["t2m_filled"], gaps())
    # Of some of the times only: the others were observed.
    (tmp_path / "part").mkdir()
    files = write_all(tmp_path / "part", fields=weather(), masks=masks.isel(time=slice(10)))
    expected = gaps()
    expected[10:] = False
    np.testing.assert_array_equal(open_dataset(files)["t2m_filled"], expected)


def test_masks_on_another_grid_than_their_variables_do_not_fit_together(tmp_path):
    masks = masked(observed=0)[["t2m_mask"]].isel(lat=slice(2))
    with pytest.raises(DataError, match="Files that are read together need the same grid"):
        open_dataset(write_all(tmp_path, fields=weather(), masks=masks))


class Damaged(BackendArray):
    """A mask in a file that breaks off."""

    shape, dtype = (40, 4, 5), np.dtype("int8")

    def __getitem__(self, key):
        raise OSError("NetCDF: HDF error")


def test_a_mask_that_cannot_be_read_is_an_error_of_one_line():
    dataset = weather().assign(t2m_mask=xr.Variable(DIMS, indexing.LazilyIndexedArray(Damaged())))
    with pytest.raises(DataError, match=r"x\.nc: 't2m_mask' cannot be read to its end \(NetCDF: HDF error\)"):
        adopt_dataset(dataset, "x.nc")


def test_fixed_masks_of_several_periods_hold_for_their_own(tmp_path):
    fixed = np.zeros((4, 5), np.int8)
    parts = {}
    for number in (0, 1):
        mask = fixed.copy()
        mask[number, number] = 1
        part = weather(fill=None).isel(time=slice(20 * number, 20 * number + 20))
        parts[f"part{number}"] = part.assign(t2m_mask=(("lat", "lon"), mask, {"comment": "1 = missing"}))
    flags = open_dataset(write_all(tmp_path, **parts))["t2m_filled"]
    assert flags[:, 0, 0].values.tolist() == [1] * 20 + [0] * 20
    assert flags[:, 1, 1].values.tolist() == [0] * 20 + [1] * 20


def test_zarr_and_a_dataset_that_is_open_give_the_same(tmp_path):
    pytest.importorskip("zarr")
    levels = masked(observed=0).assign(t2m=weather()["t2m"].expand_dims(level=[1000.0, 850.0], axis=1))
    levels.to_zarr(tmp_path / "x.zarr")
    lazily = open_dataset([tmp_path / "x.zarr"])
    assert lazily["t2m_filled"].chunks is not None
    for found in (lazily, adopt_dataset(levels), adopt_dataset(levels.chunk(time=7))):
        for level in (1000.0, 850.0):
            np.testing.assert_array_equal(found["t2m_filled"].sel(level=level), gaps())


# What is left out


def test_what_is_ignored_is_left_out_and_the_masks_of_it_too(opened):
    dataset = masked().assign(d2m=weather(fill=None)["t2m"], d2m_mask=masked()["t2m_mask"])
    assert list(opened(dataset, masking=Masking(ignored=("t2m",))).data_vars) == ["d2m"]
    found = opened(dataset, masking=Masking(ignored=("*_mask",)))
    assert list(found.data_vars) == ["t2m", "d2m"]
    assert found.attrs["ignored"] == ("t2m_mask", "d2m_mask")
    assert not [name for name in found.coords if str(name).endswith("_filled")]


def test_the_mask_of_a_variable_that_cannot_be_used_is_no_variable(opened):
    members = weather(fill=None).expand_dims(number=3).rename(t2m="msl")
    dataset = opened(members.assign(t2m=weather(fill=None)["t2m"], msl_mask=masked()["t2m_mask"]))
    assert list(dataset.data_vars) == ["t2m"]


def test_a_bounded_number_of_times_is_looked_at_from_the_first_to_the_last(monkeypatch):
    dataset = masked().assign_attrs(claims={}, ignored=(), refused=())
    long = xr.concat([dataset.assign_coords(time=dataset["time"] + number * 40 * DAY) for number in range(25)], "time")
    taken = [mask for mask, _ in Look([long], "t2m_mask", "t2m").pairs()]
    assert {mask.shape for mask in taken} == {(8, 1, 4, 5)}
    assert len(taken) == 16
    np.testing.assert_array_equal(taken[0][:, 0], long["t2m_mask"][:8])
    np.testing.assert_array_equal(taken[-1][:, 0], long["t2m_mask"][-8:])
    levels = long.expand_dims(level=np.arange(12.0), axis=1)
    monkeypatch.setattr("convlstm_wx.data.polarity.LOOK_BYTES", 3 * 16 * 4 * 20 * 4)
    fewer = [field for _, field in Look([levels], "t2m_mask", "t2m").pairs()]
    assert {field.shape for field in fewer} == {(3, 4, 4, 5)}  # of a large grid some levels only


# Known from training


def test_what_training_decided_holds_for_a_file_that_says_something_else(opened):
    known = Masking(marks=opened(masked(observed=1)).attrs["masks"], fields=("t2m", "t2m_valid"), wanted=("t2m",))
    shorter = masked().isel(time=slice(5, 8), lat=slice(1, 2), lon=slice(1, 4))  # most of it is filled
    assert shorter["t2m_mask"].values.mean() < 0.5
    found = opened(shorter.assign(t2m_valid=xr.ones_like(shorter["t2m"])), masking=known)
    np.testing.assert_array_equal(found["t2m_filled"], 1 - shorter["t2m_mask"])
    assert list(found.data_vars) == ["t2m", "t2m_valid"]  # which was a variable in training


def test_two_networks_that_read_a_mask_differently_do_not_read_the_same_data(opened):
    one, other = (Masking(marks=opened(masked(observed=value)).attrs["masks"]) for value in (0, 1))
    with pytest.raises(CheckpointError, match="read 't2m_mask' differently: observed is t2m_mask=1 for one"):
        same_masking([one, other])
    assert same_masking([one, Masking(ignored=("t2m_mask",))]) == one  # its forecasts are scored where it was observed


# What is no mask, though it is called one


@pytest.mark.parametrize("name", ["t2m_flag", "t2m_mask"])
def test_what_tells_where_a_variable_exceeds_a_threshold_is_asked_about(opened, name):
    dataset = weather(fill=None)
    with pytest.raises(DataError, match="nothing says which value of"):
        opened(dataset.assign({name: (DIMS, (dataset["t2m"].values > 281).astype(np.int8))}))
    cloud = np.maximum(dataset["t2m"].values - 280, 0)  # clear sky is plainly 0
    with pytest.raises(DataError, match="nothing says which value of"):
        opened(dataset.assign(t2m=(DIMS, cloud), **{name: (DIMS, (cloud > 0).astype(np.int8))}))


def test_values_far_from_the_rest_are_still_marked_by_a_mask(opened):
    dataset = opened(masked().assign(t2m=weather(fill=-9999)["t2m"]))
    np.testing.assert_array_equal(dataset["t2m_filled"], gaps())
