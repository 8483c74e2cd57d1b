"""From a file to arrays: no leak, no surprise, and the same again from a checkpoint's description."""

import numpy as np
import pytest
import xarray as xr

from convlstm_wx.config import TrainConfig
from convlstm_wx.data.inputs import open_sources, prepare_training
from convlstm_wx.data.reading import open_dataset
from convlstm_wx.data.spec import DataSpec
from convlstm_wx.data.splits import HELD_OUT, TRAIN, VALIDATION
from convlstm_wx.data.store import FileArray
from convlstm_wx.errors import CheckpointError, ConfigError, DataError
from tests.region_files import region, write


def config(path, **changes) -> TrainConfig:
    return TrainConfig(data=(str(path),), input_steps=3, lead_steps=2, **changes)


@pytest.fixture
def path(tmp_path):
    return write(region(levels=(850, 500)), tmp_path / "region.nc")


def test_all_variables_and_levels_become_channels(path):
    inputs = prepare_training(config(path))
    assert [c.name for c in inputs.spec.channels] == ["t2m", "tp", "z@850hPa", "z@500hPa"]
    assert inputs.spec.targets == inputs.spec.channels
    assert inputs.sources.target.values_NCHW.shape == (420, 4, 7, 9)
    assert inputs.sources.target.values_NCHW.dtype == np.float32


def test_variables_levels_and_targets_are_chosen(path):
    inputs = prepare_training(config(path, variables=("z", "t2m"), levels=(500.0,), target_variables=("z@500hPa",)))
    assert [c.name for c in inputs.spec.channels] == ["z@500hPa", "t2m"]
    assert inputs.spec.target_indices == [0]


def test_fields_are_normalised_exactly_once(path):
    inputs = prepare_training(config(path))
    training = inputs.sources.target.values_NCHW[inputs.roles_N == TRAIN]
    np.testing.assert_allclose(training.std(axis=(0, 2, 3)), 1, atol=0.02)


def test_windows_of_a_split_hold_no_time_of_another(path):
    inputs = prepare_training(config(path))
    seen = {}
    for role in (TRAIN, VALIDATION, HELD_OUT):
        windows = inputs.windows(role)
        assert len(windows) > 0
        at = windows.init_indices[:, None] + np.arange(-2, 3)
        seen[role] = set(at.ravel().tolist())
        assert (inputs.roles_N[at] == role).all()
    assert not seen[TRAIN] & seen[VALIDATION]
    assert not seen[TRAIN] & seen[HELD_OUT]


def test_nothing_that_training_sees_moves_when_held_out_values_change(path, tmp_path):
    before = prepare_training(config(path))
    dataset = region(levels=(850, 500))
    later = before.roles_N != TRAIN
    dataset["t2m"][later] = dataset["t2m"][later] + 1000
    dataset["z"][later] = 7
    after = prepare_training(config(write(dataset, tmp_path / "changed.nc")))
    np.testing.assert_array_equal(after.roles_N, before.roles_N)
    everything = np.arange(len(before.windows(TRAIN)))
    a, b = before.windows(TRAIN).gather(everything), after.windows(TRAIN).gather(everything)
    np.testing.assert_array_equal(a.x_BTCHW, b.x_BTCHW)
    np.testing.assert_array_equal(a.y_BLDHW, b.y_BLDHW)


def test_missing_values_become_zero_beside_a_mask(tmp_path):
    dataset = region()
    dataset["t2m"][:, 0, 0] = np.nan
    dataset["t2m"][5, 2, 2] = np.nan
    inputs = prepare_training(config(write(dataset, tmp_path / "gaps.nc")))
    source = inputs.sources.target
    assert np.isfinite(source.values_NCHW).all()
    assert source.observed_NMHW.shape == (420, 1, 7, 9)
    assert not source.observed_NMHW[:, 0, -1, 0].any()  # the file's first row is the northernmost
    assert not source.observed_NMHW[5, 0, 4, 2]
    assert inputs.spec.target_mask_indices == [0, -1]


def test_a_time_that_lost_a_variable_is_in_no_window(tmp_path):
    dataset = region()
    dataset["tp"][100] = np.nan
    inputs = prepare_training(config(write(dataset, tmp_path / "hole.nc")))
    at = inputs.windows(TRAIN).init_indices[:, None] + np.arange(-2, 3)
    assert 100 not in at
    assert 101 in at


def test_a_gap_that_begins_after_training_makes_its_times_incomplete(tmp_path):
    dataset = region()
    dataset["t2m"][400, 3, 3] = np.nan  # training had none: there is no mask channel for it
    inputs = prepare_training(config(write(dataset, tmp_path / "late.nc")))
    assert not inputs.sources.complete_N[400]
    assert inputs.sources.complete_N.sum() == 419


def test_what_was_filled_after_training_is_in_no_window_where_no_mask_can_say_so(tmp_path):
    dataset = region()
    dataset["t2m_filled"] = xr.zeros_like(dataset["t2m"], dtype=np.int8).assign_attrs(standard_name="status_flag")
    path = write(dataset, tmp_path / "flags.nc")
    before = prepare_training(config(path))
    filled = before.windows(VALIDATION).init_indices[3] + 1
    dataset["t2m_filled"][filled, 3, 3] = 1
    inputs = prepare_training(config(write(dataset, tmp_path / "filled.nc")))
    at = inputs.windows(VALIDATION).init_indices[:, None] + np.arange(-2, 3)
    assert filled not in at
    assert filled + 1 in at
    # As an input of a forecast it may be read.
    assert open_sources(inputs.spec, open_dataset([tmp_path / "filled.nc"])).complete_N.all()


def test_a_static_field_becomes_a_forcing(tmp_path):
    dataset = region()
    dataset["orography"] = (("lat", "lon"), np.arange(63.0).reshape(7, 9), {"units": "m"})
    inputs = prepare_training(config(write(dataset, tmp_path / "static.nc")))
    assert inputs.spec.target.static_names == ("orography",)
    last = inputs.sources.target.forcings.places[-1]
    assert last[-1, 0] == last.min()


def test_static_fields_that_differ_are_named_and_constant_ones_are_zero(tmp_path):
    dataset = region()
    dataset["lsm"] = (("lat", "lon"), np.ones((7, 9)), {"units": "1"})
    path = write(dataset, tmp_path / "static.nc")
    inputs = prepare_training(config(path))
    assert not inputs.sources.target.forcings.static_FHW.any()
    without = open_dataset([write(region(), tmp_path / "without.nc")])
    assert inputs.spec.differences(without) == ["static fields none instead of lsm"]


def test_a_level_that_is_not_used_need_not_be_whole(tmp_path):
    dataset = region(levels=(850, 500))
    dataset["z"][:, 0] = np.nan
    path = write(dataset, tmp_path / "half.nc")
    assert [c.name for c in prepare_training(config(path, levels=(500.0,))).spec.channels][-1] == "z@500hPa"
    with pytest.raises(DataError, match="all values of 'z@850hPa' are missing"):
        prepare_training(config(path))


def test_a_variable_named_twice_is_read_once(path):
    inputs = prepare_training(config(path, variables=("t2m", "tp", "t2m")))
    assert [c.name for c in inputs.spec.channels] == ["t2m", "tp"]


def test_an_upstream_region_is_read_on_its_own_grid(path):
    boxes = {"target_region": (48.0, 60.0, 0.0, 6.0), "upstream_region": ((50.0, 60.0, -10.0, -2.0),)}
    inputs = prepare_training(config(path, include_upstream=True, **boxes))
    assert inputs.sources.target.values_NCHW.shape[2:] == (7, 4)
    assert inputs.sources.upstream[0].values_NCHW.shape[2:] == (6, 5)
    (upstream,) = inputs.windows(TRAIN).gather([0, 1]).upstream
    assert upstream.shape == (2, 3, inputs.spec.upstream[0].input_channels, 6, 5)


def test_without_a_box_the_windward_side_is_taken_and_said(path):
    inputs = prepare_training(config(path, include_upstream=True, target_region=(48.0, 60.0, 0.0, 6.0)))
    assert inputs.spec.upstream[0].grid.lon == (-10, -8, -6, -4, -2)
    assert any("upstream region" in line and "west" in line for line in inputs.notes)


def test_data_beyond_the_budget_goes_to_a_file_and_reads_the_same(path, tmp_path):
    inside = prepare_training(config(path)).windows(TRAIN).gather([0, 7])
    cached = prepare_training(config(path, memory_budget=1e-6, cache_dir=str(tmp_path / "cache")))
    assert isinstance(cached.sources.target.values_NCHW, FileArray)
    np.testing.assert_array_equal(cached.windows(TRAIN).gather([0, 7]).x_BTCHW, inside.x_BTCHW)


def test_the_description_gives_the_same_arrays_again(path):
    inputs = prepare_training(config(path))
    spec = DataSpec.from_dict(inputs.spec.to_dict())
    assert spec.split == inputs.spec.split
    dataset = open_dataset([path])
    assert spec.differences(dataset) == []
    sources = open_sources(spec, dataset)
    np.testing.assert_array_equal(sources.target.values_NCHW, inputs.sources.target.values_NCHW)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.drop_vars("tp"), "no variable 'tp'"),
        (lambda d: d.assign(t2m=d["t2m"].assign_attrs(units="degC")), "'t2m' is in degC instead of K"),
        (lambda d: d.isel(level=[0]), "no level 500 hPa"),
        (lambda d: d.isel(time=slice(0, 40, 2)), "time step 2 d instead of 1 d"),
        (lambda d: d.isel(lon=slice(1, None)), "lon"),
        (lambda d: d.assign_coords(lat=d["lat"] + 1), "lat"),
    ],
)
def test_data_that_differ_are_refused_naming_the_difference(path, tmp_path, change, message):
    spec = prepare_training(config(path)).spec
    other = write(change(region(levels=(850, 500))), tmp_path / "other.nc")
    with pytest.raises(CheckpointError) as error:
        spec.check(open_dataset([other]))
    assert "does not fit the checkpoint" in str(error.value)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"variables": ("rain",)}, ConfigError, "no variable rain; the file has t2m, tp, z"),
        ({"levels": (700.0,)}, ConfigError, "no level 700 hPa; the file has 850, 500"),
        ({"target_variables": ("u",)}, ConfigError, "--target-variables u: not among the inputs, which are t2m"),
        ({"target_region": (0.0, 10.0, 0.0, 10.0)}, DataError, "48"),
    ],
)
def test_a_wrong_choice_is_answered_with_what_there_is(path, changes, kind, message):
    with pytest.raises(kind) as error:
        prepare_training(config(path, **changes))
    assert message in str(error.value)
