import json
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

from convlstm_wx.conventions import Channel
from convlstm_wx.data import quality
from convlstm_wx.data.account import Account, ChannelAccount, aligned
from convlstm_wx.data.quality import Survey, check
from convlstm_wx.errors import DataError


def dataset(values, *, units="K", name="t2m", times=None, hours=6, width=2) -> xr.Dataset:
    """Fields of 1 x `width` points."""
    values = np.asarray(values, np.float32).reshape(-1, 1, width)
    if times is None:
        times = np.datetime64("2001-01-01", "ns") + np.arange(len(values)) * np.timedelta64(hours, "h")
    return xr.Dataset(
        {name: (("time", "lat", "lon"), values, {"units": units})},
        {"time": times, "lat": [50.0], "lon": np.arange(width) * 1.0},
        {"source": "x.nc"},
    )


def check_all(ds: xr.Dataset) -> Account:
    return check(ds, [Channel(str(name)) for name in ds.data_vars])


def the_channel(ds: xr.Dataset) -> ChannelAccount:
    return check_all(ds).channels[0]


# Values


def test_the_account_counts_what_is_there():
    channel = the_channel(dataset([280, 290, np.nan, 300]))
    assert (channel.minimum, channel.maximum, channel.mean) == (280, 300, 290)
    assert channel.missing_share == 0.25
    assert channel.values == 3
    assert channel.meaning == "2 m temperature"
    assert not channel.constant
    assert list(channel.warnings()) == []
    assert channel.remarks() == []


def test_a_plausible_file_has_no_notes():
    account = check_all(dataset([280, 290, 285, 300]))
    assert account.warnings() == account.problems() == []
    assert account.lines() == [
        "x.nc: 2 times, one each 6 h, from 2001-01-01T00:00 to 2001-01-01T06:00",
        "1 x 2 points, 50 to 50 degrees north, 0 to 1 degrees east",
        "t2m  2 m temperature  280 to 300 K, mean 288.75",
    ]


@pytest.mark.parametrize(
    ("values", "units", "note"),
    [
        ([280, 1e30, 290, 285], "K", "t2m has 1 of 4 values (25 %) outside of the plausible range 170 to 340 K"),
        ([280, -9999, 290, 285], "K", "t2m has 1 of 4 values (25 %) outside of the plausible range 170 to 340 K, from"),
        ([7, 20, 10, 2850], "degC", "outside of the plausible range -103.15 to 66.85 degC, from 7 to 2850"),
        (
            [1e6, 1e6, 1e7, 1e7],
            "K",
            "range 170 to 340 K, from 1e+06 to 1e+07; is it really in",
        ),
        ([280, np.inf, -np.inf, 285], "K", "t2m has infinite values, which are treated as missing: 2"),
        ([280, 280, 280, 280], "K", "t2m is constant (280): there is nothing to learn from it"),
        ([280, 290, np.nan, np.nan], "K", "t2m has no value at all at 1 time: no window reaches across"),
    ],
)
def test_what_a_person_should_look_at_is_noted(values, units, note):
    ds = dataset(values, units=units)
    before = ds.copy(deep=True)
    account = check_all(ds)
    assert any(note in text for text in account.warnings())
    assert any(line.startswith("note: ") and note in line for line in account.lines())
    assert ds.identical(before)


def test_infinite_values_count_as_missing_and_move_no_mean():
    channel = the_channel(dataset([280, np.inf, 290, np.nan]))
    assert (channel.infinities, channel.missing_share, channel.mean) == (1, 0.5, 285)


def test_opposite_infinities_do_not_hide_each_other():
    assert the_channel(dataset([np.inf, -np.inf, 280, 290])).infinities == 2


def test_points_never_observed_and_empty_times_are_counted():
    channel = the_channel(dataset([280, np.nan, 290, np.nan, np.nan, np.nan]))
    assert (channel.unobserved_points, channel.empty_times) == (1, 1)
    assert channel.remarks() == ["empty 1 time", "never observed 1 point"]


def test_an_unknown_variable_has_no_plausible_range():
    assert the_channel(dataset([1, 2, 3, 1e30], name="tracer", units="1")).plausible is None


def test_rain_below_zero_is_told_apart_from_too_much_of_it():
    channel = the_channel(dataset([0, -1, 5, 9000, 3, 2], name="tp", units="mm", hours=24, width=1))
    assert (channel.negative, channel.outside) == (1, 2)
    assert "tp has 1 value (16.7 %) below zero, down to -1 mm" in list(channel.warnings())


def test_temperature_may_be_below_zero():
    channel = the_channel(dataset([-5, 5, 0, 3], units="degC"))
    assert (channel.negative, channel.outside) == (0, 0)


def test_sums_are_exact_where_float32_would_lose_the_small_ones():
    values = np.full(2**20, 0.1, np.float32)
    values[0] = 2**24
    channel = the_channel(dataset(values, name="tracer", units="1", width=2**10))
    assert channel.mean == pytest.approx(values.astype(np.float64).mean(), rel=1e-12)


def test_each_level_has_its_own_account():
    levels = xr.concat([dataset([1, 2, 3, 4]), dataset([5, 6, 7, 8])], "level").assign_coords(level=[1000.0, 500.0])
    levels = levels.rename(t2m="z").transpose("time", "level", "lat", "lon")
    levels["z"].attrs["units"] = "m2 s-2"
    both = check(levels, [Channel("z", 1000.0), Channel("z", 500.0)]).channels
    assert [(c.name, c.minimum, c.maximum) for c in both] == [("z@1000hPa", 1, 4), ("z@500hPa", 5, 8)]
    (one,) = check(levels, [Channel("z", 500.0)]).channels
    assert (one.name, one.minimum) == ("z@500hPa", 5)


# Frozen fields


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 2, 3, 4, 3, 4, 5, 6], (1, 1, "2001-01-01T12:00")),
        ([1, 2, 1, 2, 1, 2, 5, 6, 5, 6], (3, 2, "2001-01-01T06:00")),
        ([1, 2, 3, 4, 1, 2, 3, 4], (0, 0, None)),
        ([0, 0, 0, 0, 1, 2], (0, 0, None)),  # no rain, twice
        ([1, 2, 2, 1], (0, 0, None)),  # the same lowest and highest value
    ],
)
def test_frozen_fields_repeat_the_one_before_unless_they_are_uniform(values, expected):
    channel = the_channel(dataset(values, name="tracer", units="1"))
    assert (channel.frozen_times, channel.longest_frozen_run, channel.first_frozen) == expected


@pytest.mark.parametrize(
    ("values", "frozen"),
    [
        ([1, 2, 3, np.nan, 1, 2, 3, np.nan], 1),
        ([1, 2, 3, np.nan, 1, 2, 3, 4], 1),  # three of four are there in both
        ([1, np.nan, np.nan, np.nan, 1, 2, 3, 4], 0),  # one of four says little
        ([1, 1, np.nan, 2, 1, 1, 2, np.nan], 0),  # uniform where both have values
        ([np.nan] * 8, 0),
        ([1, 2, 3, np.nan, 1, 2, 9, np.nan], 0),
    ],
)
def test_frozen_fields_are_compared_where_both_have_values(values, frozen):
    assert the_channel(dataset(values, name="tracer", units="1", width=4)).frozen_times == frozen


def test_the_same_drizzle_twice_is_not_a_frozen_field():
    drizzle = [0, 0, 0, 0, 0, 0, 0, 0.1]
    rain = [0, 0, 0, 0, 0, 0.2, 0.1, 0.1]
    channel = the_channel(dataset([drizzle, drizzle, rain, rain], name="tp", units="mm", width=8))
    assert (channel.frozen_times, channel.first_frozen) == (1, "2001-01-01T18:00")


def test_the_same_overcast_twice_is_not_a_frozen_field():
    overcast = [1, 1, 1, 1, 1, 1, 1, 0.9]
    assert the_channel(dataset([overcast, overcast], name="tcc", units="1", width=8)).frozen_times == 0


def test_a_frozen_record_is_noted():
    (note,) = check_all(dataset([281, 282, 281, 282, 281, 282, 285, 286])).warnings()
    assert note == (
        "t2m repeats the field before it point by point at 2 times (at most 2 in a row, first 2001-01-01T06:00): "
        "a frozen record?"
    )


# Units


@pytest.mark.parametrize(
    ("name", "units", "values", "looks_like"),
    [
        ("t2m", "K", [7, 20, 10, 15], "degC"),
        ("t2m", "degC", [280, 290, 285, 300], "K"),
        ("t2m", "degC", [70, 80, 75, 90], "degF"),
        ("t2m", "K", [280, 290, 285, 300], None),
        ("t2m", "K", [7e5, 7e6, 7e5, 7e6], None),
        ("msl", "Pa", [1000, 1010, 1020, 990], "hPa"),
        ("msl", "hPa", [100_000, 101_000, 102_000, 99_000], "Pa"),
        ("msl", "Pa", [100_000, 101_000, 102_000, 99_000], None),
        ("q", "kg kg-1", [5, 8, 12, 3], "g kg-1"),
        ("r", "%", [0.3, 0.9, 0.5, 0.2], "1"),
        ("tcc", "1", [0, 90, 50, 100], "%"),
        ("tp", "m", [0, 3, 12, 40], "mm"),
        ("tp", "m", [0, 0.003, 0.012, 0.04], None),
        ("tp", "mm", [0, 0.003, 0.012, 0.04], "m"),
        ("tp", "mm", [0, 3, 12, 40], None),
        ("tp", "mm", [0, 0, 0, 0], None),
        ("pr", "kg m-2 s-1", [0, 3, 12, 40], "mm d-1"),
        ("pr", "kg m-2 s-1", [0, 1e-5, 5e-4, 2e-5], None),
        ("z500", "m2 s-2", [5400, 5500, 5600, 5700], "m"),
        ("z500", "m", [54_000, 55_000, 56_000, 57_000], "m2 s-2"),
        ("z500", "m2 s-2", [54_000, 55_000, 56_000, 57_000], None),
        ("z500", "m", [5400, 5500, 5600, 5700], None),
        ("z", "m2 s-2", [5400, 5500, 5600, 5700], None),  # no level, no telling
        ("tracer", "K", [7, 20, 10, 15], None),
    ],
)
def test_the_units_that_the_values_look_like(name, units, values, looks_like):
    assert the_channel(dataset(values, name=name, units=units, hours=24)).looks_like == looks_like


def test_a_few_wrong_values_do_not_change_what_the_units_look_like():
    values = np.tile([7.0, 20.0], 50)
    values[10] = 1e20
    assert the_channel(dataset(values)).looks_like == "degC"


def test_doubtful_units_are_noted_instead_of_the_range():
    (note,) = check_all(dataset([7, 20, 10, 15])).warnings()
    assert note == (
        "t2m is declared in K, but its values (7 to 20, mean 13) look like degC: correct the units attribute"
    )


def test_the_level_of_a_coordinate_tells_geopotential_from_its_height():
    ds = dataset([5400, 5500, 5600, 5700], name="z", units="m2 s-2")
    ds = ds.expand_dims(level=[500.0]).transpose("time", "level", "lat", "lon")
    (channel,) = check(ds, [Channel("z", 500.0)]).channels
    assert channel.looks_like == "m"


# Axes


def test_holes_and_irregular_times_are_told():
    hours = [0, 6, 12, 30, 36, 37, 43]
    times = np.datetime64("2001-01-01", "ns") + np.array(hours) * np.timedelta64(1, "h")
    account = check_all(dataset(280 + np.arange(14), times=times))
    assert [vars(gap) for gap in account.gaps] == [
        {"before": "2001-01-01T12:00", "after": "2001-01-02T06:00", "missing_steps": 2}
    ]
    assert account.irregular_steps == 1
    assert account.warnings() == [
        "missing steps between 2001-01-01T12:00 and 2001-01-02T06:00: 2",
        "times that follow the one before in less than 6 h: 1",
    ]


def test_many_gaps_are_summed_up():
    days = np.concatenate([np.arange(3) + 10 * i for i in range(9)])
    times = np.datetime64("2001-01-01", "ns") + days * np.timedelta64(1, "D")
    told = check_all(dataset(280 + np.arange(54), times=times)).warnings()
    assert len(told) == 6
    assert told[-1] == "more gaps in time, across which no window reaches: 3"


def test_the_axes_are_told_as_they_are():
    ds = dataset(np.arange(8), width=4).assign_coords(lon=[0.0, 2.0, 4.0, 7.0])
    account = check(ds.assign(orography=(("lat", "lon"), np.zeros((1, 4)))), [Channel("t2m")])
    assert (account.lon.first, account.lon.last, account.lon.points, account.lon.spacing) == (0, 7, 4, None)
    assert account.static_fields == ("orography",)
    assert account.grid() == "1 x 4 points, 50 to 50 degrees north, 0 to 7 degrees east, unevenly spaced"
    assert not account.projected


@pytest.mark.parametrize(
    ("north", "east", "told"),
    [
        (1, 1, "every degree"),
        (2, 2, "every 2 degrees"),
        (0.5, 0.625, "every 0.5 (north) x 0.625 (east) degrees"),
    ],
)
def test_the_spacing_is_told_as_people_say_it(north, east, told):
    ds = xr.concat([dataset(np.arange(8), width=4), dataset(np.arange(8), width=4)], "lat", combine_attrs="override")
    ds = ds.assign_coords(lat=50 + north * np.arange(2.0), lon=east * np.arange(4.0))
    assert check(ds, [Channel("t2m")]).grid().endswith(f" degrees east, {told}")


def test_a_projected_grid_says_that_areas_are_equal():
    ds = dataset(np.arange(8), width=4)
    mesh = (("lat", "lon"), np.full((1, 4), 50.0))
    account = check_all(ds.assign_coords(latitude=mesh, longitude=mesh))
    assert account.projected
    assert account.grid() == "1 x 4 points of a projected grid, whose areas are taken as equal"


# What is impossible


@pytest.mark.parametrize("nothing", [np.nan, np.inf])
def test_a_variable_without_any_value_is_a_problem(nothing):
    account = check_all(dataset([nothing] * 4))
    (problem,) = account.problems()
    assert problem == "all values of 't2m' are missing. Leave it out with --variables or --levels."
    assert account.warnings() == []
    assert account.channels[0].remarks()[0] == "no values"
    assert any(problem in line for line in account.lines())


@pytest.mark.parametrize(
    ("ds", "problem"),
    [
        (dataset([280, 290]), "1 time in the file; a forecast needs a series of them."),
        (dataset([]), "0 times in the file; a forecast needs a series of them."),
        (
            dataset([280, 290, 285, 300]).assign_attrs(duplicate_times=3),
            "times that occur more than once: 3; mend the file with: convlstm-wx prepare --data FILE --output clean.nc",
        ),
        (
            dataset([280, 290, 285, 300]).assign_attrs(unsorted_times=2),
            "times that are earlier than the one before: 2; mend the file with: "
            "convlstm-wx prepare --data FILE --output clean.nc",
        ),
    ],
)
def test_what_makes_training_impossible_says_what_to_do(ds, problem):
    assert check_all(ds).problems()[0] == problem


def test_a_file_that_cannot_be_read_to_its_end_is_refused(monkeypatch):
    whole = xr.DataArray.values

    def broken(self):
        if self.name == "t2m":
            raise OSError("NetCDF: HDF error")
        return whole.fget(self)

    monkeypatch.setattr(xr.DataArray, "values", property(broken))
    with pytest.raises(DataError, match=r"x\.nc: 't2m' cannot be read to its end \(NetCDF: HDF error\)"):
        check(dataset([280, 290]), [Channel("t2m")])


# Piece by piece


@pytest.mark.parametrize("block_bytes", [8, 24, 2**20])
def test_piece_by_piece_is_the_same_as_at_once(monkeypatch, block_bytes):
    values = np.random.default_rng(0).normal(280, 10, (50, 1, 4)).astype(np.float32)
    values.ravel()[::7] = np.nan
    values[20] = values[21] = values[22] = [1, 2, 3, 4]
    ds = dataset(values, width=4)
    whole = check_all(ds)
    monkeypatch.setattr(quality, "BLOCK_BYTES", block_bytes)
    survey = Survey(ds, [Channel("t2m")])
    for start in (0, 1, 21, 22, 40):
        survey.add(0, values[start : {0: 1, 1: 21, 21: 22, 22: 40, 40: 50}[start]])
    pieces = survey.account()
    assert pieces.channels[0].frozen_times == 2
    assert pieces.channels[0].mean == pytest.approx(whole.channels[0].mean, rel=1e-12)
    assert replace(pieces.channels[0], mean=0.0) == replace(whole.channels[0], mean=0.0)


def test_reading_in_blocks_is_the_same_as_at_once(monkeypatch):
    values = np.random.default_rng(0).normal(280, 10, 200)
    whole = check_all(dataset(values))
    monkeypatch.setattr(quality, "READ_BYTES", 24)
    pieces = check_all(dataset(values))
    assert pieces.channels[0].mean == pytest.approx(whole.channels[0].mean, rel=1e-12)
    assert pieces.lines() == whole.lines()


def test_the_survey_keeps_no_hold_of_what_it_was_fed():
    ds = dataset([1, 2, 1, 2], name="tracer", units="1")
    survey, piece = Survey(ds, [Channel("tracer")]), np.array([[[1, 2]]], np.float32)
    survey.add(0, piece)
    piece[:] = 7  # the reader uses its array again
    survey.add(0, np.array([[[1, 2]]], np.float32))
    assert survey.account().channels[0].frozen_times == 1


def test_a_piece_without_any_time_changes_nothing():
    ds = dataset([280, 290, 285, 300])
    survey = Survey(ds, [Channel("t2m")])
    for piece in (ds["t2m"].values[:0], ds["t2m"].values):
        survey.add(0, piece)
    assert survey.account() == check_all(ds)


def test_values_beyond_float32_are_infinite_as_in_training():
    ds = dataset([280, 290, 285, 300]).astype(np.float64)
    ds["t2m"][0, 0, 0] = 1e300
    ds["t2m"].attrs["units"] = "K"
    assert the_channel(ds).infinities == 1


# For programs and people


def test_the_share_of_filled_values_is_told():
    ds = dataset([280, 290, 285, 300])
    ds = ds.assign_coords(t2m_filled=(("time", "lat", "lon"), np.array([[[1, 0]], [[0, 0]]], np.int8)))
    channel = the_channel(ds)
    assert channel.filled_share == 0.25
    assert channel.remarks() == ["filled 25 %"]
    assert the_channel(dataset([280, 290, 285, 300])).filled_share is None


@pytest.mark.parametrize("values", [[280, 290, 285, 300], [np.nan] * 4, [280, np.inf, 290, np.nan]])
def test_the_account_survives_json(values):
    account = check_all(dataset(values))
    text = json.dumps(account.to_dict(), allow_nan=False)
    again = Account.from_dict(json.loads(text))
    assert repr(again) == repr(account)  # NaN is not equal to itself
    assert json.loads(text)["problems"] == account.problems()


def test_many_channels_are_summed_up_by_variable():
    levels = [float(level) for level in range(100, 1000, 50)]
    ds = dataset([280, 290, 285, 300], name="t").expand_dims(level=levels).transpose("time", "level", "lat", "lon")
    account = check(ds, [Channel("t", level) for level in levels])
    assert account.lines()[2:] == ["t on 18 levels  temperature  280 to 300 K"]


def test_rows_are_aligned():
    assert aligned([["a", "1", ""], ["bbb", "22", ""]], right=(1,)) == ["a     1", "bbb  22"]
