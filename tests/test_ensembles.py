"""Ensembles: members from several checkpoints and from perturbed initial states, their mean and spread."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from convlstm_wx.cli import main
from convlstm_wx.data.reading import open_forecast
from convlstm_wx.forecast.perturbing import smooth_noise
from tests.region_files import region, write

SMALL = ["--hidden-channels", "4", "8", "--lead-steps", "2", "--num-epochs", "1", "--device", "cpu"]


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """region.nc, runs a/ and b/ that read three and two times, and c/ of other targets."""
    folder = tmp_path_factory.mktemp("ensembles")
    holed = region(days=200)
    holed["t2m"][::3, 0, 0] = np.nan  # a channel with a mask
    write(holed, folder / "region.nc")
    runs = {"a": ["--input-steps", 3], "b": ["--input-steps", 2, "--seed", 1], "c": ["--target-variables", "t2m"]}
    for name, options in runs.items():
        data = ["--data", folder / "region.nc", "--output-dir", folder / name]
        assert run("train", *data, *SMALL, *options) == 0
    return folder


def forecast(folder: Path, output: Path, *options: object, runs: str = "a") -> xr.Dataset:
    checkpoints = [folder / name / "best.pt" for name in runs]
    times = ["--init-time", "2001-05-01", "2001-05-02"]
    data = ["--data", folder / "region.nc", "--output", output, "--device", "cpu"]
    assert run("forecast", "--checkpoint", *checkpoints, *data, *times, *options) == 0
    return xr.open_dataset(output).load()


STATES = ["--spread", "states"]


def test_members_of_one_checkpoint_differ_and_the_first_is_the_forecast_itself(folder, tmp_path):
    alone = forecast(folder, tmp_path / "alone.nc")
    made = forecast(folder, tmp_path / "f.nc", "--members", 4, *STATES)
    assert made["t2m"].dims == ("init_time", "realization", "lead_time", "lat", "lon")
    assert made["realization"].values.tolist() == [0, 1, 2, 3]
    assert made["realization"].attrs["standard_name"] == "realization"
    np.testing.assert_allclose(made["t2m"][:, 0], alone["t2m"], rtol=1e-6)
    assert (made["t2m"].std("realization") > 0).all()
    assert made["tp"].min() >= 0
    read = open_forecast(tmp_path / "f.nc")
    assert read["t2m"].dims == ("realization", "init_time", "lead_time", "lat", "lon")
    xr.testing.assert_equal(read["t2m"].transpose(*made["t2m"].dims).sortby("lat"), made["t2m"].sortby("lat"))


def test_checkpoints_are_the_first_members_and_may_read_different_times(folder, tmp_path):
    made = forecast(folder, tmp_path / "f.nc", "--spread", "none", runs="ab")
    for member, name in enumerate("ab"):
        alone = forecast(folder, tmp_path / f"{name}.nc", runs=name)
        np.testing.assert_allclose(made["t2m"][:, member], alone["t2m"], rtol=1e-6)
    more = forecast(folder, tmp_path / "more.nc", "--members", 4, *STATES, runs="ab")
    np.testing.assert_allclose(more["t2m"][:, :2], made["t2m"], rtol=1e-6)


def test_the_size_and_the_seed_of_perturbations(folder, tmp_path):
    small, large, other, again = (
        forecast(folder, tmp_path / f"{number}.nc", "--members", 3, *options)
        for number, options in enumerate(
            (
                ["--perturbation", 0.1],
                ["--perturbation", 0.4],
                ["--seed", 1, *STATES],
                ["--perturbation", 0.1, "--batch-size", 2],
            )
        )
    )
    spread = [float(made["t2m"].isel(lead_time=0).std("realization").mean()) for made in (small, large)]
    assert spread[1] == pytest.approx(4 * spread[0], rel=0.1)
    assert not np.array_equal(other["t2m"], small["t2m"])
    # The noise belongs to member and init time, whatever else is computed beside them.
    np.testing.assert_allclose(again["t2m"], small["t2m"], rtol=1e-6)


def test_statistics_are_the_mean_and_the_standard_deviation_of_the_members(folder, tmp_path):
    made = forecast(folder, tmp_path / "f.nc", "--members", 4, "--statistics", tmp_path / "s.nc")
    with xr.open_dataset(tmp_path / "s.nc") as statistics:
        assert set(statistics.data_vars) == {"t2m", "t2m_spread", "tp", "tp_spread"}
        np.testing.assert_allclose(statistics["t2m"], made["t2m"].mean("realization"), rtol=1e-6)
        np.testing.assert_allclose(statistics["t2m_spread"], made["t2m"].std("realization", ddof=1), rtol=1e-3)
        assert statistics["t2m"].attrs["cell_methods"] == "realization: mean"
        assert statistics["t2m_spread"].attrs["cell_methods"] == "realization: standard_deviation"
        assert statistics["t2m_spread"].attrs["units_metadata"] == "temperature: difference"
    assert set(open_forecast(tmp_path / "s.nc").data_vars) == {"t2m", "tp"}  # a mean can be scored, a spread cannot


@pytest.mark.parametrize(
    ("runs", "options", "message"),
    [
        ("ac", [], "the checkpoints do not make one ensemble: another targets"),
        ("ab", ["--members", 1], "--members 1: fewer than the 2 checkpoints"),
        ("a", ["--members", 3, "--spread", "none"], "or give --spread states and a --perturbation above 0"),
        (
            "a",
            ["--members", 3, "--spread", "errors", "--perturbation", 0.1],
            "--perturbation has no effect with --spread",
        ),
        ("ab", STATES, "have no effect on 2 members of 2 networks, as the first of each starts unperturbed; give more"),
        ("ab", ["--members", 2, "--perturbation", 0.1], "have no effect on 2 members of 2 networks"),
        ("a", ["--members", 1, *STATES], "have no effect on 1 member of 1 network, as"),
    ],
)
def test_what_makes_no_ensemble_is_refused(folder, tmp_path, capsys, runs, options, message):
    checkpoints = [folder / name / "best.pt" for name in runs]
    data = ["--data", folder / "region.nc", "--output", tmp_path / "f.nc"]
    assert run("forecast", "--checkpoint", *checkpoints, *data, *options) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_noise_has_variance_one_and_is_smooth_and_does_not_wrap():
    noise = smooth_noise(np.random.default_rng(0), 400, (30, 40), (3.0, 5.0))
    assert noise.shape == (400, 30, 40)
    assert noise.var() == pytest.approx(1, rel=0.05)
    correlation = [np.mean(noise[:, 0, 0] * noise[:, 6, 0]), np.mean(noise[:, 0, 0] * noise[:, 0, 10])]
    assert correlation == pytest.approx([np.exp(-1)] * 2, abs=0.1)  # at twice the width
    assert np.mean(noise[:, 0, 0] * noise[:, 29, 39]) == pytest.approx(0, abs=0.15)
