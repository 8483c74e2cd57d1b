"""The linear inverse model: as good as the truth allows, from training times alone, whole where data are missing."""

import re

import numpy as np
import pytest
import xarray as xr

from convlstm_wx.data.regions import area_weights
from convlstm_wx.errors import DataError
from convlstm_wx.linear import inverse_model, record
from convlstm_wx.linear.inverse_model import fit, spreads
from convlstm_wx.verification.climatology import fit_climatology
from convlstm_wx.verification.record import Record
from tests.weather import times, travelling_waves

DAY = np.timedelta64(24, "h").astype("timedelta64[ns]")
AT = times("2000-01-01", "2006-01-01")
TRAINING, HELD_OUT = AT[:1700], AT[1710:2190]
WEIGHTS = dict.fromkeys(("t2m", "z"), np.ones(6))


def records(values: np.ndarray, training: np.ndarray = TRAINING) -> dict[str, Record]:
    """Waves as two channels: the field, and a hundred times the field a day before."""
    made = {}
    before = np.concatenate([values[:1], values[:-1]])
    for name, data in {"t2m": values, "z": 100 * before}.items():
        fields = xr.DataArray(data, {"time": AT}, ("time", "lat", "lon"), name=name)
        made[name] = Record(fields, fit_climatology(fields, training, AT))
    return made


def error(known: dict[str, Record], lead_days: int, channel: str = "t2m", training: np.ndarray = TRAINING) -> float:
    """RMSE over the held-out times."""
    lead = lead_days * DAY
    model = fit(known, training, [lead], WEIGHTS, DAY)
    inits = HELD_OUT[:-lead_days]
    anomaly = model.forecast(known, HELD_OUT).anomaly(channel, inits, lead, known[channel].anomalies(inits))
    truth = known[channel].anomalies(inits + lead)
    return float(np.sqrt(np.nanmean((anomaly - truth) ** 2)))


@pytest.fixture(scope="module")
def waves() -> np.ndarray:
    return travelling_waves(AT.size)


def test_forecasts_of_a_linear_world_are_as_good_as_they_can_be(waves):
    # Unforeseeable one step ahead: the push of each wave, 0.3 in each of two amplitudes of two waves, and the noise.
    unforeseeable = np.sqrt(2 * 0.3**2 + 0.1**2)
    assert 0.97 * unforeseeable < error(records(waves), 1) < 1.05 * unforeseeable
    persistence = np.sqrt(np.mean((waves[1710:2189] - waves[1711:2190]) ** 2))
    assert persistence > 1.4 * unforeseeable


def test_channels_inform_each_other(waves):
    # z is the field of a day before: two days ahead it is what t2m will be one day ahead.
    assert error(records(waves), 2, "z") == pytest.approx(100 * error(records(waves), 1), rel=0.1)


def test_far_ahead_the_forecast_goes_back_to_climatology(waves):
    known = records(waves)
    spread = float(np.sqrt(np.mean(known["t2m"].anomalies(HELD_OUT) ** 2)))
    assert error(known, 90) < 1.02 * spread


def test_nothing_moves_when_held_out_values_change(waves):
    changed = waves.copy()
    changed[1705:] = 1e6
    models = [fit(records(values), TRAINING, [DAY], WEIGHTS, DAY) for values in (waves, changed)]
    np.testing.assert_array_equal(*(model.operators_DK[DAY] for model in models))
    np.testing.assert_array_equal(*(model.patterns_KHW["t2m"] for model in models))


def test_pairs_do_not_reach_out_of_training(waves):
    # Every second month is training: values between them, however wrong, change nothing.
    odd = (AT.astype("datetime64[M]").astype(int) % 2).astype(bool)
    training = AT[odd]
    changed = waves.copy()
    changed[~odd] = 1e6
    values = [{"t2m": records(v, training)["t2m"]} for v in (waves, changed)]
    models = [fit(known, training, [DAY, 3 * DAY], WEIGHTS, DAY) for known in values]
    for lead in (DAY, 3 * DAY):
        np.testing.assert_array_equal(*(model.operators_DK[lead] for model in models))


def test_points_that_are_never_observed_stay_as_usual_and_lone_gaps_hardly_matter(waves):
    holed = waves.copy()
    holed[:, 2, 3] = np.nan
    holed[np.random.default_rng(0).random(holed.shape) < 0.02] = np.nan
    known = records(holed)
    forecast = fit(known, TRAINING, [DAY], WEIGHTS, DAY).forecast(known, HELD_OUT)
    anomaly = forecast.anomaly("t2m", HELD_OUT, DAY, known["t2m"].anomalies(HELD_OUT))
    assert np.isfinite(anomaly).all()
    assert (anomaly[:, 2, 3] == 0).all()
    assert error(known, 1) < 1.1 * error(records(waves), 1)


def test_a_missing_past_time_is_stood_in_for_and_a_missing_state_is_not(waves):
    known = records(waves)
    model = fit(known, TRAINING, [DAY], WEIGHTS, DAY)
    gone = AT[2000]
    holed = {
        name: Record(record.fields.where(record.fields["time"] != gone), record.usual) for name, record in known.items()
    }
    inits = AT[1999:2005]
    anomaly = model.forecast(holed, inits).anomaly("t2m", inits, DAY, holed["t2m"].anomalies(inits))
    assert np.isnan(anomaly).all(axis=(1, 2)).tolist() == [False, True, False, False, False, False]


def test_a_heavier_row_counts_more(waves):
    weights = area_weights(np.linspace(0, 85, 6))
    model = fit(records(waves), TRAINING, [DAY], dict.fromkeys(("t2m", "z"), weights), DAY)
    for name, patterns in model.patterns_KHW.items():
        ratio = (model.projectors_KHW[name] / patterns).mean(axis=(0, 2))
        np.testing.assert_allclose(ratio / ratio[0], weights / weights[0], rtol=1e-3)


def test_blocks_and_fewer_snapshots_hardly_change_the_forecast(waves, monkeypatch):
    whole = error(records(waves), 1)
    monkeypatch.setattr(record, "READ_BYTES", 8 * 72 * 50)  # fifty times at a time
    assert error(records(waves), 1) == pytest.approx(whole, rel=1e-9)
    monkeypatch.setattr(inverse_model, "MOST_SNAPSHOTS", 200)
    assert error(records(waves), 1) == pytest.approx(whole, rel=0.03)


def test_the_spread_is_that_of_the_errors_elsewhere(waves):
    known = records(waves)
    for training, exact in ((TRAINING, 0.1), (TRAINING[:150], 0.25)):
        leads = [DAY, 6 * DAY]
        model = fit(known, training, leads, WEIGHTS, DAY)
        told = spreads(model, known, training)["t2m"]
        inits = HELD_OUT[:-6]
        for lead in leads:
            now, truth = known["t2m"].anomalies(inits), known["t2m"].anomalies(inits + lead)
            errors = model.forecast(known, inits).anomaly("t2m", inits, lead, now) - truth
            assert np.sqrt((told[lead] ** 2).mean()) == pytest.approx(np.sqrt((errors**2).mean()), rel=exact)


def test_white_noise_cannot_be_forecast_and_the_model_knows():
    noise = np.random.default_rng(5).standard_normal((AT.size, 6, 12))
    known = {"t2m": records(noise)["t2m"]}
    assert error(known, 1) < 1.03


@pytest.mark.parametrize(
    ("training", "scale", "message"),
    [(AT[:20], 1.0, "needs 40 training times or more, there are 20"), (AT[:400], 0.0, "zero throughout")],
)
def test_what_cannot_be_fitted_is_an_error_that_says_why(waves, training, scale, message):
    with pytest.raises(DataError, match=re.escape(message)):
        fit(records(scale * waves, training), training, [DAY], WEIGHTS, DAY)


@pytest.mark.real_data
def test_real_weather_errors_are_those_of_a_hard_rival(real_data):
    # RMSE over 2008 at +1 and +4 days, trained with 2000 to 2006. An independent model of this kind (100 EOFs, ridge,
    # three past days) has 481 and 842 Pa, 524 and 1009 m2 s-2, 2.12 and 3.44 K.
    with xr.open_dataset(real_data / "erainterim_weurope_1p5deg_daily12utc_2000-2008_msl_z500_t850.nc") as era:
        era = era.sortby("lat").transpose("time", "lat", "lon").load()
    at = era["time"].values
    training, held_out = at[at < np.datetime64("2007-01-01")], at[at >= np.datetime64("2008-01-01")]
    known = {str(name): Record(era[name], fit_climatology(era[name], training, at)) for name in era}
    weights = area_weights(era["lat"].values)
    model = fit(known, training, [DAY, 4 * DAY], dict.fromkeys(known, weights), DAY)
    forecast = model.forecast(known, held_out)
    for name, expected in {"msl": (481, 842), "z500": (524, 1009), "t850": (2.12, 3.44)}.items():
        found = []
        for lead in (DAY, 4 * DAY):
            inits = held_out[held_out + lead <= at[-1]]
            now, truth = known[name].anomalies(inits), known[name].anomalies(inits + lead)
            difference = forecast.anomaly(name, inits, lead, now) - truth
            found.append(np.sqrt(np.mean(weights[:, None] * difference**2)))
        np.testing.assert_allclose(found, expected, rtol=0.03)
