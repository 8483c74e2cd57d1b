"""The data cache: used when it fits, never when it is stale or unfinished."""

import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from convlstm_wx.config import TrainConfig
from convlstm_wx.data.inputs import TrainingInputs, prepare_training
from convlstm_wx.data.loaders import in_batches, load_batches
from convlstm_wx.data.splits import TRAIN
from convlstm_wx.data.store import FileArray, allocate_in_file, memory_budget_bytes
from convlstm_wx.errors import DataError
from tests.region_files import region, write


def prepared(path, folder, **changes) -> TrainingInputs:
    settings = {"input_steps": 3, "lead_steps": 2, "memory_budget": 1e-6} | changes
    return prepare_training(TrainConfig(data=(str(path),), cache_dir=str(folder / "cache"), **settings))


def caches(folder) -> set[str]:
    return {path.name for path in (folder / "cache").iterdir()}


def caches_of_a_run(path, folder) -> str:
    """The name of the one cache that a run makes."""
    prepared(path, folder)
    (name,) = caches(folder)
    return name


def first_value(inputs: TrainingInputs) -> float:
    return float(inputs.windows(TRAIN).gather([0]).x_BTCHW[0, 0, 0, 0, 0])


@pytest.fixture
def path(tmp_path):
    return write(region(days=200), tmp_path / "region.nc")


def test_data_within_the_budget_leave_no_cache(path, tmp_path):
    inputs = prepared(path, tmp_path, memory_budget=1.0)
    assert isinstance(inputs.sources.target.values_NCHW, np.ndarray)
    assert inputs.stored == "98 kB in memory"
    assert not (tmp_path / "cache").exists()


def test_processes_of_one_machine_share_the_budget(path, tmp_path):
    config = TrainConfig(data=(str(path),), memory_budget=150e3 / 2**30, cache_dir=str(tmp_path / "cache"))
    assert prepare_training(config).stored == "98 kB in memory"
    assert "in the data cache" in prepare_training(config, processes=2).stored


def test_a_second_run_uses_the_cache_of_the_first_without_reading_the_file(path, tmp_path, monkeypatch):
    first = prepared(path, tmp_path)
    assert len(caches(tmp_path)) == 1
    monkeypatch.setattr("convlstm_wx.data.regional.read_pieces", lambda *a, **k: pytest.fail("read again"))
    second = prepared(path, tmp_path)
    numbers = np.arange(5)
    a, b = first.windows(TRAIN).gather(numbers), second.windows(TRAIN).gather(numbers)
    np.testing.assert_array_equal(a.x_BTCHW, b.x_BTCHW)
    np.testing.assert_array_equal(a.y_BLDHW, b.y_BLDHW)
    assert first.account == second.account
    assert first.spec.to_dict().keys() == second.spec.to_dict().keys()
    np.testing.assert_array_equal(first.sources.complete_N, second.sources.complete_N)


def test_a_cache_and_the_memory_hold_the_same_with_gaps_and_flags(tmp_path):
    dataset = region(days=200)
    dataset["t2m"][5, 2, 2] = np.nan
    dataset["tp_filled"] = (("time", "lat", "lon"), np.zeros(dataset["tp"].shape, np.int8))
    dataset["tp_filled"][7, 0, 0] = 1
    dataset["tp"].attrs["ancillary_variables"] = "tp_filled"
    path = write(dataset, tmp_path / "gaps.nc")
    inside, cached = prepared(path, tmp_path, memory_budget=1.0), prepared(path, tmp_path)
    everything = np.arange(len(inside.windows(TRAIN)))
    a, b = inside.windows(TRAIN).gather(everything), cached.windows(TRAIN).gather(everything)
    assert a.x_BTCHW.shape[2] == 4  # two fields, two masks
    np.testing.assert_array_equal(a.x_BTCHW, b.x_BTCHW)
    np.testing.assert_array_equal(a.valid_BLDHW, b.valid_BLDHW)


def test_a_changed_file_is_read_again(path, tmp_path):
    before = prepared(path, tmp_path)
    changed = region(days=200)
    changed["t2m"][:] = changed["t2m"][::-1].values
    os.replace(write(changed, tmp_path / "new.nc"), path)
    after = prepared(path, tmp_path)
    assert len(caches(tmp_path)) == 2
    assert first_value(before) != first_value(after)


@pytest.mark.parametrize(
    "changes",
    [
        {"variables": ("tp",)},
        {"held_out_months": ("2001-02",)},
        {"target_region": (48.0, 56.0, -10.0, 6.0)},
    ],
)
def test_other_options_have_a_cache_of_their_own(path, tmp_path, changes):
    prepared(path, tmp_path)
    prepared(path, tmp_path, **changes)
    assert len(caches(tmp_path)) == 2


def test_a_store_that_says_it_was_updated_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr("convlstm_wx.data.cache.fingerprint", lambda files: [["gs://bucket/store.zarr"]])  # no more
    for number, stop in enumerate(["2001-07-19", "2001-07-19", "2001-08-01"]):
        prepared(write(region(days=200).assign_attrs(valid_time_stop=stop), tmp_path / f"{number}.nc"), tmp_path)
    assert len(caches(tmp_path)) == 2


def test_the_default_budget_is_half_of_what_there_is(monkeypatch):
    monkeypatch.setattr("convlstm_wx.data.store.memory_bytes", lambda: 1000)  # of a container, say
    assert memory_budget_bytes(None) == 500
    assert memory_budget_bytes(0.5) == 2**29


def test_options_that_do_not_touch_the_array_share_a_cache(path, tmp_path):
    prepared(path, tmp_path)
    prepared(path, tmp_path, target_variables=("tp",), batch_size=2)
    assert len(caches(tmp_path)) == 1


@pytest.mark.parametrize("given", ["{folder}/*.nc", "file://{folder}/region.nc"])
def test_a_changed_file_is_read_again_however_it_is_named(path, tmp_path, given):
    given = given.format(folder=tmp_path)
    before = prepared(given, tmp_path)
    changed = region(days=200)
    changed["t2m"] += 10
    changed["t2m"].attrs["units"] = "K"
    os.replace(write(changed, tmp_path / "new.tmp"), path)
    after = prepared(given, tmp_path)
    assert after.account.channels[0].mean == pytest.approx(before.account.channels[0].mean + 10)


def test_an_unfinished_cache_of_an_earlier_process_of_the_same_number_is_thrown_away(path, tmp_path):
    name = caches_of_a_run(path, tmp_path)
    left = tmp_path / "cache" / f"{name}.{socket.gethostname()}.{os.getpid()}.unfinished"
    (tmp_path / "cache" / name).rename(left)
    prepared(path, tmp_path)
    assert caches(tmp_path) == {name}


def test_an_unfinished_cache_of_a_dead_process_is_thrown_away_and_a_living_ones_is_left(path, tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    folder = tmp_path / "cache"
    for process in (dead.pid, os.getppid()):
        (folder / f"0123.{socket.gethostname()}.{process}.unfinished").mkdir(parents=True)
    prepared(path, tmp_path)
    left = [name for name in caches(tmp_path) if name.endswith("unfinished")]
    assert left == [f"0123.{socket.gethostname()}.{os.getppid()}.unfinished"]


def test_a_cache_that_fails_on_the_way_leaves_nothing(tmp_path):
    dataset = region(days=200)
    dataset["tp"][:] = np.nan
    with pytest.raises(DataError, match="tp"):
        prepared(write(dataset, tmp_path / "empty.nc"), tmp_path)
    assert caches(tmp_path) == set()


# Arrays in files


def test_rows_of_a_file_come_in_any_order_and_shape(tmp_path):
    array = allocate_in_file(tmp_path / "rows.bin", np.float32, (10, 2))
    array[0:10] = np.arange(20).reshape(10, 2)
    assert array[2:4].tolist() == [[4, 5], [6, 7]]
    assert array[np.array([[7, 8], [0, 1]])][:, :, 0].tolist() == [[14, 16], [0, 2]]
    assert array[np.array([3, 3, 1])][:, 1].tolist() == [7, 7, 3]
    assert array.nbytes == 80


def test_a_file_without_a_name_leaves_nothing_behind(tmp_path):
    array = allocate_in_file(None, bool, (4, 3), tmp_path)
    array[1:3] = np.ones((2, 3), bool)
    assert array[0:4].sum() == 6
    assert list(tmp_path.iterdir()) == []


def test_an_array_without_columns_has_rows_all_the_same(tmp_path):
    array = allocate_in_file(tmp_path / "empty.bin", bool, (4, 0))
    array[0:2] = np.empty((2, 0), bool)
    assert array[0:2].shape == (2, 0)


def test_a_cut_file_is_told(tmp_path):
    array = allocate_in_file(tmp_path / "rows.bin", np.float32, (10, 2))
    os.truncate(tmp_path / "rows.bin", 12)
    with pytest.raises(DataError, match="cut short"):
        array[0:10]


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_batches_come_in_order_however_many_threads_gather_them(path, tmp_path, threads):
    import torch

    windows = prepared(path, tmp_path).windows(TRAIN)
    assert isinstance(windows.target.values_NCHW, FileArray)
    batches = in_batches(np.random.default_rng(0).permutation(len(windows)), 7)
    loaded = list(load_batches(windows, batches, torch.device("cpu"), num_workers=threads))
    assert len(loaded) == len(batches)
    for numbers, batch in zip(batches, loaded):
        np.testing.assert_array_equal(batch.x_BTCHW.numpy(), windows.gather(numbers).x_BTCHW)


def test_sixteen_bits_are_wrong_by_a_small_share_of_each_fields_range(tmp_path):
    fields = np.random.default_rng(0).normal(size=(5, 2, 3, 4)).astype(np.float32)
    fields[:, 1] *= 1e4
    array = allocate_in_file(tmp_path / "packed.bin", np.float32, fields.shape, packed=True)
    array[0:2], array[2:5] = fields[:2], fields[2:]
    span = np.ptp(fields, axis=(2, 3), keepdims=True)
    assert (np.abs(array[0:5] - fields) <= 1.001 * span / 131_068).all()
    assert array.nbytes == 5 * 2 * (8 + 2 * 12)
    np.testing.assert_array_equal(array[np.array([[3, 0], [1, 4]])], array[0:5][[[3, 0], [1, 4]]])
    np.testing.assert_array_equal(array.part(np.array([4, 1]), 1), array[0:5][[4, 1], 1])


def test_sixteen_bits_keep_what_is_missing_constant_or_zero(tmp_path):
    fields = np.array([[[[np.nan, 2.0, 5.0]]], [[[7.0, 7.0, 7.0]]], [[[np.nan] * 3]], [[[0.0, 0.0, 88.0]]]], np.float32)
    array = allocate_in_file(None, np.float32, fields.shape, packed=True)
    array[0:4] = fields
    np.testing.assert_allclose(array[0:4], fields, rtol=1e-6)
    assert array[3:4][0, 0, 0, 0] == 0


def test_a_cache_of_sixteen_bits_needs_half_the_disk_and_gives_nearly_the_same_batches(path, tmp_path):
    plain, packed = prepared(path, tmp_path), prepared(path, tmp_path, cache_dtype="int16")
    assert plain.stored.startswith("98 kB in the data cache")
    assert packed.stored.startswith("49 kB as 16-bit numbers in the data cache")
    sizes = sorted(file.stat().st_size for file in (tmp_path / "cache").glob("*/values.bin"))
    assert sizes[0] == sizes[1] / 2 + 200 * 2 * 8
    a, b = (inputs.windows(TRAIN).gather(np.arange(5)) for inputs in (plain, packed))
    assert 0 < np.abs(a.x_BTCHW - b.x_BTCHW).max() < 1e-3
    again = prepared(path, tmp_path, cache_dtype="int16").windows(TRAIN).gather(np.arange(5))
    np.testing.assert_array_equal(again.x_BTCHW, b.x_BTCHW)
