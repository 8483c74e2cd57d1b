"""A coarser upstream region, and a file that is divided into target and upstream."""

import numpy as np
import pytest
import xarray as xr

from convlstm_wx.cli import main
from convlstm_wx.commands.variants import _on_one_target
from convlstm_wx.config import TrainConfig
from convlstm_wx.data.coarsening import axis_means, block_means, coarse_places
from convlstm_wx.data.inputs import TrainingInputs, open_sources, prepare_training
from convlstm_wx.data.reading import open_dataset
from convlstm_wx.data.spec import DataSpec
from convlstm_wx.data.splits import TRAIN
from convlstm_wx.data.upstream import choose_coarsening, divide
from convlstm_wx.errors import CheckpointError, ConfigError, DataError
from tests.region_files import region, write

NAN = np.nan
SMALL = ["--device", "cpu", "--hidden-channels", "4", "4", "--batch-size", "16", "--num-epochs", "1"]
BOXES = {"target_region": (48.0, 60.0, 0.0, 6.0), "upstream_region": ((48.0, 60.0, -10.0, -2.0),)}


def prepared(path, **changes) -> TrainingInputs:
    settings = {"input_steps": 3, "lead_steps": 2, "include_upstream": True} | changes
    return prepare_training(TrainConfig(data=(str(path),), **settings))


# Means over blocks


def test_blocks_at_the_edge_have_the_points_that_are_left():
    grid = np.arange(9.0).reshape(3, 3)
    assert block_means(grid, np.ones(3), 2).tolist() == [[2, 3.5], [6.5, 8]]
    assert axis_means(np.array([0.0, 1, 2]), 2).tolist() == [0.5, 2]


def test_rows_count_by_their_area():
    assert block_means(np.array([[0.0, 0], [4, 4]]), np.array([1.0, 3]), 2).tolist() == [[3]]


def test_missing_points_do_not_count_and_half_a_block_is_enough():
    half, quarter = np.array([[1.0, 3], [NAN, NAN]]), np.array([[1.0, NAN], [NAN, NAN]])
    assert block_means(half, np.ones(2), 2).tolist() == [[2]]
    assert np.isnan(block_means(quarter, np.ones(2), 2)).all()


def test_the_places_are_those_of_the_blocks():
    land = (("lat", "lon"), [[0.0, 1, 1], [0, 1, 1]], {"units": "1"})
    fine = xr.Dataset(
        {"lsm": land, "t": (("time", "lat", "lon"), np.zeros((1, 2, 3)))}, {"lat": [0, 2], "lon": [4, 5, 6]}
    )
    coarse = coarse_places(fine, np.ones(2), 2)
    assert (coarse["lat"].values.tolist(), coarse["lon"].values.tolist()) == ([1], [4.5, 6])
    assert coarse["lsm"].values.tolist() == [[0.5, 1]]
    assert "t" not in coarse


# The upstream region of a run


@pytest.fixture
def path(tmp_path):
    return write(region(days=200), tmp_path / "region.nc")


def test_an_upstream_region_is_read_as_means_over_blocks(path):
    inputs = prepared(path, **BOXES, upstream_coarsen=2)
    (spec,) = inputs.spec.upstream
    assert (spec.grid.lat, spec.grid.lon) == ((49, 53, 57, 60), (-9, -5, -2))
    fields = inputs.windows(TRAIN).gather([0]).upstream[0][0, :, 0]
    back = spec.statistics.to_physical(inputs.windows(TRAIN).gather([0]).upstream[0][0], inputs.sources.times[:3])[:, 0]
    raw = (
        region(days=200)["t2m"].sortby("lat").sel(time=inputs.sources.times[:3], lat=slice(48, 50), lon=slice(-10, -8))
    )
    rows = np.cos(np.deg2rad([48, 50]))  # nearly the areas of the two rows
    np.testing.assert_allclose(back[:, 0, 0], (raw.mean("lon") * rows).sum("lat") / rows.sum(), atol=0.01)
    assert fields.shape == (3, 4, 3)
    assert any("means over 2 x 2 points: 12 of 35" in note for note in inputs.notes)


def test_what_was_filled_counts_only_where_nothing_was_observed(tmp_path):
    dataset = region(days=200)
    flags = xr.zeros_like(dataset["t2m"], np.int8)
    flags[5, -2:, 0], flags[5, -2:, 2:4] = 1, 1  # a column of the first block, and all of the second
    dataset["t2m"].values[np.asarray(flags) == 1] = 295
    dataset["t2m"].attrs["ancillary_variables"] = "t2m_filled"
    dataset["t2m_filled"] = flags.assign_attrs(standard_name="status_flag")
    path = write(dataset, tmp_path / "filled.nc")
    inputs = prepared(path, **BOXES, upstream_coarsen=2, levels=())
    fields = inputs.sources.upstream[0]
    (spec,) = inputs.spec.upstream
    values = spec.statistics.to_physical(fields.values_NCHW[5:6], inputs.sources.times[5:6])[0, 0]
    assert values[0, 0] < 285  # observed
    assert abs(values[0, 1] - 295) < 0.1  # filled
    assert fields.observed_NMHW[5, 0, 0].tolist() == [True, False, True]


def test_a_checkpoint_reads_the_same_coarse_region_from_another_file(path):
    inputs = prepared(path, **BOXES, upstream_coarsen=2)
    spec = DataSpec.from_dict(inputs.spec.to_dict())
    assert spec.upstream[0].coarsen == 2
    again = open_sources(spec, open_dataset([path]))
    np.testing.assert_allclose(again.upstream[0].values_NCHW, inputs.sources.upstream[0].values_NCHW, atol=1e-5)


def test_checkpoints_from_before_there_was_coarsening_read_every_point(path):
    entries = prepared(path, **BOXES).spec.to_dict()
    del entries["upstream"][0]["coarsen"], entries["target"]["coarsen"]
    assert DataSpec.from_dict(entries).upstream[0].coarsen == 1


def test_another_grid_is_refused_by_its_fine_points(path, tmp_path):
    spec = prepared(path, **BOXES, upstream_coarsen=2).spec
    shifted = region(days=200)
    shifted["lon"] = shifted["lon"] + 0.5
    with pytest.raises(CheckpointError, match="longitudes"):
        spec.check(open_dataset([write(shifted, tmp_path / "shifted.nc")]))


# How coarse


@pytest.mark.parametrize(
    ("target", "upstream", "factor"),
    [
        ((61, 61), (101, 161), 3),  # 16,261 points beside 3,721: at 3 x 3 there are 34 x 54
        ((61, 61), (61, 90), 1),  # 4 times of 5,490 cost less than 10 times of 3,721
        ((10, 10), (10, 14), 1),
        ((4, 4), (600, 3), 2),  # 2 x 2 leaves 600 points, few enough
        ((4, 4), (9_000, 3), 3),  # never coarser than the region is wide
        ((4, 4), (30, 30), 1),
    ],
)
def test_upstream_is_coarsened_only_where_it_would_cost_more_than_the_target(target, upstream, factor):
    assert choose_coarsening(0, target, [upstream], 4, 6)[0] == factor


def test_all_regions_together_count():
    assert choose_coarsening(0, (30, 30), [(60, 60)] * 2, 4, 4)[0] == 3  # 800 points; 1,800 at 2 x 2
    assert choose_coarsening(0, (10, 10), [], 4, 4) == (1, [])


def test_a_number_is_taken_as_it_is_and_refused_where_nothing_is_left():
    assert choose_coarsening(2, (10, 10), [(4, 9)], 4, 4)[0] == 2
    with pytest.raises(ConfigError, match="--upstream-coarsen 5: an upstream region has only 4 rows or columns"):
        choose_coarsening(5, (10, 10), [(4, 9)], 4, 4)
    with pytest.raises(ConfigError, match="does nothing without --include-upstream"):
        TrainConfig(upstream_coarsen=2)


# The file divided


def windy(speed: float) -> xr.Dataset:
    dataset = region(days=30)
    u = xr.full_like(dataset["t2m"], speed).assign_attrs(units="m s-1", long_name="wind")
    return dataset.assign(u=u)


@pytest.mark.parametrize(("speed", "target", "upstream"), [(8, (2, 6), (-10, 0)), (-8, (-10, -6), (-4, 6))])
def test_the_lee_third_of_the_file_is_the_target(tmp_path, speed, target, upstream):
    dataset = open_dataset([write(windy(speed), tmp_path / "windy.nc")])
    lee, rest, reason = divide(dataset, np.ones(30, bool))
    assert (lee.lon_min, lee.lon_max) == target
    assert (rest.lon_min, rest.lon_max) == upstream
    assert (lee.lat_min, lee.lat_max) == (rest.lat_min, rest.lat_max) == (48, 60)
    assert f"{speed}.0 m s-1" in reason


def test_a_file_of_one_column_cannot_be_divided(tmp_path):
    dataset = open_dataset([write(region(days=30).isel(lon=[0]), tmp_path / "narrow.nc")])
    with pytest.raises(DataError, match="1 column"):
        divide(dataset, np.ones(30, bool))


def test_the_printed_flags_repeat_the_choice(path, tmp_path, capsys):
    data = ["--data", str(path), *SMALL, "--blend", "none"]
    assert main(["train", *data, "--include-upstream", "--output-dir", str(tmp_path / "auto")]) == 0
    said = capsys.readouterr().out
    flags = next(line.split() for line in said.splitlines() if line.strip().startswith("--target-region"))
    assert main(["train", *data, *flags, "--output-dir", str(tmp_path / "named")]) == 0
    last = [(tmp_path / name / "history.csv").read_text().splitlines()[1].split(",")[:4] for name in ("auto", "named")]
    assert last[0] == last[1]
    assert main(["forecast", "--checkpoint", str(tmp_path / "auto"), "--data", str(path), "--output",
                 str(tmp_path / "forecast.nc"), "--device", "cpu"]) == 0  # fmt: skip
    with xr.open_dataset(tmp_path / "forecast.nc") as made:
        assert made["lon"].values.tolist() == [2, 4, 6]


def test_an_experiment_divides_the_file_for_both_arms(path, tmp_path, capsys):
    output = tmp_path / "experiment"
    assert main(["experiment", "upstream", "--data", str(path), *SMALL, "--blend", "none", "--seeds", "0",
                 "--permutations", "1", "--output", str(output)]) == 0  # fmt: skip
    assert "the file is divided" in capsys.readouterr().out
    with xr.open_dataset(output / "without_upstream" / "seed_0" / "forecast.nc") as made:
        assert made["lon"].values.tolist() == [2, 4, 6]


def test_variants_with_and_without_upstream_have_one_target(path):
    data = (str(path),)
    variants = {"with": TrainConfig(data=data, include_upstream=True), "without": TrainConfig(data=data)}
    found = _on_one_target(variants, {data: open_dataset([path])})
    assert found["with"].target_region == found["without"].target_region == (48, 60, 2, 6)
    assert not found["without"].include_upstream
    alone = {"without": variants["without"]}
    assert _on_one_target(alone, {data: open_dataset([path])}) == alone
