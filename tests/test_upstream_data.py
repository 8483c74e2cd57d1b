"""Upstream regions that come from files of their own."""

import gc

import numpy as np
import pytest

from convlstm_wx.cli import main
from convlstm_wx.config import TrainConfig
from convlstm_wx.data.inputs import TrainingInputs, open_sources, prepare_training
from convlstm_wx.data.reading import open_dataset
from convlstm_wx.data.spec import DataSpec
from convlstm_wx.data.splits import TRAIN
from convlstm_wx.errors import CheckpointError, ConfigError, DataError
from tests.region_files import region, write
from tests.test_forecasting import interrupt_after


def upstream_region(**changes):
    """Coarser, to the west, with other variables and times of day than the target has."""
    dataset = region(days=200, step_hours=6, height=4, width=5, seed=1).rename(t2m="sst")
    dataset["lat"] = np.linspace(64, 46, 4)
    dataset["lon"] = np.linspace(-60, -20, 5)
    return dataset.assign(**changes)


@pytest.fixture
def path(tmp_path):
    return write(region(days=200), tmp_path / "region.nc")


def prepared(path, *upstream, **changes) -> TrainingInputs:
    files = tuple(str(file) for file in upstream)
    settings = {"input_steps": 3, "lead_steps": 2, "include_upstream": True, "upstream_data": files} | changes
    return prepare_training(TrainConfig(data=(str(path),), **settings))


def test_an_upstream_file_is_read_on_its_own_grid_and_at_the_times_of_the_target(path, tmp_path):
    other = write(upstream_region(), tmp_path / "west.nc")
    inputs = prepared(path, other)
    (spec,) = inputs.spec.upstream
    assert [channel.name for channel in spec.statistics.channels] == ["sst", "tp"]
    assert (len(spec.grid.lat), len(spec.grid.lon)) == (4, 5)
    (fields,) = inputs.windows(TRAIN).gather([0]).upstream
    assert fields.shape == (1, 3, 2, 4, 5)
    raw = upstream_region()["sst"].sortby("lat").sel(time=region(days=200)["time"][:3]).values[None]
    back = spec.statistics.to_physical(fields[0], inputs.sources.times[:3])[None, :, 0]
    np.testing.assert_allclose(back, raw, atol=1e-3)


def test_several_files_are_several_regions_beside_named_boxes(path, tmp_path):
    first = write(upstream_region(), tmp_path / "west.nc")
    second = write(upstream_region().isel(lat=slice(2)), tmp_path / "north.nc")
    inputs = prepared(path, first, second, upstream_region=((50.0, 60.0, -10.0, -2.0),), upstream_variables=("sst",))
    assert [len(region.grid.lat) for region in inputs.spec.upstream] == [6, 4, 2]
    assert [len(region.statistics.channels) for region in inputs.spec.upstream] == [2, 1, 1]
    assert inputs.spec.upstream_files == [(str(first),), (str(second),)]


def test_times_that_the_upstream_file_lacks_are_in_no_window_and_told(path, tmp_path):
    shorter = upstream_region().sel(time=slice(None, "2001-06-30")).drop_sel(time="2001-02-10T00:00")
    inputs = prepared(path, write(shorter, tmp_path / "west.nc"))
    at = inputs.windows(TRAIN).init_indices[:, None] + np.arange(-2, 3)
    assert 40 not in at
    assert 41 in at
    assert any("20 of 200 times are missing there" in note for note in inputs.notes)
    assert not inputs.spec.upstream[0].statistics.gaps_C.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.assign_coords(time=d["time"] + np.timedelta64(3650, "D")), "hold none of the training times"),
        (lambda d: d.assign(sst=d["sst"] * np.nan), r"'sst' are missing. Leave it out with --upstream-variables"),
        (lambda d: d.assign(sst=d["sst"].where(d["time"] > np.datetime64("2001-07-01"))), "sst"),
        (lambda d: (d * 0 + 4).assign_attrs(d.attrs), "constant in training, so it would be silently inactive"),
    ],
)
def test_an_upstream_input_that_says_nothing_is_refused(path, tmp_path, change, message):
    dataset = change(upstream_region())
    for name in dataset.data_vars:
        dataset[name].attrs["units"] = "K" if name == "sst" else "m"
    with pytest.raises(DataError, match=message):
        prepared(path, write(dataset, tmp_path / "west.nc"))


def test_a_constant_upstream_box_is_refused(tmp_path):
    dataset = region(days=200)
    for name in dataset.data_vars:
        dataset[name][:, :, :3] = 1
    path = write(dataset, tmp_path / "region.nc")
    with pytest.raises(DataError, match=r"upstream region .* silently inactive"):
        prepared(path, target_region=(48.0, 60.0, -2.0, 6.0), upstream_region=((48.0, 60.0, -10.0, -5.0),))


@pytest.mark.parametrize("hours", [48, 36])
def test_an_upstream_file_of_longer_steps_leaves_no_window_and_that_is_told(path, tmp_path, capsys, hours):
    upstream = upstream_region().isel(time=slice(None, None, hours // 6))
    other = write(upstream, tmp_path / "west.nc")
    options = ["--include-upstream", "--upstream-data", str(other), "--input-steps", "3", "--lead-steps", "2"]
    assert main(["inspect", "--data", str(path), *options, "--device", "cpu"]) == 2
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith("not ready: region.nc: no training window of 5 consecutive complete times")
    assert "of 200 times are missing there" in said


def test_what_is_odd_in_an_upstream_box_alone_is_told(tmp_path):
    dataset = region(days=200)
    dataset["tp"][:, :, :3] = 0
    dataset["t2m"][7, 2, 1] = -9999
    path = write(dataset, tmp_path / "region.nc")
    inputs = prepared(path, target_region=(48.0, 60.0, -2.0, 6.0), upstream_region=((48.0, 60.0, -10.0, -5.0),))
    told = [note.partition(": ")[2] for note in inputs.notes[1:]]
    assert "tp is constant (0): there is nothing to learn from it" in told
    assert any("t2m has 1 of " in note and "outside of the plausible range" in note for note in told)
    assert not inputs.account.warnings()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"include_upstream": False}, "--upstream-data does nothing without --include-upstream"),
        ({"upstream_data": (), "upstream_variables": ("sst",)}, "--upstream-variables does nothing"),
        ({"upstream_variables": ("rain",)}, "no variable rain; the file has sst, tp"),
    ],
)
def test_options_that_do_nothing_or_ask_for_what_is_not_there_are_refused(path, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        prepared(path, write(upstream_region(), tmp_path / "west.nc"), **changes)


def test_the_description_gives_the_same_arrays_again(path, tmp_path):
    other = write(upstream_region(), tmp_path / "west.nc")
    inputs = prepared(path, other)
    spec = DataSpec.from_dict(inputs.spec.to_dict())
    dataset, upstream = open_dataset([path]), [open_dataset([other])]
    spec.check(dataset, upstream)
    sources = open_sources(spec, dataset, upstream)
    np.testing.assert_array_equal(sources.upstream[0].values_NCHW, inputs.sources.upstream[0].values_NCHW)
    wrong = [open_dataset([write(upstream_region().isel(lon=slice(1, None)), tmp_path / "narrow.nc")])]
    with pytest.raises(CheckpointError, match=r"longitudes .* \(upstream, narrow.nc\)"):
        spec.check(dataset, wrong)


def test_another_upstream_variable_is_another_run(path, tmp_path):
    both = upstream_region()
    both["tas"] = both["sst"] + 1
    both["tas"].attrs["units"] = "K"
    other = write(both, tmp_path / "west.nc")
    trained, now = (prepared(path, other, upstream_variables=(name,)).spec for name in ("sst", "tas"))
    assert trained.changes(trained) == []
    assert trained.changes(now) == ["upstream inputs sst there, tas here"]


def test_train_forecast_and_evaluate_need_no_flags_again(path, tmp_path, capsys, monkeypatch):
    other = write(upstream_region(), tmp_path / "west.nc")
    run = tmp_path / "run"
    small = [
        "--hidden-channels",
        "2",
        "3",
        "--num-epochs",
        "1",
        "--input-steps",
        "3",
        "--lead-steps",
        "2",
        "--device",
        "cpu",
    ]
    upstream = ["--include-upstream", "--upstream-data", str(other)]
    assert main(["train", "--data", str(path), *upstream, *small, "--output-dir", str(run)]) == 0
    assert "west.nc" in capsys.readouterr().out
    given = ["--checkpoint", str(run / "best.pt"), "--data", str(path), "--device", "cpu"]
    assert main(["forecast", *given, "--output", str(tmp_path / "forecast.nc")]) == 0
    assert main(["evaluate", *given, "--output", str(tmp_path / "evaluation")]) == 0
    with monkeypatch.context() as patch:
        interrupt_after(1, patch)
        period = ["--start", "2001-05-01", "--end", "2001-06-20"]
        assert main(["forecast", *given, *period, "--output", str(tmp_path / "cut.nc")]) == 130
    gc.collect()  # the interrupted forecast may still hold the file
    write(upstream_region(), other)  # another file: its pieces must not be mixed with those of the first
    capsys.readouterr()
    assert main(["forecast", *given, *period, "--output", str(tmp_path / "cut.nc")]) == 2
    assert "holds an unfinished forecast with another data" in capsys.readouterr().err
    other.rename(tmp_path / "moved.nc")
    capsys.readouterr()
    assert main(["forecast", *given, "--output", str(tmp_path / "again.nc")]) == 2
    assert "Say with --upstream-data where they are" in capsys.readouterr().err
    moved = ["--upstream-data", str(tmp_path / "moved.nc")]
    assert main(["forecast", *given, *moved, "--output", str(tmp_path / "again.nc")]) == 0
    assert main(["forecast", *given, *moved, str(path), "--output", str(tmp_path / "two.nc")]) == 2
    assert "2 given, but training read 1" in capsys.readouterr().err
