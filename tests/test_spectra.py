"""Spectra: variance is kept, a wave is found at its length, and blur shows at the small scales."""

import numpy as np
import pytest
import xarray as xr

from convlstm_wx.verification import spectra
from convlstm_wx.verification.spectra import Rings


def grid(height: int = 24, width: int = 32, lat: float = 0.0) -> xr.Dataset:
    """About a degree, centred on a latitude."""
    return xr.Dataset(coords={"lat": lat + np.arange(height) - height / 2, "lon": np.arange(float(width))})


def test_all_waves_together_hold_the_variance():
    fields = np.random.default_rng(0).standard_normal((5, 24, 32))
    rings = Rings.of(grid())
    whole = Rings(rings.rows_HH, rings.columns_WW, np.zeros_like(rings.ring_HW), np.ones(1))
    whole.ring_HW[0, 0] = -1  # the mean has no wavelength
    np.testing.assert_allclose(whole.power(fields)[:, 0], fields.var(axis=(1, 2)), rtol=1e-12)
    assert (rings.power(fields).sum(axis=1) < fields.var(axis=(1, 2))).all()  # the corners are left out


@pytest.mark.parametrize("half_waves", [2, 6, 10])
def test_a_wave_is_found_at_its_length(half_waves):
    place = (np.arange(32) + 0.5) / 32
    field = np.broadcast_to(np.cos(np.pi * half_waves * place), (1, 24, 32))
    rings = Rings.of(grid())
    power = rings.power(field)[0]
    length_km = 2 * 32 * 111.2 / half_waves
    ring = 1 / rings.wavelengths_km[0]
    assert 1 / rings.wavelengths_km[power.argmax()] == pytest.approx(1 / length_km, abs=0.51 * ring)
    assert power.max() > 0.99 * field.var()


def test_length_is_measured_on_the_sphere():
    place = (np.arange(24) + 0.5) / 24
    field = np.broadcast_to(np.cos(np.pi * 8 * place), (1, 24, 24))
    at_equator, at_60 = Rings.of(grid(24, 24)), Rings.of(grid(24, 24, lat=60))
    lengths = [rings.wavelengths_km[rings.power(field)[0].argmax()] for rings in (at_equator, at_60)]
    assert lengths[1] == pytest.approx(lengths[0] / 2, rel=0.2)


def test_a_slope_from_border_to_border_is_no_small_scale():
    # A Fourier transform would put the jump at the border into every wavelength.
    slope = np.broadcast_to(np.linspace(-1, 1, 32), (1, 24, 32))
    power = Rings.of(grid()).power(slope)[0]
    assert power[:3].sum() > 0.97 * slope.var()


def test_blur_loses_the_small_scales_and_fields_with_holes_are_left_out():
    truth = np.random.default_rng(1).standard_normal((6, 24, 32))
    blurred = (truth + np.roll(truth, 1, axis=2) + np.roll(truth, -1, axis=2)) / 3
    truth[0, 3, 3] = np.nan
    dims = ("init_time", "lat", "lon")
    rings = Rings.of(grid())
    sums = spectra.power_of(xr.DataArray(blurred, dims=dims), xr.DataArray(truth, dims=dims), rings)
    found = spectra.averaged(sums, rings)
    assert int(found["power_fields"]) == 5
    ratio = found["power"] / found["observed_power"]
    assert float(ratio[0]) > 0.8
    assert float(ratio[-1]) < 0.4
    np.testing.assert_allclose(found["observed_power"], rings.power(truth[1:]).mean(axis=0))


def test_a_grid_of_three_rows_has_no_spectrum():
    assert Rings.of(grid(3, 40)) is None


def test_a_projected_grid_has_its_own_lengths():
    lat, lon = np.meshgrid(45 + 0.1 * np.arange(12), 5 + 0.1 * np.arange(16), indexing="ij")
    projected = xr.Dataset(
        coords={
            "lat": np.arange(12) * 11_000.0,
            "lon": np.arange(16) * 8_000.0,
            "latitude": (("lat", "lon"), lat),
            "longitude": (("lat", "lon"), lon),
        }
    )
    rings = Rings.of(projected)
    assert rings.wavelengths_km[0] == pytest.approx(2 * min(12 * 11.1, 16 * 7.8), rel=0.03)
