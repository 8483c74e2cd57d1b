import calendar

import numpy as np
import pytest
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st

from convlstm_wx.data.reading import time_step
from convlstm_wx.data.splits import HELD_OUT, TRAIN, UNUSED, VALIDATION, Split, make_split, parse_periods
from convlstm_wx.errors import ConfigError, DataError

WINDOW = 8


def record(start: str, steps: int, step_hours: float = 24) -> np.ndarray:
    step = np.timedelta64(int(step_hours * 3600), "s")
    return (np.datetime64(start, "s") + np.arange(steps) * step).astype("datetime64[ns]")


def windows(times: np.ndarray, roles: np.ndarray, role: int, window: int = WINDOW) -> int:
    """How many stretches of consecutive times of one role are as long as a window."""
    step = time_step(times)
    inside = (roles[:-1] == role) & (roles[1:] == role) & (np.diff(times) == step)
    return sum(inside[i : i + window - 1].all() for i in range(len(times) - window + 1))


# Periods


@pytest.mark.parametrize(
    ("text", "inside", "outside", "described"),
    [
        ("2014-07", ["2014-07-01", "2014-07-31T23:59"], ["2014-06-30T23:59", "2014-08-01", "2015-07-01"], "2014-07"),
        ("07", ["2014-07-01", "1961-07-31T18"], ["2014-06-30", "2014-08-01"], "every July"),
        ("7", ["2014-07-15"], ["2014-08-01"], "every July"),
        ("12", ["1960-12-31", "2014-12-01"], ["2014-11-30", "2015-01-01"], "every December"),
        ("2014", ["2014-01-01", "2014-12-31T23:59"], ["2013-12-31T23:59", "2015-01-01"], "2014"),
        ("2014-07-15", ["2014-07-15", "2014-07-15T23"], ["2014-07-14T23", "2014-07-16"], "2014-07-15"),
        ("2009-01:2010-12", ["2009-01-01", "2010-12-31T18"], ["2008-12-31", "2011-01-01"], "2009-01 to 2010-12"),
        ("2009:2010-03", ["2009-01-01", "2010-03-31"], ["2010-04-01"], "2009 to 2010-03"),
    ],
)
def test_a_period_holds_its_times_to_the_last_second(text, inside, outside, described):
    periods = parse_periods([text])
    assert periods.contains(np.array(inside, "datetime64[ns]")).all()
    assert not periods.contains(np.array(outside, "datetime64[ns]")).any()
    assert periods.describe() == described


def test_several_periods_add_up_and_none_is_no_time():
    times = record("2014-01-01", 365)
    both = parse_periods(["2014-03", "07"])
    assert both.contains(times).sum() == 62
    assert both.describe() == "2014-03, every July"
    assert not parse_periods([]).contains(times).any()


@pytest.mark.parametrize(
    "text", ["", "13", "00", "July", "2014-13", "2014-02-30", "14-07", "2014/07", "2014-07:", "07:08"]
)
def test_what_is_no_period_is_refused(text):
    with pytest.raises(ConfigError, match=r"is not a period; write 2014-07 \(a month\), 07 \(every July\)"):
        parse_periods([text])


def test_a_period_that_ends_before_it_begins_is_refused():
    with pytest.raises(ConfigError, match="'2010-12:2009-01' ends before it begins"):
        parse_periods(["2010-12:2009-01"])


# The default split


RECORDS = {
    "9 years daily": (record("2000-01-01T12", 3288), "in whole months"),
    "48 years daily": (record("1961-01-01", 17_532), "in whole months"),
    "18 months 6-hourly": (record("2013-01-01", 2184, 6), "in whole months"),
    "9 months daily": (record("2024-01-01T12", 274), "in whole months"),
    "10 years monthly-like": (record("2000-01-01", 120, 30 * 24), "in whole months"),
    "one month 6-hourly": (record("2026-01-01", 124, 6), "by time"),
    "one week hourly": (record("2023-09-01", 168, 1), "by time"),
    "one day 10-minutely": (record("2023-09-01", 144, 1 / 6), "by time"),
    "the shortest": (record("2023-09-01", 5 * WINDOW - 2, 1), "by time"),
}


@pytest.mark.parametrize("name", RECORDS)
def test_every_length_of_record_is_split_in_order_with_an_embargo(name):
    times, method = RECORDS[name]
    split = make_split(times, window_steps=WINDOW)
    roles = split.roles(times)
    at = {role: np.flatnonzero(roles == role) for role in (TRAIN, VALIDATION, HELD_OUT)}
    assert method in split.method
    assert at[TRAIN][0] == 0
    assert at[HELD_OUT][-1] == len(times) - 1
    assert at[VALIDATION][0] - at[TRAIN][-1] == WINDOW
    assert at[HELD_OUT][0] - at[VALIDATION][-1] == WINDOW
    assert all(windows(times, roles, role) >= 1 for role in at)
    if len(times) > 100:
        assert 0.1 < (roles == HELD_OUT).mean() < 0.2
        assert 0.5 < (roles == TRAIN).mean() < 0.8


def test_long_records_are_split_at_the_ends_of_months():
    times = record("2000-01-01T12", 3288)
    roles = make_split(times, window_steps=WINDOW).roles(times)
    for role in (VALIDATION, HELD_OUT):
        assert str(times[roles == role][0].astype("datetime64[D]")).endswith("-01")


def test_the_lines_say_which_times_and_why():
    lines = make_split(record("2023-09-01", 168, 1), window_steps=WINDOW).lines()
    assert lines == [
        "training: 2023-09-01T00:00 to 2023-09-05T14:00",
        "validation: 2023-09-05T22:00 to 2023-09-06T15:00",
        "held out: 2023-09-06T23:00 to 2023-09-07T23:00",
        "split by time, as there are too few months: about 70 % training, then 15 % validation, "
        "then 15 % held out; 7 steps left out between the parts",
        "fingerprint of the split 8ad712840704b755",
    ]


# Chosen months


def test_held_out_months_are_held_out_and_validation_comes_last_of_the_rest():
    times = record("2000-01-01T12", 3288)
    split = make_split(times, window_steps=WINDOW, held_out=["2003"])
    roles = split.roles(times)
    assert set(times[roles == HELD_OUT].astype("datetime64[Y]").astype(str)) == {"2003"}
    assert (roles == HELD_OUT).sum() == 365
    assert times[roles == VALIDATION][-1] == times[-1]
    assert 0.1 < (roles == VALIDATION).mean() < 0.2
    assert split.lines()[-2].startswith("split held out as asked (2003), validation the last 15 % of the rest in whole")


def test_validation_months_are_kept_and_held_out_comes_last_of_the_rest():
    times = record("2000-01-01T12", 3288)
    roles = make_split(times, window_steps=WINDOW, validation=["2008"]).roles(times)
    assert set(times[roles == VALIDATION].astype("datetime64[Y]").astype(str)) == {"2008"}
    assert str(times[roles == HELD_OUT][-1])[:10] == "2007-12-31"


def test_every_july_can_be_held_out():
    times = record("2000-01-01T12", 3288)
    split = make_split(times, window_steps=WINDOW, held_out=["07"], validation=["2001", "2005-03"])
    roles = split.roles(times)
    july = times.astype("datetime64[M]").astype(int) % 12 == 6
    assert (roles[july] == HELD_OUT).all()
    assert not (roles[~july] == HELD_OUT).any()
    assert "in 9 pieces" in split.lines()[2]
    assert "held out as asked (every July), validation as asked (2001, 2005-03)" in split.method


def test_what_is_asked_for_twice_is_held_out():
    times = record("2000-01-01T12", 3288)
    roles = make_split(times, window_steps=WINDOW, held_out=["2003-07"], validation=["2003"]).roles(times)
    assert (roles[times.astype("datetime64[M]") == np.datetime64("2003-07")] == HELD_OUT).all()


def test_days_can_be_held_out_of_a_short_record():
    times = record("2023-09-01", 168, 1)
    roles = make_split(times, window_steps=WINDOW, held_out=["2023-09-03"]).roles(times)
    assert (roles == HELD_OUT).sum() == 24
    assert windows(times, roles, VALIDATION) > 0


def test_one_month_left_by_the_held_out_ones_is_shared_by_time():
    times = record("2014-01-01", 365)
    split = make_split(times, window_steps=5, held_out=["2014-01:2014-11"])
    assert "by time" in split.method
    assert windows(times, split.roles(times), VALIDATION, 5) > 0


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        (
            {"held_out": ["2014-07"]},
            "--held-out-months 2014-07: no time of the data lies there; it covers 2000-01-01",
        ),
        ({"validation": ["2003", "1999"]}, "--validation-months 1999: no time of the data"),
        ({"held_out": ["2000:2008"]}, "leave no window of 8 steps for training"),
        ({"held_out": ["2000:2004"], "validation": ["2005:2008"]}, "no window of 8 steps for training.*Choose other"),
        ({"held_out": ["2003"], "validation": ["2003-07"]}, "no window of 8 steps for validation"),
        ({"held_out": ["2003-01-01:2003-01-03"]}, "no window of 8 steps for holding out"),
    ],
)
def test_months_that_leave_nothing_are_refused(options, fragment):
    with pytest.raises(ConfigError, match=fragment):
        make_split(record("2000-01-01T12", 3288), window_steps=WINDOW, **options)


@pytest.mark.parametrize("steps", [2, 7, 8, 20, 5 * WINDOW - 3])
def test_too_short_a_record_says_how_many_times_it_needs(steps):
    with pytest.raises(
        DataError, match=rf"the {steps} times of the data .* at least 38 times.*--input-steps"
    ) as raised:
        make_split(record("2000-01-01", steps), window_steps=WINDOW)
    assert "\n" not in str(raised.value)


def test_calendar_months_are_no_equal_steps_and_that_is_said():
    months = np.arange("1980-01", "2000-01", dtype="datetime64[M]").astype("datetime64[ns]")
    with pytest.raises(DataError, match=r"leave no window .*: they are 28 d to 31 d apart, but a window needs equal"):
        make_split(months, window_steps=WINDOW)


# What holds for every split


@pytest.fixture(scope="module")
def split() -> Split:
    return make_split(record("2000-01-01T12", 3288), window_steps=WINDOW, held_out=["07"])


def test_a_split_goes_there_and_back(split):
    assert Split.from_dict(split.to_dict()) == split
    assert type(split.to_dict()["train"][0][0]) is str


def test_a_longer_file_changes_no_role_and_its_new_times_are_unused(split):
    times, longer = record("2000-01-01T12", 3288), record("1999-01-01T12", 5000)
    roles = split.roles(longer)
    known = np.isin(longer, times)
    assert (roles[known] == split.roles(times)).all()
    assert (roles[~known] == UNUSED).all()


STEP_HOURS = st.sampled_from([1, 3, 6, 12, 24, 120])


@st.composite
def records(draw) -> np.ndarray:
    """Times with gaps, of any length and step."""
    day = draw(st.integers(1, calendar.monthrange(2000, 2)[1]))
    times = record(f"2000-02-{day:02d}", draw(st.integers(20, 2000)), draw(STEP_HOURS))
    kept = np.ones(len(times), bool)
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(times) - 1))
        kept[start : start + draw(st.integers(1, 100))] = False
    assume(kept.sum() > 2)
    return times[kept]


def periods_of(times: np.ndarray) -> st.SearchStrategy[list[str]]:
    """Up to two of the record's own months, years and calendar months."""
    months = np.unique(times.astype("datetime64[M]").astype(str)).tolist()
    texts = {*months, *(month[:4] for month in months), *(month[5:] for month in months)}
    return st.lists(st.sampled_from(sorted(texts)), max_size=2)


@settings(max_examples=300, deadline=None)
@given(data=st.data(), times=records(), window=st.integers(2, 20))
def test_no_split_leaks_whatever_the_calendar_gaps_and_months(data, times, window):
    held_out, validation = data.draw(periods_of(times)), data.draw(periods_of(times))
    try:
        split = make_split(times, window_steps=window, held_out=held_out, validation=validation)
    except (ConfigError, DataError):
        event("refused")
        return
    event("split")
    roles = split.roles(times)
    step = time_step(times)
    for role, more_protected in ((TRAIN, (VALIDATION, HELD_OUT)), (VALIDATION, (HELD_OUT,))):
        mine, others = times[roles == role], times[np.isin(roles, more_protected)]
        assert np.abs(mine[:, None] - others[None, :]).min() > (window - 1) * step
    assert all(windows(times, roles, role, window) >= 1 for role in (TRAIN, VALIDATION, HELD_OUT))
    assert Split.from_dict(split.to_dict()) == split
    if held_out:
        assert ((roles == HELD_OUT) == parse_periods(held_out).contains(times)).all()
    if validation:
        assert parse_periods(validation).contains(times)[roles == VALIDATION].all()
    longer = np.concatenate([times, times[-1] + np.arange(1, 9) * step])
    assert (split.roles(longer) == np.concatenate([roles, np.full(8, UNUSED)])).all()
