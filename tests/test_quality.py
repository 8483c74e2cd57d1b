import json

import numpy as np
import pytest
import xarray as xr

from convlstm_wx.data import quality
from convlstm_wx.errors import DataError


def dataset(values, *, units="K", name="t2m", times=None) -> xr.Dataset:
    values = np.asarray(values, np.float32).reshape(-1, 1, 2)
    if times is None:
        times = np.datetime64("2001-01-01", "ns") + np.arange(len(values)) * np.timedelta64(6, "h")
    return xr.Dataset(
        {name: (("time", "lat", "lon"), values, {"units": units})},
        {"time": times, "lat": [50.0], "lon": [0.0, 1.0]},
        {"source": "x.nc"},
    )


def the_channel(ds: xr.Dataset) -> quality.ChannelAccount:
    return quality.check(ds, list(ds.data_vars)).channels[0]


def test_the_account_counts_what_is_there():
    channel = the_channel(dataset([280, 290, np.nan, 300]))
    assert (channel.minimum, channel.maximum, channel.mean) == (280, 300, 290)
    assert channel.missing_share == 0.25
    assert channel.values == 3
    assert channel.meaning == "2 m temperature"
    assert not channel.constant
    assert channel.line() == "t2m (2 m temperature): 280 to 300 K, mean 290, 25 % missing"
    assert list(channel.warnings()) == []


def test_a_plausible_file_has_no_notes():
    account = quality.check(dataset([280, 290, 285, 300]), ["t2m"])
    assert account.warnings() == []
    assert account.lines()[0] == (
        "x.nc: 2 times, one each 6 h, from 2001-01-01T00:00 to 2001-01-01T06:00; "
        "1 x 2 points, 50 to 50 degrees north, 0 to 1 degrees east"
    )


@pytest.mark.parametrize(
    ("values", "units", "note"),
    [
        ([280, 1e30, 290, 285], "K", "t2m has 1 of 4 values (25 %) outside of the plausible range 170 to 340 K"),
        ([280, -9999, 290, 285], "K", "t2m has 1 of 4 values (25 %) outside of the plausible range 170 to 340 K"),
        ([7, 20, 10, 285], "degC", "outside of the plausible range -103.15 to 66.85 degC"),
        (
            [7, 20, 10, 15],
            "K",
            "t2m has 4 of 4 values (100 %) outside of the plausible range 170 to 340 K; is it",
        ),
        ([280, np.inf, -np.inf, 285], "K", "t2m has infinite values, which are treated as missing: 2"),
        ([280, 280, 280, 280], "K", "t2m is constant (280): there is nothing to learn from it"),
    ],
)
def test_what_a_person_should_look_at_is_noted(values, units, note):
    ds = dataset(values, units=units)
    before = ds.copy(deep=True)
    account = quality.check(ds, ["t2m"])
    assert any(note in text for text in account.warnings())
    assert any(line.startswith("note: ") and note in line for line in account.lines())
    assert ds.identical(before)


def test_infinite_values_count_as_missing_and_move_no_mean():
    channel = the_channel(dataset([280, np.inf, 290, np.nan]))
    assert (channel.infinities, channel.missing_share, channel.mean) == (1, 0.5, 285)


def test_an_unknown_variable_has_no_plausible_range():
    assert the_channel(dataset([1, 2, 3, 1e30], name="tracer", units="1")).plausible is None


def test_each_level_has_its_own_account():
    levels = xr.concat([dataset([1, 2, 3, 4]), dataset([5, 6, 7, 8])], "level").assign_coords(level=[1000.0, 500.0])
    levels = levels.rename(t2m="z").transpose("time", "level", "lat", "lon")
    levels["z"].attrs["units"] = "m2 s-2"
    channels = quality.check(levels, ["z"]).channels
    assert [(c.name, c.minimum, c.maximum) for c in channels] == [("z@1000hPa", 1, 4), ("z@500hPa", 5, 8)]


def test_a_variable_without_any_value_is_refused():
    with pytest.raises(DataError, match=r"x\.nc: all values of 't2m' are missing.*--variables"):
        quality.check(dataset([np.nan] * 4), ["t2m"])
    with pytest.raises(DataError, match="all values of 't2m' are missing"):
        quality.check(dataset([np.inf] * 4), ["t2m"])


def test_holes_and_irregular_times_are_told():
    hours = [0, 6, 12, 30, 36, 37, 43]
    times = np.datetime64("2001-01-01", "ns") + np.array(hours) * np.timedelta64(1, "h")
    account = quality.check(dataset(280 + np.arange(14), times=times), ["t2m"])
    assert account.gaps == (quality.Gap("2001-01-01T12:00", "2001-01-02T06:00", 2),)
    assert account.irregular_steps == 1
    assert account.warnings() == [
        "missing steps between 2001-01-01T12:00 and 2001-01-02T06:00: 2",
        "times that follow the one before in less than 6 h: 1",
    ]


def test_many_gaps_are_summed_up():
    days = np.concatenate([np.arange(3) + 10 * i for i in range(9)])
    times = np.datetime64("2001-01-01", "ns") + days * np.timedelta64(1, "D")
    told = quality.check(dataset(280 + np.arange(54), times=times), ["t2m"]).warnings()
    assert len(told) == 6
    assert told[-1] == "more gaps in time, across which no window reaches: 3"


def test_block_by_block_is_the_same_as_at_once(monkeypatch):
    values = np.random.default_rng(0).normal(280, 10, 200)
    values[::7] = np.nan
    whole = quality.check(dataset(values), ["t2m"])
    monkeypatch.setattr(quality, "READ_BYTES", 24)
    pieces = quality.check(dataset(values), ["t2m"])
    assert pieces.channels[0].mean == pytest.approx(whole.channels[0].mean, rel=1e-12)
    assert pieces.channels[0].line() == whole.channels[0].line()


def test_the_account_is_plain_enough_for_json():
    account = quality.check(dataset([280, 290, 285, 300]), ["t2m"])
    assert json.loads(json.dumps(account.to_dict()))["channels"][0]["maximum"] == 300
