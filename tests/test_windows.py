"""Windows: which times they hold, and where they may not go."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from convlstm_wx.data.forcings import Forcings, clock
from convlstm_wx.data.loaders import forcing_fields, load_batches
from convlstm_wx.data.regions import Grid
from convlstm_wx.data.windows import Source, Windows, init_indices

DAY = np.timedelta64(1, "D")


def days(count: int) -> np.ndarray:
    return np.datetime64("2001-01-01", "ns") + np.arange(count) * DAY


def source_of(values: np.ndarray, masks: int = 0) -> Source:
    height, width = values.shape[2:]
    grid = Grid(tuple(map(float, range(height))), tuple(map(float, range(width))))
    observed = np.ones((len(values), masks, height, width), bool)
    return Source(values, observed, Forcings(grid, np.empty((0, height, width), np.float32)))


def forcing_at(times: list[str], lat: float, lon: float) -> np.ndarray:
    """The forcing channels at one point, [S, F]."""
    places = Forcings(Grid((lat,), (lon,)), np.empty((0, 1, 1), np.float32)).places
    numbers = torch.from_numpy(clock(np.array(times, "datetime64[ns]")))
    return forcing_fields(numbers[None], torch.from_numpy(places))[0, :, :, 0, 0].numpy()


def windows_of_ten(*, input_steps: int = 3, lead_steps: int = 2) -> Windows:
    """Time t holds t at channel 0 and 100 + t at channel 1; all ten days are allowed."""
    t = np.arange(10, dtype=np.float32)
    values = np.stack([t, 100 + t], axis=1)[:, :, None, None] * np.ones((1, 1, 1, 2), np.float32)
    at = init_indices(days(10), DAY, np.ones(10, bool), input_steps=input_steps, lead_steps=lead_steps)
    return Windows(source_of(values), (), days(10), DAY, at, input_steps, lead_steps, [1], [-1])


def test_window_target_starts_right_after_the_input():
    batch = windows_of_ten().gather([0, 5])
    assert batch.x_BTCHW[:, :, 0, 0, 0].tolist() == [[0, 1, 2], [5, 6, 7]]
    assert batch.y_BLDHW[:, :, 0, 0, 0].tolist() == [[103, 104], [108, 109]]


def test_ten_times_hold_six_windows_of_three_and_two():
    assert len(windows_of_ten()) == 6
    assert len(windows_of_ten(input_steps=8, lead_steps=2)) == 1
    assert len(windows_of_ten(input_steps=9, lead_steps=2)) == 0


def test_forcing_covers_inputs_and_leads():
    windows = windows_of_ten()
    batch = windows.gather([1])
    np.testing.assert_array_equal(batch.clock_BSG[0], clock(days(10)[1:6]))


def test_a_batch_is_the_same_however_it_is_cut():
    windows = windows_of_ten()
    both = windows.gather([4, 1])
    np.testing.assert_array_equal(both.x_BTCHW[1], windows.gather([1]).x_BTCHW[0])


def test_missing_targets_are_marked_by_their_own_mask():
    values = np.zeros((10, 2, 1, 2), np.float32)
    source = source_of(values, masks=1)
    source.observed_NMHW[4, 0, 0, 1] = False
    windows = Windows(source, (), days(10), DAY, np.array([2, 3]), 2, 2, [0, 1], [-1, 0])
    batch = windows.gather([0, 1])
    assert batch.x_BTCHW.shape[2] == 3  # two fields and a mask
    assert batch.valid_BLDHW[0, :, 0].min() == 1  # channel 0 has no gaps
    assert batch.valid_BLDHW[0, :, 1, 0].tolist() == [[1, 1], [1, 0]]  # lead 2 of init 2 is time 4
    assert batch.valid_BLDHW[1, :, 1, 0].tolist() == [[1, 0], [1, 1]]


def test_upstream_input_ends_with_its_forcing_and_never_reaches_the_leads():
    values = np.arange(10, dtype=np.float32)[:, None, None, None] * np.ones((1, 1, 3, 4), np.float32)
    windows = Windows(source_of(values), (source_of(values),), days(10), DAY, np.array([5]), 3, 2, [0], [-1])
    (batch,) = load_batches(windows, [np.array([0])], torch.device("cpu"))
    (upstream,) = batch.upstream
    assert torch.equal(upstream[:, :, 1:], batch.forcing_BSFHW[:, :3])
    assert batch.forcing_BSFHW.shape[1] == 5
    assert upstream.shape == (1, 3, 1 + len(Forcings.NAMES), 3, 4)
    assert upstream[0, :, 0, 0, 0].tolist() == [3, 4, 5]


@settings(max_examples=200, deadline=None)
@given(
    steps=st.lists(st.sampled_from([1, 1, 1, 1, 2, 5]), min_size=0, max_size=40),
    allowed=st.lists(st.booleans(), min_size=41, max_size=41),
    input_steps=st.integers(1, 4),
    lead_steps=st.integers(0, 4),
)
def test_no_window_crosses_a_gap_or_a_split_and_none_is_forgotten(steps, allowed, input_steps, lead_steps):
    times = np.datetime64("2001-01-01", "ns") + np.cumsum([0, *steps]) * DAY
    may = np.array(allowed[: len(times)])
    found = set(init_indices(times, DAY, may, input_steps=input_steps, lead_steps=lead_steps).tolist())
    for index in range(len(times)):
        span = np.arange(index - input_steps + 1, index + lead_steps + 1)
        inside = span[0] >= 0 and span[-1] < len(times)
        fits = inside and may[span].all() and (np.diff(times[span]) == DAY).all()
        assert (index in found) == bool(fits)


@pytest.mark.parametrize(
    ("time", "lat", "lon", "expected"),
    [
        ("2001-03-20T12:00", 0.0, 0.0, 1.0),  # equinox, noon on the equator: overhead
        ("2001-03-20T00:00", 0.0, 0.0, 0.0),  # midnight
        ("2001-06-21T12:00", 23.44, 0.0, 1.0),  # solstice on the tropic
        ("2001-06-21T00:00", 80.0, 0.0, np.cos(np.deg2rad(90 - 13.44))),  # midnight sun, 13.4 degrees high
        ("2001-12-21T12:00", 80.0, 0.0, 0.0),  # polar night
        ("2001-03-20T06:00", 0.0, 90.0, 1.0),  # noon comes six hours earlier at 90 E
    ],
)
def test_the_sun_stands_where_it_does(time, lat, lon, expected):
    at = forcing_at([time], lat, lon)
    assert at[0, 4] == pytest.approx(expected, abs=0.02)


def test_season_and_hour_turn_in_full_circles():
    at = forcing_at(["2001-01-01T00", "2001-01-01T06", "2001-07-02T15"], 0.0, 0.0)
    np.testing.assert_allclose(at[0, :4], [1, 0, 1, 0], atol=1e-6)
    np.testing.assert_allclose(at[1, 2:4], [0, 1], atol=1e-6)
    np.testing.assert_allclose(at[2, 0], -1, atol=1e-3)
