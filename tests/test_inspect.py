"""inspect: the account, the plan and the probe, through the real command line."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from convlstm_wx.cli import main
from convlstm_wx.config import TrainConfig
from convlstm_wx.conventions import Channel
from convlstm_wx.data.inputs import prepare_training
from convlstm_wx.data.reading import open_dataset
from convlstm_wx.device import choose_device
from convlstm_wx.distributed import joined
from convlstm_wx.errors import TrainingError
from convlstm_wx.report import survey
from convlstm_wx.report.maps import Look
from convlstm_wx.training import plan as planning
from convlstm_wx.training import probe as probing
from convlstm_wx.training.loop import Run
from convlstm_wx.training.plan import role_plans
from convlstm_wx.training.probe import Probe, probe
from tests.region_files import region, write

SMALL = ["--hidden-channels", "4", "8", "--device", "cpu"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """What is written without being asked for would be seen."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def path(tmp_path):
    return str(write(region(days=120), tmp_path / "region.nc"))


def inspect(path, *options) -> int:
    return main(["inspect", "--data", str(path), *SMALL, *options])


def a_run(path, folder, *, device="cpu", **settings) -> Run:
    config = TrainConfig(data=(str(path),), hidden_channels=(4, 8), device=device, num_epochs=1, **settings)
    with joined() as processes:
        return Run(config, prepare_training(config), choose_device(device), folder, processes)


# The command


def test_a_good_file_is_ready_and_nothing_is_written(path, tmp_path, capsys):
    assert inspect(path) == 0
    said = capsys.readouterr().out
    titles = [line for line in said.splitlines() if line and not line.startswith(" ")]
    assert titles[:-1] == ["File", "Variables", "Time", "Windows", "Memory", "One training batch", "To look at"]
    assert titles[-1] == f"ready: python train_convlstm.py --data {path} --hidden-channels 4 8 --device cpu"
    assert "  t2m      2 m temperature      K" in said
    assert "no gaps" in said
    assert list((tmp_path / "here").iterdir()) == []


def test_the_command_that_is_told_trains(path, tmp_path, capsys):
    box = ["--target-region", "50", "58", "-8", "0"]
    assert inspect(path, *box, "--include-upstream", "--upstream-region", "50", "58", "-10", "-6", "--no-amp") == 0
    last = capsys.readouterr().out.splitlines()[-1]
    words = last.removeprefix("ready: python train_convlstm.py ").split()
    assert "--upstream-region 50 58 -10 -6" in " ".join(words)
    assert main(["train", *words, "--num-epochs", "1", "--output-dir", str(tmp_path / "run")]) == 0


def test_the_command_keeps_every_digit(path, capsys):
    assert inspect(path, "--learning-rate", "0.00012345678", "--batch-size", "500") == 0
    said = capsys.readouterr().out
    assert "--learning-rate 0.00012345678" in said.splitlines()[-1]
    assert "--batch-size 500 fits" in said  # more than there are windows


def test_a_device_with_little_memory_gets_a_smaller_batch(path, capsys, monkeypatch):
    monkeypatch.setattr(planning, "usable_bytes", lambda *_: 10 * 2**20)
    assert inspect(path, "--batch-size", "128", "--gradient-accumulation-steps", "2") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  device ")]
    words = line.partition("tight; ")[2].split()
    assert words[4:] == ["learns", "the", "same"]
    assert int(words[1]) * int(words[3]) == 256


def test_what_is_chosen_is_what_is_shown(path, capsys):
    region_options = ["--target-region", "50", "60", "0", "6", "--include-upstream"]
    assert inspect(path, *region_options, "--target-variables", "tp", "--lead-steps", "2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  grid    6 x 4 points, 50 to 60 degrees north, 0 to 6 degrees east, every 2 degrees" in lines
    assert "  targets     tp" in lines
    assert "  one window: 4 times in, 2 to forecast (+1 d to +2 d)" in lines
    upstream = lines[lines.index("Upstream") + 1]
    assert upstream.startswith("  upstream region 50 to 60 degrees north, -10 to -2 degrees east")


def test_data_beyond_the_budget_say_where_they_are_kept(path, tmp_path, capsys):
    cache = tmp_path / "cache"
    assert inspect(path, "--memory-budget", "0.00001", "--cache-dir", str(cache)) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  data ")]
    assert f"in the data cache {cache}, which training reads too: the budget is" in line


def test_json_alone_is_on_the_screen(path, capsys):
    assert inspect(path, "--json", "-") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ready"] is True
    assert found["problem"] is None
    assert [channel["name"] for channel in found["account"]["channels"]] == ["t2m", "tp"]
    assert [entry["role"] for entry in found["windows"]] == ["training", "validation", "held out"]
    assert found["plan"]["probe"]["lead_steps"] == 4
    assert found["plan"]["in_memory"] is True


def test_json_goes_to_a_file_beside_the_account(path, tmp_path, capsys):
    assert inspect(path, "--json", str(tmp_path / "found.json")) == 0
    assert "Variables" in capsys.readouterr().out
    assert json.loads((tmp_path / "found.json").read_text())["ready"] is True


def test_plots_are_drawn_for_each_channel(tmp_path, capsys):
    path = write(region(days=120, levels=(850.0, 500.0)), tmp_path / "region.nc")
    assert inspect(path, "--plot", str(tmp_path / "figures")) == 0
    names = sorted(file.name for file in (tmp_path / "figures").iterdir())
    assert names == ["t2m.png", "tp.png", "z@500hPa.png", "z@850hPa.png"]
    assert f"figures: 4 in {tmp_path / 'figures'}" in capsys.readouterr().out


# What cannot be trained with


def broken(kind) -> xr.Dataset:
    whole = region(days=120)
    if kind == "empty variable":
        whole["tp"][:] = np.nan
    elif kind == "short":
        whole = whole.isel(time=slice(0, 12))
    elif kind == "one time":
        whole = whole.isel(time=slice(0, 1))
    elif kind == "duplicates":
        whole = whole.isel(time=[0, 0, *range(1, 120)])
    elif kind == "unsorted":
        whole = whole.isel(time=[1, 0, *range(2, 120)])
    elif kind == "holes everywhere":
        whole["t2m"][::5] = np.nan
    return whole


@pytest.mark.parametrize(
    ("kind", "problem", "also"),
    [
        ("empty variable", "all values of 'tp' are missing", "no values"),
        ("short", "leave no window of 8 steps", "12 times, one each 1 d"),
        ("one time", "1 time in the file", "1 time, from 2001-01-01T00:00"),
        ("duplicates", "2001-01-01T00:00 occurs twice", "1 time repeated"),
        ("unsorted", "is not increasing", "1 time out of order"),
        ("holes everywhere", "no training window of 8 consecutive complete times", "lost to missing values"),
    ],
)
def test_what_cannot_be_trained_with_is_shown_and_then_refused(tmp_path, capsys, kind, problem, also):
    path = write(broken(kind), tmp_path / "broken.nc")
    assert inspect(path) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "File"
    assert any(also in line for line in lines[:-1])
    assert lines[-1].startswith("not ready: ")
    assert problem in lines[-1]


def test_a_damaged_file_is_one_line(path, capsys):
    whole = Path(path).read_bytes()
    Path(path).write_bytes(whole[: len(whole) // 2])
    assert inspect(path) == 2
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("not ready: ")
    assert "damaged" in line


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--variables", "wind"], "no variable wind; the file has t2m, tp"),
        (["--target-region", "-50", "-40", "0", "10"], "no grid points in the region"),
        (["--device", "cuda:99"], "--device cuda"),
        (["--held-out-months", "1850"], "--held-out-months 1850: no time of the data lies there"),
        (["--batch-size", "1000", "--hidden-channels", "4", "8", "--levels", "500"], "no level 500 hPa"),
    ],
)
def test_options_that_do_not_fit_the_file_still_show_it(path, capsys, options, problem):
    assert inspect(path, *options) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "File"
    assert any(line.startswith("  tp  ") for line in lines)
    assert lines[-1].startswith("not ready: ")
    assert problem in lines[-1]


def test_a_file_that_is_none_is_one_line(tmp_path, capsys):
    path = tmp_path / "text.nc"
    path.write_text("not a grid")
    assert inspect(path) == 2
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("not ready: ")
    assert "not a NetCDF file" in line


def test_json_of_what_cannot_be_read_is_json_too(tmp_path, capsys):
    assert inspect(tmp_path / "nowhere.nc", "--json", "-") == 2
    found = json.loads(capsys.readouterr().out)
    assert (found["ready"], found["account"]) == (False, None)
    assert "no such file" in found["problem"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--plot", "file/figures"], "cannot be written"),
        (["--json", "file/found.json"], "cannot be written"),
        (["--batch-size", "0"], "--batch-size 0: must be at least 1"),
    ],
)
def test_mistakes_in_the_options_are_one_line(path, tmp_path, capsys, options, message):
    (tmp_path / "here" / "file").touch()
    assert inspect(path, *options) == 2
    assert message in capsys.readouterr().err


def test_json_never_takes_the_place_of_what_is_read(path, tmp_path, capsys):
    data = Path(path)
    before = data.read_bytes()
    settings = tmp_path / "run.toml"
    settings.write_text("batch_size = 2\n")
    for output in (data, settings):
        assert inspect(path, "--config", str(settings), "--json", str(output)) == 2
        assert f"--json {output}: is an input of this command" in capsys.readouterr().err
    assert data.read_bytes() == before
    assert settings.read_text() == "batch_size = 2\n"


def test_json_into_a_folder_is_refused_before_anything_is_read(path, tmp_path, capsys):
    assert inspect(path, "--json", str(tmp_path)) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "is a folder; name a file" in said.err


def test_a_full_disk_is_one_line_and_leaves_no_half_figure(path, tmp_path, monkeypatch, capsys):
    def full(self, target, **_):
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    assert inspect(path, "--plot", str(tmp_path / "figures")) == 2
    assert "t2m.png: cannot be written (No space left on device); free some space" in capsys.readouterr().err
    assert list((tmp_path / "figures").iterdir()) == []


def test_what_was_noticed_is_said_once(path, capsys):
    assert inspect(path, "--target-region", "50", "60", "-60", "6", "--plot", "figures") == 0
    assert capsys.readouterr().out.count("reaches beyond the file") == 1


def test_a_batch_of_more_windows_than_there_are(path, capsys):
    assert inspect(path, "--batch-size", "100000") == 0
    said = capsys.readouterr().out
    assert "--batch-size 100000 fits, as training has only " in said
    assert "tight" not in said


# What gaps and missing values cost


def test_gaps_and_missing_values_cost_the_windows_that_hold_them(tmp_path):
    whole = region(days=120)
    whole["t2m"][20] = np.nan  # a time without any value
    path = write(whole.isel(time=[i for i in range(120) if i != 50]), tmp_path / "region.nc")
    config = TrainConfig(data=(str(path),), input_steps=2, lead_steps=1, held_out_months=("2001-04",))
    training, validation, held_out = role_plans(prepare_training(config))
    assert (training.lost_to_gaps, training.lost_to_missing) == (3, 3)  # each time is in three windows of three steps
    assert (held_out.lost_to_gaps, held_out.lost_to_missing) == (0, 0)
    assert held_out.windows == 30 - 2
    assert validation.windows > 0


# The probe


def test_monthly_means_are_told_as_what_they_are(tmp_path, capsys):
    months = np.arange("1980-01", "1990-01", dtype="datetime64[M]").astype("datetime64[ns]")
    path = write(region(days=120).assign_coords(time=months), tmp_path / "region.nc")
    assert inspect(path) == 2
    said = capsys.readouterr().out
    assert "50 times closer to the one before than 31 d" in said
    assert "no gaps" not in said
    assert "the uneven steps in time, told above" in said
    assert "not ready: the 120 times of the data" in said


def test_a_store_that_lists_its_variables_in_any_order_gives_one(tmp_path, monkeypatch):
    region(days=20).to_zarr(tmp_path / "a.zarr", zarr_format=2, consolidated=False)
    there = xr.open_dataset
    for names in (["tp", "t2m"], ["t2m", "tp"]):
        monkeypatch.setattr(xr, "open_dataset", lambda *a, names=names, **k: there(*a, **k)[names])
        assert list(open_dataset([tmp_path / "a.zarr"]).data_vars) == ["t2m", "tp"]


def test_training_after_a_probe_is_training_without(path, tmp_path):
    weights = []
    for name, probed in (("plain", False), ("probed", True)):
        (tmp_path / name).mkdir()
        run = a_run(path, tmp_path / name)
        if probed:
            probe(run, repeats=2)
            assert all(p.grad is None for p in run.learner.network.parameters())
        run.train()
        weights.append((run.learner.network.state_dict(), run.progress.history[0]["train_loss"]))
    (plain, plain_loss), (probed, probed_loss) = weights
    assert plain_loss == probed_loss
    assert all(torch.equal(plain[name], probed[name]) for name in plain)


WITH_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=WITH_CUDA)])
def test_a_probe_moves_neither_weights_nor_the_optimiser(path, tmp_path, device):
    run = a_run(path, tmp_path, device=device)
    before = copy.deepcopy(run.learner.network.state_dict())
    run.learner.network.eval()
    found = probe(run)
    after = run.learner.network.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not run.learner.network.training
    assert run.learner.optimizer.state_dict()["state"] == {}
    assert np.isfinite(found.loss)
    assert (found.windows, found.lead_steps) == (4, 4)
    assert found.seconds > 0


def test_more_windows_need_more_memory_in_proportion(path, tmp_path):
    one, four = (probe(a_run(path, tmp_path, batch_size=size)) for size in (1, 4))
    assert four.batch_bytes == pytest.approx(4 * one.batch_bytes, rel=0.1)
    assert four.network_bytes == one.network_bytes


@pytest.mark.parametrize(("memory", "fitting"), [(99, 0), (110, 1), (129, 2), (140, 4), (1000, 64)])
def test_the_batch_size_that_fits_is_a_power_of_two(memory, fitting):
    # 100 bytes for the network, 10 for each window.
    found = Probe(windows=2, lead_steps=1, loss=1.0, seconds=1.0, batch_bytes=20, network_bytes=100)
    assert found.windows_that_fit(memory) == fitting


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:75] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("MPS backend out of memory (MPS allocated: 1.0 GB)"),
        MemoryError("Unable to allocate 1. GiB for an array"),
    ],
)
@pytest.mark.parametrize(
    ("size", "advice"),
    [
        (4, "for 4 windows of 4 lead steps at once; use --batch-size 2 --gradient-accumulation-steps 4, which learns"),
        (3, "use --batch-size 1 --gradient-accumulation-steps 6"),
        (1, "use a smaller --target-region, fewer --hidden-channels or fewer --lead-steps, or --use-amp"),
    ],
)
def test_too_little_memory_says_what_to_do(path, tmp_path, monkeypatch, error, size, advice):
    run = a_run(path, tmp_path, batch_size=size, gradient_accumulation_steps=2)

    def fail(*_):
        raise error

    monkeypatch.setattr(run.learner.network, "forward", fail)
    with pytest.raises(TrainingError, match="too little memory on cpu") as raised:
        probe(run)
    assert advice in str(raised.value)


def test_other_errors_stay_what_they_are(path, tmp_path, monkeypatch):
    run = a_run(path, tmp_path)
    monkeypatch.setattr(probing, "_pass", lambda *_: (_ for _ in ()).throw(RuntimeError("a mistake of ours")))
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        probe(run)


def test_a_loss_that_is_not_finite_is_an_error(path, tmp_path):
    run = a_run(path, tmp_path)
    with torch.no_grad():
        next(run.learner.network.parameters()).fill_(torch.nan)
    with pytest.raises(TrainingError, match="the first batch fails: the loss is nan; look at the extremes of the data"):
        probe(run)


def test_a_gradient_that_is_not_finite_is_an_error(path, tmp_path):
    run = a_run(path, tmp_path)
    next(run.learner.network.parameters()).register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(TrainingError, match="a gradient is not finite"):
        probe(run)


# Figures


def overview(ds, tmp_path, name="t2m"):
    return next(survey.overviews(open_dataset([write(ds, tmp_path / "file.nc")]), [Channel(name)]))


def test_the_overview_is_of_all_times_and_points(tmp_path, monkeypatch):
    ds = region(days=5, height=2, width=2).drop_vars("tp")
    ds = ds.assign_coords(lat=("lat", [1.0, -1.0], ds["lat"].attrs))  # rows that weigh the same
    ds["t2m"][:] = np.arange(20).reshape(5, 2, 2)
    ds["t2m"][4] = np.nan
    ds["t2m"][0, 0, 0] = np.nan
    monkeypatch.setattr(survey, "READ_BYTES", 64)  # two times at once
    found = overview(ds, tmp_path)
    np.testing.assert_allclose(found.mean_HW, [[8, 9], [8, 7]])  # south first
    np.testing.assert_allclose(found.mean_N, [2, 5.5, 9.5, 13.5, np.nan], rtol=1e-6)
    np.testing.assert_array_equal(found.low_N, [1, 4, 8, 12, np.nan])
    np.testing.assert_array_equal(found.high_N, [3, 7, 11, 15, np.nan])
    assert found.missing_share == 5 / 20
    assert found.example_time == found.times[1]  # the median area mean
    np.testing.assert_array_equal(found.example_HW, [[6, 7], [4, 5]])


def test_of_rain_a_wet_field_is_shown(tmp_path):
    ds = region(days=100, height=2, width=2).drop_vars("t2m")
    ds["tp"][:] = 0.0
    ds["tp"][90] = 0.01
    ds["tp"][91:97] = 0.001
    found = overview(ds, tmp_path, "tp")
    assert found.example_HW.max() == pytest.approx(0.001)


def test_rain_that_falls_everywhere_has_evenly_spaced_colours():
    look = Look.of(Channel("tp"), {"units": "m"})
    everywhere, here_and_there = np.linspace(1e-4, 1e-3, 50), np.append(np.zeros(40), np.geomspace(1e-5, 1e-3, 10))
    np.testing.assert_allclose(np.diff(survey._levels(everywhere, look)), 1e-4, rtol=0.6)
    assert survey._levels(here_and_there, look).tolist() == look.levels(here_and_there).tolist()
    assert survey._levels(np.full(3, np.nan), look).size > 1


def test_colour_bars_about_zero_have_the_same_numbers_on_both_sides():
    assert survey._ticks(np.array([-3, -2, -1, 1, 2, 3])).tolist() == [-3, -1, 1, 3]
    assert survey._ticks(np.array([-2, -1, 1, 2])).tolist() == [-2, 2]
    assert survey._ticks(np.array([0, 1, 2, 3, 4])).tolist() == [0, 2, 4]


def test_lines_stop_at_gaps():
    times = np.datetime64("2001-01-01", "ns") + np.array([0, 1, 2, 5, 6]) * np.timedelta64(1, "D")
    at, (values,) = survey._with_gaps(times, [np.arange(5.0)])
    np.testing.assert_array_equal(values, [0, 1, 2, np.nan, 3, 4])
    assert times[2] < at[3] < times[3]


def test_a_channel_without_values_is_drawn_empty(tmp_path):
    ds = region(days=10)
    ds["t2m"][:] = np.nan
    dataset = open_dataset([write(ds, tmp_path / "file.nc")])
    assert survey.draw_all(tmp_path / "figures", dataset, [Channel("t2m")])["t2m"].exists()


def test_a_projected_grid_is_drawn_where_it_lies_and_its_cells_weigh_alike(tmp_path):
    ds = open_dataset([write(region(days=10), tmp_path / "file.nc")])
    lat_HW, lon_HW = np.meshgrid(ds["lat"].values, ds["lon"].values, indexing="ij")
    ds = ds.assign_coords(latitude=(("lat", "lon"), lat_HW), longitude=(("lat", "lon"), lon_HW + 0.3 * lat_HW))
    (found,) = survey.overviews(ds, [Channel("t2m")])
    np.testing.assert_allclose(found.mean_N, ds["t2m"].mean(("lat", "lon")), rtol=1e-6)
    assert survey.draw(found, ds, tmp_path / "t2m.png").exists()


def test_long_records_are_drawn_by_month(tmp_path, monkeypatch):
    monkeypatch.setattr(survey, "MOST_TIMES_DRAWN", 50)
    found = overview(region(days=90), tmp_path)
    times, (mean, low, high), each = survey._thinned(found)
    assert [str(time)[:7] for time in times] == ["2001-01", "2001-02", "2001-03"]
    assert mean[0] == pytest.approx(found.mean_N[:31].mean())
    assert (low[1], high[1]) == (found.low_N[31:59].min(), found.high_N[31:59].max())
    assert each == ", by month"


# Real files


@pytest.mark.real_data
@pytest.mark.slow
def test_every_real_file_is_ready(real_data, capsys):
    files = sorted(real_data.glob("*.nc"))
    assert len(files) == 7
    for file in files:
        assert inspect(file) == 0, file.name
        said = capsys.readouterr().out
        assert "nothing unusual" in said, file.name
