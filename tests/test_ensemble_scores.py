"""Ensembles: scores by hand and against the `scores` library; a reliable ensemble looks reliable, a narrow one not."""

import numpy as np
import pytest
import scores.probability
import xarray as xr

from convlstm_wx.verification import ensembles
from convlstm_wx.verification.ensembles import averaged, by_init, sums
from convlstm_wx.verification.events import Threshold
from convlstm_wx.verification.pairs import Pairs
from convlstm_wx.verification.summary import _ensemble_verdict

ZERO = [Threshold("0", 0.0, 0.0)]
EQUAL = xr.DataArray(np.ones(4), dims="lat")


def pairs(members: np.ndarray, truth: np.ndarray) -> Pairs:
    """Pairs of arrays [realization, init_time, lat, lon] and [init_time, lat, lon]."""
    dims = ("init_time", "lat", "lon")
    of_members = xr.DataArray(members, dims=("realization", *dims))
    observed = xr.DataArray(truth, dims=dims)
    systems = of_members.mean("realization").expand_dims(system=["model"])
    return Pairs(systems, observed, xr.zeros_like(observed), observed.sum(("lat", "lon")), of_members)


def ensemble(n_members: int, spread: float, inits: int = 400, seed: int = 0) -> Pairs:
    """A foreseeable part, and a truth and members that scatter about it: truth by 1, members by `spread`."""
    generator = np.random.default_rng(seed)
    foreseen = generator.standard_normal((inits, 4, 5))
    truth = foreseen + generator.standard_normal(foreseen.shape)
    return pairs(foreseen + spread * generator.standard_normal((n_members, *foreseen.shape)), truth)


def whole(given: Pairs) -> xr.Dataset:
    assert given.members is not None
    means = by_init(given, EQUAL).assign(weight=("init_time", np.ones(given.truth.sizes["init_time"])))
    return averaged(means, sums(given, ZERO), given.members.sizes["realization"])


def test_fair_crps_by_hand():
    # Members 0 and 2, truth 3: mean distance (3 + 1) / 2 = 2; mean distance between two different members 2, half of it
    # off: 1.
    given = pairs(np.array([0.0, 2.0])[:, None, None, None] * np.ones((2, 1, 4, 5)), 3 * np.ones((1, 4, 5)))
    assert by_init(given, EQUAL)["crps"].item() == pytest.approx(1.0)


def test_the_crps_of_a_normal_distribution_is_that_of_very_many_members():
    rng = np.random.default_rng(0)
    error, spread = rng.normal(size=(3, 4, 5)), rng.uniform(0.5, 2, (4, 5))
    members = error[None] + spread * rng.standard_normal((4000, 1, 4, 5))
    given = pairs(members, np.zeros_like(error))
    drawn = scores.probability.crps_for_ensemble(given.members, given.truth, "realization", preserve_dims="all")
    found = ensembles.normal_crps(xr.DataArray(error, dims=given.truth.dims), spread)
    np.testing.assert_allclose(found, drawn, atol=0.05)
    certain = ensembles.normal_crps(xr.DataArray(error, dims=given.truth.dims), 0 * spread)
    np.testing.assert_allclose(certain, abs(error), rtol=1e-6)


def test_fair_crps_of_a_perfect_ensemble_does_not_depend_on_its_size():
    small, large = (float(whole(ensemble(n, 1.0))["crps"]) for n in (2, 30))
    assert small == pytest.approx(large, rel=0.03)
    assert small == pytest.approx(1 / np.sqrt(np.pi), rel=0.03)  # of a Gaussian with the spread of the truth


def test_spread_of_a_reliable_ensemble_equals_the_error_of_its_mean():
    given = ensemble(5, 1.0)
    rmse = float(((given.systems.sel(system="model") - given.truth) ** 2).mean() ** 0.5)
    assert float(whole(given)["spread"]) == pytest.approx(rmse, rel=0.03)
    narrow = ensemble(5, 0.3)
    assert float(whole(narrow)["spread"]) < 0.5


def test_rank_histogram_equals_the_scores_library_ties_too():
    generator = np.random.default_rng(1)
    members, truth = generator.integers(0, 4, (5, 60, 4, 5)), generator.integers(0, 4, (60, 4, 5))
    given = pairs(members.astype(float), truth.astype(float))
    expected = scores.probability.rank_histogram(given.members, given.truth, "realization")
    np.testing.assert_allclose(whole(given)["rank_histogram"], expected, atol=1e-10)


def test_ranks_of_a_reliable_ensemble_are_flat_and_of_a_narrow_one_high_at_both_ends():
    flat, narrow = (whole(ensemble(4, spread))["rank_histogram"].values for spread in (1.0, 0.3))
    np.testing.assert_allclose(flat, 0.2, atol=0.02)
    assert narrow[0] > 0.3
    assert narrow[-1] > 0.3


def test_probabilities_of_a_reliable_ensemble_come_true():
    found = whole(ensemble(10, 1.0, inits=3000))
    reliability = found["reliability"].isel(threshold=0)
    # With ten members, not endless ones, the line is a little flatter than the diagonal.
    np.testing.assert_allclose(reliability, found["probability"], atol=0.1)
    assert int(found["probability_count"].sum()) == 3000 * 20
    narrow = whole(ensemble(10, 0.2, inits=3000))["reliability"].isel(threshold=0)
    assert float(narrow[0]) > 0.15
    assert float(narrow[-1]) < 0.85


def test_the_crps_with_missing_points_is_the_weighted_mean_over_the_others():
    given = ensemble(3, 1.0, inits=5)
    there = xr.DataArray(np.random.default_rng(1).random((5, 4, 5)) < 0.7, dims=given.truth.dims)
    members, truth = given.members.where(there), given.truth.where(there)
    holed = Pairs(given.systems.where(there), truth, given.usual, given.lost, members)
    weights = xr.DataArray([1.0, 2.0, 3.0, 4.0], dims="lat")
    each = scores.probability.crps_for_ensemble(members, truth, "realization", method="fair", preserve_dims="all")
    expected = each.weighted(weights).mean(("lat", "lon"))
    np.testing.assert_allclose(by_init(holed, weights)["crps"], expected, rtol=1e-12)


def test_brier_score_by_hand():
    # Probability 1/2 everywhere; the event happens: (1/2)^2.
    given = pairs(np.array([-1.0, 1.0])[:, None, None, None] * np.ones((2, 1, 4, 5)), np.ones((1, 4, 5)))
    assert whole(given)["brier"].item() == pytest.approx(0.25)


def test_missing_points_count_nowhere():
    given = ensemble(3, 1.0, inits=50)
    there = np.ones((50, 4, 5), bool)
    there[:, 0], there[7] = False, False
    where = xr.DataArray(there, dims=("init_time", "lat", "lon"))
    holed = Pairs(
        given.systems.where(where), given.truth.where(where), given.usual, given.lost, given.members.where(where)
    )
    assert float(sums(holed, ZERO)["rank_count"].sum()) == there.sum()
    assert np.isnan(by_init(holed, EQUAL)["crps"][7])
    part = Pairs(*(field.isel(lat=slice(1, None)) for field in (given.systems, given.truth, given.usual)), given.lost)
    part = Pairs(part.systems, part.truth, part.usual, part.lost, given.members.isel(lat=slice(1, None)))
    ours, expected = by_init(holed, EQUAL)["crps"], by_init(part, EQUAL.isel(lat=slice(1, None)))["crps"]
    np.testing.assert_allclose(ours.values[:7], expected.values[:7], rtol=1e-12)


def test_sums_of_blocks_add_up():
    given = ensemble(3, 1.0, inits=20)
    parts = [
        Pairs(
            given.systems.isel(init_time=part),
            given.truth.isel(init_time=part),
            given.usual.isel(init_time=part),
            given.lost.isel(init_time=part),
            given.members.isel(init_time=part),
        )
        for part in (slice(0, 7), slice(7, None))
    ]
    xr.testing.assert_allclose(sums(parts[0], ZERO) + sums(parts[1], ZERO), sums(given, ZERO))
    assert ensembles.PROBABILITIES.size == 11


def said_of(crps, spread, p_value=0.01):
    """The sentence about an ensemble with these scores at +24 h and +48 h, whose RMSE is 2."""
    lead = "lead_time"
    figures = {"crps": (lead, crps), "spread": (lead, spread), "crps_p_value": (lead, [p_value, p_value])}
    scores = xr.Dataset(figures, {"lead_hours": (lead, [24.0, 48.0])}, {"confidence": 0.95})
    scores["crps_linear_inverse_model"] = xr.ones_like(scores["crps"])
    scores["crps_skill"] = 1 - scores["crps"] / scores["crps_linear_inverse_model"]
    scores["rmse"] = xr.DataArray([[2.0, 2.0]], {"system": ["model"]}, ("system", lead))
    return _ensemble_verdict("t2m", scores)


def test_a_sentence_tells_of_crps_and_spread():
    rival = "the linear inverse model's normal distribution"
    assert said_of([0.8, 0.9], [1.9, 2.0]) == (
        f"t2m ensemble (CRPS) beats {rival} at every lead time; its spread is 0.95 to 1.00 of the error of its mean."
    )
    assert said_of([0.8, 1.1], [1.0, 1.0]) == (
        f"t2m ensemble (CRPS) beats {rival} at +24 h and is worse than {rival} at +48 h; its spread is 0.50 of the "
        "error of its mean, too small: it is too sure."
    )
    assert said_of([0.8, 0.9], [3.0, 4.0], p_value=0.3) == (
        f"t2m ensemble (CRPS) shows no significant difference from {rival} at every lead time; its spread is 1.50 to "
        "2.00 of the error of its mean, too large: it is not sure enough."
    )
