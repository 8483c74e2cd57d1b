"""Dressed ensembles: members that differ as the network was wrong on validation."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr

from convlstm_wx.checkpoint import load_checkpoint, save_checkpoint
from convlstm_wx.cli import main
from convlstm_wx.data.splits import VALIDATION
from convlstm_wx.dressing import FEWEST, Residuals, dressing, of_their_mean
from convlstm_wx.training.residuals import KeptResiduals
from tests.region_files import region, write

DAY = np.timedelta64(86400, "s")
START = np.datetime64("2001-01-01T00:00:00")


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def residuals(windows: int = 360, leads: int = 3, seed: int = 0) -> Residuals:
    fields = np.random.default_rng(seed).standard_normal((windows, leads, 2, 4, 5))
    return Residuals(START + np.arange(windows) * DAY, fields.astype(np.float16))


def test_members_have_the_errors_variance_and_a_mean_of_zero():
    fields = dressing(residuals(), START, members=40, lead_steps=3, seed=0)
    assert fields.shape == (40, 3, 2, 4, 5)
    assert np.abs(fields.mean(axis=0)).max() < 1e-6
    assert fields.var(axis=0).mean() == pytest.approx(1, abs=0.05)


def test_few_members_have_the_same_sample_variance_as_many():
    drawn = [dressing(residuals(), START + day * DAY, members=3, lead_steps=3, seed=0) for day in range(200)]
    assert np.mean([fields.var(axis=0, ddof=1) for fields in drawn]) == pytest.approx(1, abs=0.05)


def test_errors_are_of_the_same_season_across_new_year():
    own = residuals()
    near = own.init_times[own.near(np.datetime64("2008-01-05T12:00:00"))]
    apart = np.minimum((near - START) / DAY % 365, -(near - START) / DAY % 365)
    assert len(near) == 120
    assert apart.max() <= 68


def test_a_short_record_gives_what_it_has():
    assert len(residuals(FEWEST).near(START)) == FEWEST
    fields = dressing(residuals(FEWEST), START, members=50, lead_steps=3, seed=0)
    assert np.isfinite(fields).all()


def test_a_draw_depends_on_seed_and_init_time_alone():
    own = residuals()
    first, again = (dressing(own, START, members=5, lead_steps=3, seed=4) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, dressing(own, START, members=5, lead_steps=3, seed=5))
    assert not np.array_equal(first, dressing(own, START + DAY, members=5, lead_steps=3, seed=4))


def test_lead_times_beyond_training_have_the_errors_of_the_last():
    fields = dressing(residuals(), START, members=5, lead_steps=6, seed=0)
    np.testing.assert_array_equal(fields[:, 2], fields[:, 5])
    np.testing.assert_array_equal(fields[:, :3], dressing(residuals(), START, members=5, lead_steps=3, seed=0))


def test_the_mean_of_networks_errs_by_the_mean_of_their_errors():
    several = [residuals(seed=seed) for seed in range(4)]
    mean = of_their_mean(several)
    assert mean.fields_NLDHW.dtype == np.float16
    assert mean.fields_NLDHW.astype(float).var() == pytest.approx(1 / 4, abs=0.02)  # theirs are independent
    one = sum(float(each.fields_NLDHW[7, 1, 0, 2, 3]) for each in several) / 4
    assert float(mean.fields_NLDHW[7, 1, 0, 2, 3]) == pytest.approx(one, rel=1e-3)


def test_a_point_whose_truth_is_often_missing_varies_as_the_others():
    ones = torch.ones(40, 2, 1, 3, 3)
    spec = SimpleNamespace(target=SimpleNamespace(grid=SimpleNamespace(lat=range(3), lon=range(3))), lead_steps=2)
    kept = KeptResiduals(SimpleNamespace(**vars(spec), targets=[0]), START + np.arange(40) * DAY)
    valid = ones.clone()
    valid[::4, :, :, 0, 0] = 0
    valid[:, :, :, 1, 1] = 0
    for part in (slice(0, 16), slice(16, 40)):
        kept.add(0 * ones[part], SimpleNamespace(y_BLDHW=ones[part], valid_BLDHW=valid[part]))
    power = (kept.residuals().fields_NLDHW.astype(float) ** 2).mean(axis=0)
    expected = np.ones((2, 1, 3, 3))
    expected[..., 1, 1] = 0
    np.testing.assert_allclose(power, expected, atol=0.01)


def test_errors_that_are_lent_are_those_of_the_point_itself():
    """Larger ones to make up for what is missing would be far too much rain, which is learned as a logarithm."""
    spec = SimpleNamespace(grid=SimpleNamespace(lat=range(1), lon=range(2)))
    errors = torch.arange(40.0).reshape(40, 1, 1, 1, 1).repeat(1, 1, 1, 1, 2)
    valid = torch.ones_like(errors)
    valid[..., 0] = 0
    valid[[5, 30], ..., 0] = 1
    kept = KeptResiduals(SimpleNamespace(target=spec, lead_steps=1, targets=[0]), START + np.arange(40) * DAY)
    kept.add(torch.zeros_like(errors), SimpleNamespace(y_BLDHW=errors, valid_BLDHW=valid))
    made = kept.residuals().fields_NLDHW[:, 0, 0, 0]
    assert made[:, 0].tolist() == [30.0] * 5 + [5.0] * 25 + [30.0] * 10
    assert made[:, 1].tolist() == list(range(40))


# Through the command line


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """region.nc, with a point whose truth is missing now and then, and a run a/."""
    folder = tmp_path_factory.mktemp("dressing")
    holed = region(days=300)
    holed["t2m"][::3, 0, 0] = np.nan
    write(holed, folder / "region.nc")
    options = ["--hidden-channels", 4, 8, "--lead-steps", 2, "--num-epochs", 2, "--device", "cpu"]
    assert run("train", "--data", folder / "region.nc", "--output-dir", folder / "a", *options) == 0
    return folder


def forecast(folder: Path, output: Path, *options: object) -> xr.Dataset:
    data = ["--data", folder / "region.nc", "--output", output, "--device", "cpu"]
    times = ["--init-time", "2001-08-01", "2001-08-02"]
    assert run("forecast", "--checkpoint", folder / "a", *data, *times, *options) == 0
    return xr.open_dataset(output).load()


def test_the_best_checkpoint_holds_the_errors_of_its_own_weights(folder):
    best = load_checkpoint(folder / "a/best.pt")
    kept = best.residuals
    assert kept is not None
    assert kept.fields_NLDHW.dtype == np.float16
    assert (best.spec.split.roles(kept.init_times) == VALIDATION).all()
    assert load_checkpoint(folder / "a/last.pt").residuals is None


def test_a_dressed_ensemble_has_the_mean_of_the_network_and_says_what_it_is(folder, tmp_path, capsys):
    alone = forecast(folder, tmp_path / "alone.nc")
    made = forecast(folder, tmp_path / "f.nc", "--members", 8)
    assert "ensemble   8 members of 1 network, dressed with errors of validation" in capsys.readouterr().out
    np.testing.assert_allclose(made["t2m"].mean("realization"), alone["t2m"], rtol=1e-5)
    assert made["tp"].min() >= 0  # and so the mean is not the network's
    assert "errors of validation" in made.attrs["ensemble"]
    assert "ensemble" not in alone.attrs
    again = forecast(folder, tmp_path / "again.nc", "--members", 8, "--batch-size", 1)
    xr.testing.assert_allclose(again, made)


def test_evaluate_scores_a_dressed_ensemble_as_it_is(folder, tmp_path):
    data = ["--checkpoint", folder / "a", "--data", folder / "region.nc", "--device", "cpu"]
    assert run("evaluate", *data, "--members", 12, "--output", tmp_path / "dressed") == 0
    assert run("evaluate", *data, "--members", 12, "--spread", "states", "--output", tmp_path / "states") == 0
    dressed, states = (xr.open_dataset(tmp_path / name / "scores.nc").load() for name in ("dressed", "states"))
    assert dressed.attrs["crps_method"] == "ecdf"
    assert states.attrs["crps_method"] == "fair"
    ratio = (dressed["spread"] / dressed["rmse"].sel(system="model")).sel(channel="t2m")
    assert 0.6 < float(ratio.min()) < float(ratio.max()) < 1.6
    assert (dressed["crps"] < states["crps"]).sel(channel="t2m").all()  # perturbed states are far too alike


def test_a_forecast_file_says_by_itself_how_its_crps_is_computed(folder, tmp_path):
    data = ["--data", folder / "region.nc", "--device", "cpu", "--checkpoint", folder / "a"]
    when = ["--start", "2001-09-20", "--end", "2001-10-20"]
    assert run("forecast", *data, *when, "--members", 5, "--output", tmp_path / "f.nc") == 0
    assert run("evaluate", *data, "--forecast", tmp_path / "f.nc", "--output", tmp_path / "scored") == 0
    assert xr.open_dataset(tmp_path / "scored/scores.nc").attrs["crps_method"] == "ecdf"


def test_a_checkpoint_without_errors_is_perturbed_or_refused(folder, tmp_path, capsys):
    bare = tmp_path / "bare.pt"
    save_checkpoint(bare, replace(load_checkpoint(folder / "a/best.pt"), residuals=None))
    data = ["--checkpoint", bare, "--data", folder / "region.nc", "--members", 3, "--output", tmp_path / "f.nc"]
    assert run("forecast", *data) == 0
    assert "2 of them from perturbed initial states" in capsys.readouterr().out
    (tmp_path / "f.nc").unlink()
    assert run("forecast", *data, "--spread", "errors") == 2
    assert "--spread errors: 1 of 1 checkpoints hold no errors of validation" in capsys.readouterr().err
    assert not (tmp_path / "f.nc").exists()


def test_several_networks_are_bare_members_unless_more_are_asked_for(folder, tmp_path, capsys):
    other = ["--hidden-channels", 4, 8, "--lead-steps", 2, "--num-epochs", 1, "--device", "cpu", "--seed", 1]
    assert run("train", "--data", folder / "region.nc", "--output-dir", tmp_path / "b", *other) == 0
    pair = ["--checkpoint", folder / "a", tmp_path / "b", "--data", folder / "region.nc", "--init-time", "2001-08-01"]
    made = {}
    for name, options in {"bare": [], "dressed": ["--members", 20]}.items():
        assert run("forecast", *pair, *options, "--output", tmp_path / f"{name}.nc") == 0
        made[name] = xr.open_dataset(tmp_path / f"{name}.nc")["t2m"].load()
    said = capsys.readouterr().out
    assert "2 members of 2 networks, alike but for their network" in said
    assert "20 members of 2 networks, dressed with errors of validation" in said
    means = [each.mean("realization") for each in made.values()]
    np.testing.assert_allclose(means[0], means[1], rtol=1e-5)
    kept = load_checkpoint(tmp_path / "b/best.pt")
    fewer = Residuals(kept.residuals.init_times[1:], kept.residuals.fields_NLDHW[1:])
    save_checkpoint(tmp_path / "fewer.pt", replace(kept, residuals=fewer))
    unlike = [*pair[:2], tmp_path / "fewer.pt", *pair[3:], "--members", 4, "--spread", "errors"]
    assert run("forecast", *unlike, "--output", tmp_path / "f.nc") == 2
    assert "errors of different windows" in capsys.readouterr().err
    shorter = ["--input-steps", 2, *other]
    assert run("train", "--data", folder / "region.nc", "--output-dir", tmp_path / "c", *shorter) == 0
    pair[2] = tmp_path / "c"
    assert run("forecast", *pair, "--members", 4, "--spread", "errors", "--output", tmp_path / "f.nc") == 2
    assert "learned from different data cannot be averaged" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--spread", "errors"], ["--perturbation", 0.1]])
def test_what_has_no_effect_is_refused(folder, tmp_path, capsys, options):
    data = ["--data", folder / "region.nc", "--checkpoint", folder / "a", "--output", tmp_path / "f.nc"]
    assert run("forecast", *data, *options) == 2
    assert "say how many with --members" in capsys.readouterr().err
