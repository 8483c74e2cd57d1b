"""Scores by hand on 3 x 3 points, against numpy, and against the traps that other tools fell into."""

import numpy as np
import pytest
import scores.continuous
import xarray as xr

from convlstm_wx.verification import metrics
from convlstm_wx.verification.pairs import Pairs

TINY = {"rtol": 0, "atol": 1e-10}


def pairs(model, truth, climatology, persistence=None) -> Pairs:
    """Pairs of arrays [init_time, lat, lon]."""
    persistence = truth if persistence is None else persistence
    dims = ("init_time", "lat", "lon")
    systems = xr.DataArray(
        np.stack([model, persistence, climatology]).astype(float),
        dims=("system", *dims),
        coords={"system": ["model", "persistence", "climatology"]},
    )
    truth = xr.DataArray(np.asarray(truth, float), dims=dims)
    usual = systems.sel(system="climatology", drop=True)
    return Pairs(systems, truth, usual, lost=xr.zeros_like(truth).sum(("lat", "lon")))


def rows(*values: float) -> np.ndarray:
    """One 3 x 3 field whose rows are constant."""
    return np.repeat(np.array(values, float)[None, :, None], 3, axis=2)


def weights(*values: float) -> xr.DataArray:
    return xr.DataArray(np.array(values, float), dims="lat")


@pytest.fixture
def random_pairs() -> tuple[Pairs, xr.DataArray]:
    """Seven init times, a missing corner, and an init time with nothing."""
    generator = np.random.default_rng(1)
    model, persistence, climatology, truth = generator.standard_normal((4, 7, 4, 5))
    missing = np.zeros((7, 4, 5), bool)
    missing[:, 0, :2], missing[2] = True, True
    fields = [np.where(missing, np.nan, field) for field in (model, truth, climatology, persistence)]
    return pairs(*fields), weights(0.7, 1.0, 1.1, 1.2)


def test_mse_mae_and_bias_on_3_x_3_points_by_hand():
    # Errors by row: 1, -2, 3; weights 0.5, 2, 0.5 (sum 3).
    means = metrics.by_init(pairs(rows(1, -2, 3), rows(0, 0, 0), rows(0, 0, 0)), weights(0.5, 2, 0.5))
    means = means.sel(system="model").isel(init_time=0)
    assert means["mse"].item() == pytest.approx((0.5 * 1 + 2 * 4 + 0.5 * 9) / 3)
    assert means["mae"].item() == pytest.approx((0.5 * 1 + 2 * 2 + 0.5 * 3) / 3)
    assert means["bias"].item() == pytest.approx((0.5 * 1 - 2 * 2 + 0.5 * 3) / 3)
    assert means["weight"].item() == pytest.approx(9.0)  # three columns of weights that sum to 3
    assert means["points"].item() == 9


def test_acc_on_3_x_3_points_by_hand():
    # Climatology 10; anomalies by row: forecast 1, 2, 0, truth 2, 1, 0.
    means = metrics.by_init(pairs(rows(11, 12, 10), rows(12, 11, 10), rows(10, 10, 10)), weights(1, 1, 1))
    means = means.isel(init_time=0)
    assert means["acc"].sel(system="model").item() == pytest.approx((2 + 2) / 5)
    # The means (1 and 1) off: forecast 0, 1, -1, truth 1, 0, -1.
    assert means["acc_centred"].sel(system="model").item() == pytest.approx(1 / 2)
    assert means["squared_anomaly"].sel(system="model").item() == pytest.approx(5 / 3)
    assert means["observed_squared_anomaly"].item() == pytest.approx(5 / 3)


def test_acc_weighs_area():
    # Right in the heavy row, the wrong sign in a light one.
    means = metrics.by_init(pairs(rows(1, -1, 0), rows(1, 1, 0), rows(0, 0, 0)), weights(2, 0.5, 0.5))
    assert means["acc"].sel(system="model").item() == pytest.approx((2 - 0.5) / 2.5)


def test_climatology_has_no_acc_and_a_perfect_forecast_has_one():
    means = metrics.by_init(pairs(rows(1, 2, 3), rows(1, 2, 3), rows(0, 0, 1)), weights(1, 1, 1))
    assert np.isnan(means["acc"].sel(system="climatology")).all()
    assert means["acc"].sel(system="model").item() == pytest.approx(1.0)


def test_the_root_is_taken_after_the_mean_over_init_times():
    # MSE 1 and 9: RMSE is sqrt(5), not the mean of 1 and 3.
    two = pairs(np.concatenate([rows(1, 1, 1), rows(3, 3, 3)]), np.zeros((2, 3, 3)), np.zeros((2, 3, 3)))
    assert float(metrics.averaged(metrics.by_init(two, weights(1, 1, 1)))["rmse"].sel(system="model")) == np.sqrt(5)


def test_a_missing_point_leaves_the_mean_of_the_others():
    model = rows(1, -2, 3)
    model[0, 1, :] = np.nan
    truth = np.where(np.isnan(model), np.nan, 0.0)
    means = metrics.by_init(pairs(model, truth, truth), weights(0.5, 2, 0.5)).sel(system="model")
    assert means["mse"].item() == pytest.approx((0.5 * 1 + 0.5 * 9) / 1)
    assert means["points"].item() == 6


def test_pooled_means_equal_numpy_over_everything_at_once(random_pairs):
    given, area = random_pairs
    averaged = metrics.averaged(metrics.by_init(given, area)).sel(system="model")
    error = (given.systems.sel(system="model") - given.truth).values
    w = np.broadcast_to(area.values[:, None], error.shape)
    valid = np.isfinite(error)
    mean = lambda field: (w * field)[valid].sum() / w[valid].sum()  # noqa: E731
    np.testing.assert_allclose(averaged["rmse"], np.sqrt(mean(error**2)), **TINY)
    np.testing.assert_allclose(averaged["mae"], mean(abs(error)), **TINY)
    np.testing.assert_allclose(averaged["bias"], mean(error), **TINY)
    assert int(averaged["count"]) == valid.sum()
    assert int(averaged["pairs"]) == 6  # of seven, one has nothing


def test_pooled_means_equal_the_scores_library(random_pairs):
    given, area = random_pairs
    averaged = metrics.averaged(metrics.by_init(given, area))
    for name, score in {
        "rmse": scores.continuous.rmse,
        "mae": scores.continuous.mae,
        "bias": scores.continuous.additive_bias,
    }.items():
        expected = score(given.systems, given.truth, preserve_dims="system", weights=area)
        np.testing.assert_allclose(averaged[name], expected, **TINY)


def test_centred_acc_without_weights_equals_the_correlation_of_the_scores_library(random_pairs):
    given, area = random_pairs
    usual = given.systems.sel(system="climatology")
    expected = scores.continuous.correlation.pearsonr(
        given.systems.sel(system="model") - usual, given.truth - usual, preserve_dims="init_time"
    )
    found = metrics.by_init(given, xr.ones_like(area))["acc_centred"].sel(system="model")
    np.testing.assert_allclose(found, expected, **TINY)


def test_maps_average_over_init_times_alone(random_pairs):
    given, _ = random_pairs
    error = (given.systems - given.truth).values
    maps = metrics.by_point(given)
    with np.errstate(invalid="ignore"):
        count = np.isfinite(error[0]).sum(axis=0)
        expected = np.nansum(error**2, axis=1) / count
    np.testing.assert_allclose(maps["mse"], expected, **TINY)
    assert np.isnan(maps["bias"].values[:, 0, :2]).all()
    np.testing.assert_array_equal(maps["count"], count)


def test_pooling_blocks_equals_one_block(random_pairs):
    given, _ = random_pairs
    parts = [
        metrics.by_point(
            Pairs(*(field.isel(init_time=part) for field in (given.systems, given.truth, given.usual)), given.lost)
        )
        for part in (slice(0, 3), slice(3, None))
    ]
    blocks = xr.concat(parts, "block")
    pooled = metrics.pool(blocks[["mse", "bias"]], blocks["count"], "block")
    np.testing.assert_allclose(pooled["mse"], metrics.by_point(given)["mse"], **TINY)


def test_every_score_says_its_formula_and_units():
    assert metrics.attributes("skill")["units"] == "1"
    assert metrics.attributes("rmse")["comment"] == "in units of the channel"
    assert "root last" in metrics.attributes("rmse")["formula"]
