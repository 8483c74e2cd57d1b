"""What is held out stays out: over any calendar, with any gaps and options."""

import warnings

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from convlstm_wx.conventions import Channel
from convlstm_wx.data.normalise import StatisticsFit
from convlstm_wx.data.splits import HELD_OUT, TRAIN, VALIDATION, Split, make_split
from convlstm_wx.data.windows import init_indices
from convlstm_wx.errors import ConfigError, DataError

PERIODS = ["2001-07", "07", "2001", "12", "2001-03:2001-04", "2002-01-05", "2000-12-20:2001-01-10"]


@st.composite
def calendars(draw) -> tuple[np.ndarray, np.timedelta64]:
    """Increasing times with a most common step, some of them missing, and a gap of any length."""
    hours = draw(st.sampled_from([1, 3, 6, 24]))
    count = draw(st.integers(60, 900))
    start = np.datetime64(draw(st.sampled_from(["2000-11-03", "2001-01-01T06", "2001-06-30T18"])), "h")
    offsets = np.arange(count)
    offsets[draw(st.integers(0, count)) :] += draw(st.integers(0, 5000))
    keep = np.ones(count, bool)
    for at in draw(st.lists(st.integers(0, count - 1), max_size=12)):
        keep[at : at + draw(st.integers(1, 3))] = False
    assume(keep.sum() > 10)
    times = (start + offsets[keep] * hours).astype("datetime64[ns]")
    steps, counts = np.unique(np.diff(times), return_counts=True)
    return times, steps[counts.argmax()]


def window_times(times, step, roles, role, input_steps, lead_steps) -> np.ndarray:
    """All times that the windows of a role hold."""
    at = init_indices(times, step, roles == role, input_steps=input_steps, lead_steps=lead_steps)
    return np.unique(at[:, None] + np.arange(1 - input_steps, lead_steps + 1))


@settings(max_examples=300, deadline=None)
@given(
    calendar=calendars(),
    input_steps=st.integers(1, 6),
    lead_steps=st.integers(1, 6),
    held_out=st.lists(st.sampled_from(PERIODS), max_size=2),
    validation=st.lists(st.sampled_from(PERIODS), max_size=2),
    seed=st.integers(0, 1000),
)
def test_no_time_of_a_held_out_or_validation_window_is_trained_on_or_in_the_statistics(
    calendar, input_steps, lead_steps, held_out, validation, seed
):
    times, step = calendar
    length = input_steps + lead_steps
    try:
        split = make_split(times, window_steps=length, held_out=held_out, validation=validation)
    except (ConfigError, DataError):
        assume(False)
    roles = split.roles(times)
    held = {
        role: window_times(times, step, roles, role, input_steps, lead_steps) for role in (TRAIN, VALIDATION, HELD_OUT)
    }
    protected = np.union1d(held[VALIDATION], held[HELD_OUT])
    assert not np.intersect1d(held[TRAIN], protected).size
    assert not np.intersect1d(held[VALIDATION], held[HELD_OUT]).size
    # Nor is one next to it: a window's length less one step lies between them.
    apart = np.abs(times[held[TRAIN]][:, None] - times[protected][None, :]).min()
    assert apart >= length * step
    assert (roles[protected] != TRAIN).all()
    assert_statistics_do_not_move(times, step, roles == TRAIN, seed)
    assert Split.from_dict(split.to_dict()).roles(times).tolist() == roles.tolist()


def assert_statistics_do_not_move(times, step, training, seed):
    """Whatever stands at other times, missing or absurd, the statistics are the same to the last bit."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(len(times), 2, 2, 3)).astype(np.float32)
    disturbed = values.copy()
    disturbed[~training] = rng.choice([np.nan, 1e9, -3.0], size=disturbed[~training].shape)
    first, second = (statistics(each, times, step, training) for each in (values, disturbed))
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


def statistics(values, times, step, training) -> dict:
    channels, attributes = [Channel("t2m"), Channel("tp")], [{"units": "K"}, {"units": "mm"}]
    fit = StatisticsFit(values.shape[1:], times, training, channels, attributes, step)
    for start in range(0, len(times), 100):
        piece = slice(start, min(start + 100, len(times)))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fit.add(piece, values[piece])
    return fit.statistics().to_dict()
