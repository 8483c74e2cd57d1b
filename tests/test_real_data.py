"""The three commands on real weather grids, as users have them."""

import shutil

import numpy as np
import pytest
import xarray as xr

from convlstm_wx.cli import main

pytestmark = [pytest.mark.real_data, pytest.mark.slow]

# file -> how its own latitudes run, the units of each variable, the words by which the log tells the split
FILES = {
    "erainterim_weurope_1p5deg_daily12utc_2000-2008_msl_z500_t850": (-1, {"msl": "Pa", "z500": "m2 s-2", "t850": "K"}),
    "ncep_air_sig995_na_6h_201301-201406": (-1, {"air": "K"}),
    "ncep_iberia_2p5deg_daily_1961-2008_TQZ3lev_t2m_slp_tp": (
        1,
        {"T": "K", "Q": "kg kg-1", "Z": "m2 s-2", "t2m": "K", "SLP": "Pa", "TP": "m"},
    ),
    "era5_morocco_0p25deg_daily12utc_202401-09_t2m_tp": (-1, {"t2m": "K", "tp": "m"}),
    "era5_5var_telangana_1h_20230901-07": (
        -1,
        {"tp": "m", "d2m": "K", "u10": "m s-1", "v10": "m s-1", "sp": "Pa"},
    ),
    "era5_plev_merapi_6h_202601": (-1, {"u": "m s-1", "v": "m s-1", "t": "K", "z": "m2 s-2"}),
    "imd_india_1deg_daily_1991-2000_tmax_tmin": (1, {"tmax": "degC", "tmin": "degC"}),
}
# Options that shorten what takes long; two files, daily and hourly, go with none.
SHORTER = {
    "erainterim_weurope_1p5deg_daily12utc_2000-2008_msl_z500_t850": ["--lead-steps", "2"],
    "ncep_air_sig995_na_6h_201301-201406": ["--lead-steps", "2"],
    "ncep_iberia_2p5deg_daily_1961-2008_TQZ3lev_t2m_slp_tp": [
        *("--lead-steps", "2", "--held-out-months", "2008", "--batch-size", "128"),
    ],
    "era5_plev_merapi_6h_202601": ["--lead-steps", "4"],
    "imd_india_1deg_daily_1991-2000_tmax_tmin": ["--lead-steps", "2"],
}
QUICK = ["--num-epochs", "1", "--hidden-channels", "4", "8", "--batch-size", "32", "--device", "cpu"]


@pytest.mark.parametrize("name", FILES)
def test_train_forecast_evaluate_with_nothing_told_about_the_file(real_data, tmp_path, capsys, name):
    direction, units = FILES[name]
    path = str(real_data / f"{name}.nc")
    checkpoint, forecast, folder = (str(tmp_path / part) for part in ("run/best.pt", "forecast.nc", "evaluation"))
    assert main(["train", "--data", path, "--output-dir", str(tmp_path / "run"), *QUICK, *SHORTER.get(name, [])]) == 0
    assert main(["forecast", "--checkpoint", checkpoint, "--data", path, "--output", forecast]) == 0
    assert main(["evaluate", "--checkpoint", checkpoint, "--data", path, "--output", folder]) == 0
    said = capsys.readouterr().out
    assert "climatology" in said
    copy = shutil.copy(path, tmp_path)  # HDF5 breaks where a file with strings is open twice
    with xr.open_dataset(forecast) as made, xr.open_dataset(copy) as file:
        assert np.sign(made["lat"].values[1] - made["lat"].values[0]) == direction
        own_lon = file[next(axis for axis in ("lon", "longitude") if axis in file.coords)]
        np.testing.assert_allclose(made["lon"], own_lon)
        assert {variable: made[variable].attrs["units"] for variable in made.data_vars} == units
        for variable in made.data_vars:
            share_missing = float(np.isnan(made[variable]).mean())
            assert (share_missing == pytest.approx(0.63, abs=0.02)) if "imd" in name else share_missing == 0
        if rain := {"tp", "TP"} & set(made.data_vars):
            assert float(made[rain.pop()].min()) >= 0
    with xr.open_dataset(tmp_path / "evaluation/scores.nc") as scores:
        assert np.isfinite(scores["rmse"]).all()
