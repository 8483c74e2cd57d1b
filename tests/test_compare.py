"""Two evaluations on common pairs: who is better, by how much, and is it luck."""

import re

import numpy as np
import pytest
import xarray as xr

from convlstm_wx.errors import DataError
from convlstm_wx.verification.compare import compare, open_scores, sentences

DAY = np.timedelta64(24, "h").astype("timedelta64[ns]")


def make_scores(better: float = 0.0, n: int = 300, start: int = 0, leads: int = 2, seed: int = 0) -> xr.Dataset:
    """Scores as evaluate gives them, as far as compare reads them; the model's MSE is 10 + weather - better."""
    init_times = np.datetime64("2000-01-01", "ns") + (start + np.arange(n)) * DAY
    weather = np.random.default_rng(0).standard_normal(2000)[start : start + n]  # the same for both evaluations
    own = 0.2 * np.random.default_rng(seed).standard_normal((leads, n))
    mse = np.stack([10 + weather + own - better, np.tile(20 + weather, (leads, 1))])[:, None]
    lead_times = np.arange(1, leads + 1) * DAY
    return xr.Dataset(
        {
            "mse_by_init": (("system", "channel", "lead_time", "init_time"), mse),
            "weight_by_init": (("channel", "lead_time", "init_time"), np.full((1, leads, n), 9.0)),
        },
        {
            "system": ["model", "persistence"],
            "channel": ["t850"],
            "units": ("channel", ["K"]),
            "lead_time": lead_times,
            "lead_hours": ("lead_time", lead_times / np.timedelta64(1, "h")),
            "init_time": init_times,
        },
    )


def test_gain_is_positive_and_sure_where_a_is_better():
    gains = compare(make_scores(better=1.0, seed=1), make_scores(seed=2))
    np.testing.assert_allclose(gains["gain"], 0.1, atol=0.01)
    assert (gains["gain_low"] > 0.08).all()
    assert (gains["mse_difference_high"] < 0).all()
    assert sentences(gains)[0].startswith("t850: A beats B at every lead time. MSE against B: -10.")


def test_what_is_hard_for_both_cancels():
    # The weather varies by 1, the difference is 0.1: told apart because the pairs share the weather.
    gains = compare(make_scores(better=0.1, seed=1), make_scores(seed=2))
    assert (gains["gain_low"] > 0).all()


def test_no_difference_is_said_as_such():
    gains = compare(make_scores(seed=1), make_scores(seed=2))
    assert sentences(gains)[0].startswith("t850: A shows no significant difference from B at every lead time.")


def test_exchanging_a_and_b_turns_the_difference():
    one, other = make_scores(better=0.5, seed=1), make_scores(seed=2)
    ab, ba = compare(one, other), compare(other, one)
    np.testing.assert_allclose(ab["mse_difference"], -ba["mse_difference"])
    np.testing.assert_allclose(ab["mse_difference_low"], -ba["mse_difference_high"], rtol=0.1)


def test_only_common_channels_lead_times_and_init_times_count():
    gains = compare(make_scores(leads=3, n=200), make_scores(leads=2, start=50, n=300))
    assert gains.sizes["lead_time"] == 2
    assert (gains["pairs"] == 150).all()


def test_pairs_scored_on_other_points_are_left_out_and_counted():
    b = make_scores(seed=2)
    b["mse_by_init"][1, :, :, :100] += 1.0  # persistence differs: other points or another truth
    gains = compare(make_scores(seed=1), b)
    assert (gains["pairs"] == 200).all()
    assert gains.attrs["pairs_left_out"] == 200  # 100 init times at 2 lead times


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b.assign_coords(channel=["t2m"]), "no channels in common"),
        (lambda b: b.assign_coords(lead_time=b["lead_time"] + DAY * 50), "no lead times in common"),
        (lambda b: b.assign_coords(init_time=b["init_time"] + DAY * 5000), "no init times in common"),
        (lambda b: b.assign_coords(units=("channel", ["degC"])), "other units for t850"),
        (lambda b: b.assign(mse_by_init=b["mse_by_init"] + 1), "scored on different points or truths"),
    ],
)
def test_what_cannot_be_compared_is_an_error_that_says_why(change, message):
    with pytest.raises(DataError, match=re.escape(message)):
        compare(make_scores(), change(make_scores()))


def test_scores_are_opened_from_a_file_or_its_folder(tmp_path):
    make_scores().to_netcdf(tmp_path / "scores.nc")
    xr.testing.assert_equal(open_scores(tmp_path), open_scores(tmp_path / "scores.nc"))
    assert open_scores(tmp_path)["lead_time"].dtype == "timedelta64[ns]"


def test_what_holds_no_scores_is_an_error_that_names_the_file(tmp_path):
    (tmp_path / "text.nc").write_text("no scores")
    xr.Dataset({"t2m": 1.0}).to_netcdf(tmp_path / "other.nc")
    for path, message in (
        (tmp_path, "scores.nc"),
        (tmp_path / "text.nc", "text.nc"),
        (tmp_path / "other.nc", "other.nc"),
    ):
        with pytest.raises(DataError, match=message):
            open_scores(path)
