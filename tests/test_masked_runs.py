"""Training, forecasts, scores and preparation of files with masks: what was filled is an input and nothing else."""

import re

import numpy as np
import pytest
import xarray as xr

from convlstm_wx import load_forecaster
from convlstm_wx.checkpoint import load_checkpoint
from convlstm_wx.cli import main
from convlstm_wx.config import TrainConfig
from convlstm_wx.data.inputs import TrainingInputs, open_sources, prepare_training
from convlstm_wx.data.reading import open_dataset
from convlstm_wx.data.spec import DataSpec
from convlstm_wx.data.splits import TRAIN, VALIDATION
from convlstm_wx.errors import ConfigError
from tests.region_files import region, write

SMALL = ["--hidden-channels", 4, "--input-steps", 3, "--lead-steps", 2, "--device", "cpu", "--num-epochs", 1]
SMALL += ["--batch-size", 16, "--blend", "none"]
FILL = 0.02  # m of rain in a day, ten times what falls: what is learned or scored by mistake is seen at once


def holes(days: int) -> np.ndarray:
    """Where the rain was filled, from north to south: a corner every third day, and some points."""
    where = np.random.default_rng(5).random((days, 7, 9)) < 0.03
    where[::3, :2, :3] = True
    return where


def filled(days: int = 200) -> xr.Dataset:
    """Rain with filled values and a mask of float32 without attributes; the mask of t2m says that all was observed."""
    dataset, where = region(days=days), holes(days)
    dataset["tp"] = dataset["tp"].where(~where, np.float32(FILL)).assign_attrs(dataset["tp"].attrs)
    for name, marks in (("t2m", np.ones_like(where)), ("tp", ~where)):
        dataset[f"{name}_mask"] = (("time", "lat", "lon"), marks.astype(np.float32))
    return dataset


def missing(days: int = 200) -> xr.Dataset:
    """The same with missing values instead."""
    dataset = region(days=days)
    dataset["tp"] = dataset["tp"].where(~holes(days)).assign_attrs(dataset["tp"].attrs)
    return dataset


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def prepared(path, **changes) -> TrainingInputs:
    return prepare_training(TrainConfig(data=(str(path),), **{"input_steps": 3, "lead_steps": 2} | changes))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """filled.nc and missing.nc, and a run on each."""
    folder = tmp_path_factory.mktemp("masked")
    for name, dataset in (("filled", filled()), ("missing", missing())):
        path = write(dataset, folder / f"{name}.nc")
        assert run("train", "--data", path, *SMALL, "--output-dir", folder / name) == 0
    return folder


# Training


def test_training_reads_what_it_reads_of_missing_values_but_for_the_filled_inputs(folder):
    masked, holed = prepared(folder / "filled.nc"), prepared(folder / "missing.nc")
    assert [channel.name for channel in masked.spec.channels] == ["t2m", "tp"]
    assert masked.spec.target_mask_indices == [-1, 0]  # all of t2m was observed: it has no mask channel
    for name, value in holed.spec.target.statistics.to_dict().items():
        np.testing.assert_array_equal(masked.spec.target.statistics.to_dict()[name], value)
    for role in (TRAIN, VALIDATION):
        windows, others = masked.windows(role), holed.windows(role)
        np.testing.assert_array_equal(windows.init_indices, others.init_indices)
        everything = np.arange(len(windows))
        mine, its = windows.gather(everything), others.gather(everything)
        np.testing.assert_array_equal(mine.valid_BLDHW, its.valid_BLDHW)
        np.testing.assert_array_equal(mine.y_BLDHW[mine.valid_BLDHW > 0], its.y_BLDHW[its.valid_BLDHW > 0])
        np.testing.assert_array_equal(mine.x_BTCHW[:, :, [0, 2]], its.x_BTCHW[:, :, [0, 2]])
        observed = mine.x_BTCHW[:, :, 2] > 0
        np.testing.assert_array_equal(mine.x_BTCHW[:, :, 1][observed], its.x_BTCHW[:, :, 1][observed])
        assert (its.x_BTCHW[:, :, 1][~observed] == 0).all()
        assert (mine.x_BTCHW[:, :, 1][~observed] > 3).all()  # the network may read what was filled
    assert load_checkpoint(folder / "filled" / "best.pt").model_options["mask_channels"] == 1


def test_the_account_is_of_what_was_observed(folder):
    (t2m, tp), (_, holed) = (prepared(folder / f"{name}.nc").account.channels for name in ("filled", "missing"))
    assert (t2m.filled_share, t2m.missing_share) == (0, 0)
    assert tp.filled_share == pytest.approx(holes(200).mean())
    assert (tp.minimum, tp.maximum, tp.mean) == (holed.minimum, holed.maximum, holed.mean)
    assert tp.missing_share == 0
    assert tp.maximum < FILL
    assert not [text for text in prepared(folder / "filled.nc").account.warnings() if "mask" in text]


def test_missing_values_stay_missing_whatever_the_mask_says(tmp_path):
    dataset = filled()
    dataset["tp"][4, 3, 3] = dataset["tp"][6, 0, 0] = np.nan
    dataset["tp_mask"][4, 3, 3], dataset["tp_mask"][6, 0, 0] = 1, 0
    inputs = prepared(write(dataset, tmp_path / "both.nc"))
    source, (_, tp) = inputs.sources.target, inputs.account.channels
    assert not source.observed_NMHW[4, 0, 3, 3]
    assert source.values_NCHW[6, 1, 6, 0] == 0
    assert tp.missing_share == pytest.approx(2 / (200 * 7 * 9))


def test_an_ignored_mask_makes_filled_values_observed(folder):
    inputs = prepared(folder / "filled.nc", ignore_variables=("tp_mask",))
    assert inputs.spec.target.ignored == ("tp_mask",)
    assert inputs.spec.target_mask_indices == [-1, -1]
    assert inputs.account.channels[1].maximum == pytest.approx(FILL)
    again = DataSpec.from_dict(inputs.spec.to_dict())
    found = open_dataset([folder / "filled.nc"], masking=again.target.masking)
    assert set(found.coords) == {"time", "lat", "lon", "t2m_filled"}


def test_a_cache_is_not_used_with_other_values_of_masks(folder, tmp_path):
    caches = tmp_path / "cache"
    prepared(folder / "filled.nc", memory_budget=0.0, cache_dir=str(caches))
    prepared(folder / "filled.nc", memory_budget=0.0, cache_dir=str(caches), mask_values=("1",))  # as was found
    assert len(list(caches.iterdir())) == 1
    other = prepared(folder / "filled.nc", memory_budget=0.0, cache_dir=str(caches), mask_values=("tp_mask=0",))
    assert len(list(caches.iterdir())) == 2
    assert other.account.channels[1].maximum == pytest.approx(FILL)
    in_memory = prepared(folder / "filled.nc", mask_values=("tp_mask=0",))
    np.testing.assert_array_equal(other.sources.target.observed_NMHW[:], in_memory.sources.target.observed_NMHW)


def test_upstream_files_and_regions_have_masks_too(folder, tmp_path):
    west = filled().rename(tp="rain", tp_mask="qc_rain").drop_vars("t2m_mask")
    west["lon"] = west["lon"] - 40
    west["qc_rain"] = 1 - west["qc_rain"]
    upstream = {"include_upstream": True, "upstream_data": (str(write(west, tmp_path / "west.nc")),)}
    box = (48.0, 60.0, -10.0, 0.0)
    inputs = prepared(folder / "filled.nc", **upstream, upstream_region=(box,), target_region=(48.0, 60.0, 0.0, 6.0))
    beside, other = inputs.sources.upstream
    np.testing.assert_array_equal(other.observed_NMHW[:, 0], ~holes(200)[:, ::-1])
    np.testing.assert_array_equal(beside.observed_NMHW[:, 0], ~holes(200)[:, ::-1, :6])
    assert [str(mark) for mark in inputs.spec.upstream[1].masks] == ["qc_rain=0"]
    # A few days of the upstream file, where most is filled, are read as in training.
    part = west.isel(time=slice(0, 7, 3), lat=slice(2), lon=slice(3))
    assert float(part["qc_rain"].mean()) > 0.9
    found = open_dataset([write(part, tmp_path / "part.nc")], masking=inputs.spec.upstream[1].masking)
    assert float(found["rain_filled"].mean()) > 0.9


# Later, with the checkpoint


def test_a_short_file_is_read_as_in_training(folder, tmp_path):
    spec = load_checkpoint(folder / "filled" / "best.pt").spec
    days = filled().isel(time=slice(0, 4))
    days["tp_mask"][:] = 0
    days["tp_mask"][:, 3, 3] = 1
    path = write(days, tmp_path / "days.nc")
    dataset = open_dataset([path], masking=spec.target.masking)
    assert int((dataset["tp_filled"] == 0).sum()) == 4
    sources = open_sources(spec, dataset)
    assert int(sources.target.observed_NMHW.sum()) == 4
    output = tmp_path / "forecast.nc"
    options = ["--data", path, "--output", output, "--device", "cpu"]
    assert run("forecast", "--checkpoint", folder / "filled", *options) == 0
    forecaster = load_forecaster(folder / "filled", "cpu")
    with xr.open_dataset(path) as opened, xr.open_dataset(output, decode_timedelta=True) as written:
        in_memory = forecaster.forecast(opened.load())
        np.testing.assert_allclose(written["tp"], in_memory["tp"], rtol=1e-5)


def test_checkpoints_of_earlier_versions_still_load_and_keep_masks_that_they_learned_as_variables(folder):
    spec = prepared(folder / "filled.nc").spec
    entries = spec.to_dict()
    del entries["target"]["masks"], entries["target"]["ignored"]
    before = DataSpec.from_dict(entries)
    assert before.target.masks is None
    assert before.changes(spec) == spec.changes(before) == []
    entries["target"]["attributes"] = {**entries["target"]["attributes"], "tp_mask": {"units": "1"}}
    dataset = open_dataset([folder / "filled.nc"], masking=DataSpec.from_dict(entries).target.masking)
    assert "tp_mask" in dataset.data_vars
    assert "tp_filled" not in dataset.coords


@pytest.mark.parametrize("baselines", [["persistence", "climatology"]])
def test_scores_leave_out_what_was_filled(folder, tmp_path, baselines):
    for name in ("filled", "missing"):
        arguments = ["--checkpoint", folder / name, "--data", folder / f"{name}.nc", "--output", tmp_path / name]
        assert run("evaluate", *arguments, "--device", "cpu") == 0
    mine, its = (
        xr.load_dataset(tmp_path / name / "scores.nc", decode_timedelta=True) for name in ("filled", "missing")
    )
    xr.testing.assert_equal(mine["count"], its["count"])
    xr.testing.assert_equal(mine["weight_by_init"], its["weight_by_init"])
    for score in ("rmse", "bias", "acc"):
        for system in baselines:
            xr.testing.assert_equal(mine[score].sel(system=system), its[score].sel(system=system))
    assert (mine["count"].sel(channel="tp") < mine["count"].sel(channel="t2m")).all()
    # A network that ignored the mask is compared where the other says that values were observed.
    ignoring = tmp_path / "ignoring"
    data = ["--data", folder / "filled.nc"]
    assert run("train", *data, *SMALL, "--ignore-variables", "*_mask", "--output-dir", ignoring) == 0
    gains = []
    for number, sides in enumerate([(folder / "filled", ignoring), (ignoring, folder / "filled")]):
        assert run("compare", *sides, *data, "--output", tmp_path / f"compared{number}", "--device", "cpu") == 0
        gains.append(xr.load_dataset(tmp_path / f"compared{number}" / "comparison.nc", decode_timedelta=True))
    np.testing.assert_allclose(gains[0]["mse_difference"], -gains[1]["mse_difference"], rtol=1e-6)


def test_what_is_observed_every_second_time_has_no_scores_at_odd_leads(tmp_path):
    dataset = filled()
    dataset["tp_mask"][:] = (np.arange(200) % 2 == 0)[:, None, None]
    path = write(dataset, tmp_path / "gauges.nc")
    assert run("train", "--data", path, *SMALL, "--mask-values", 1, "--output-dir", tmp_path / "run") == 0
    options = ["--data", path, "--output", tmp_path / "scores", "--device", "cpu"]
    assert run("evaluate", "--checkpoint", tmp_path / "run", *options) == 0
    count = xr.load_dataset(tmp_path / "scores" / "scores.nc", decode_timedelta=True)["count"].sel(channel="tp")
    assert count[0] == 0
    assert count[1] > 0


def test_a_run_is_resumed_with_the_same_masks_only(folder, tmp_path, capsys):
    resume = ["train", "--data", folder / "filled.nc", "--resume", folder / "filled" / "last.pt", "--num-epochs", 2]
    assert run(*resume, "--output-dir", tmp_path / "on") == 0
    capsys.readouterr()
    assert run(*resume, "--output-dir", tmp_path / "other", "--mask-values", "tp_mask=0") == 2
    error = capsys.readouterr().err
    assert "observed values of masks t2m_mask=1 tp_mask=1 there, t2m_mask=1 tp_mask=0 here" in error
    assert error.count("\n") == 1


# Mistakes


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (
            "--ignore-variables cape",
            "--ignore-variables cape: no such variable in filled.nc; there are t2m, tp, t2m_mask",
        ),
        ("--variables tp_mask t2m tp", "no variable tp_mask (a mask of tp); the file has t2m, tp. Check --variables."),
        ("--ignore-variables t* --variables tp", "--ignore-variables t*: another option asks for 'tp'; drop one"),
        (
            "--ignore-variables tp --target-variables tp",
            "--ignore-variables tp: another option asks for 'tp'; drop one",
        ),
        (
            "--mask-values tp=1",
            "--mask-values tp=...: no such mask of a variable in use in filled.nc; there are t2m_mask,",
        ),
        ("--mask-values tp_mask=1 --variables t2m", "--mask-values tp_mask=...: no such mask of a variable in use"),
        ("--mask-values one", "--mask-values one: write the values that mean observed, as in 1 or tp_qc=0,1"),
        ("--mask-values tp_mask=1 tp_mask=0", "--mask-values tp_mask=0: there are values for 'tp_mask' already"),
    ],
)
@pytest.mark.parametrize("command", ["train", "inspect", "prepare"])
def test_mistakes_are_one_line(folder, tmp_path, capsys, command, options, error):
    output = {"train": ["--output-dir", tmp_path / "run"], "prepare": ["--output", tmp_path / "clean.nc"]}
    if command == "prepare" and "target" in options:
        pytest.skip("prepare has no targets")
    assert run(command, "--data", folder / "filled.nc", *options.split(), *output.get(command, [])) == 2
    said = capsys.readouterr()
    (line,) = [line for line in (said.err + said.out).splitlines() if error in line]
    assert not said.err or said.err.splitlines() == [line]


def test_values_for_masks_that_are_not_there_are_refused(folder):
    with pytest.raises(ConfigError, match=r"--mask-values: no such mask .* in missing\.nc; there are none"):
        prepared(folder / "missing.nc", mask_values=("1",))


# Preparing and inspecting


def test_prepare_writes_masks_as_flags_that_mean_the_same(folder, tmp_path, capsys):
    assert run("prepare", "--data", folder / "filled.nc", "--output", tmp_path / "clean.nc", "--bounds", "tp=0:1") == 0
    assert capsys.readouterr().out.count("masks: 1 is observed in tp_mask, t2m_mask (0 repeats a constant)") == 1
    with xr.open_dataset(tmp_path / "clean.nc") as clean:
        assert set(clean.data_vars) == {"t2m", "tp", "t2m_filled", "tp_filled"}
        np.testing.assert_array_equal(clean["tp_filled"], holes(200))
        assert clean["tp_filled"].dtype == np.int8
        assert clean["tp_filled"].attrs["flag_meanings"] == "observed filled"
        assert clean["tp"].attrs["ancillary_variables"] == "tp_filled"
    mine, its = prepared(folder / "filled.nc"), prepared(tmp_path / "clean.nc")
    np.testing.assert_array_equal(mine.sources.target.observed_NMHW, its.sources.target.observed_NMHW)
    np.testing.assert_array_equal(mine.sources.target.values_NCHW, its.sources.target.values_NCHW)
    coarse = ["--coarsen", 2, "--mask-values", 1, "--bounds", "tp=0:1"]
    assert run("prepare", "--data", folder / "filled.nc", "--output", tmp_path / "coarse.nc", *coarse) == 0
    with xr.open_dataset(tmp_path / "coarse.nc") as clean:
        blocks = holes(200)[:, ::-1][:, :6, :8].reshape(200, 3, 2, 4, 2).any(axis=(2, 4))  # from the south
        np.testing.assert_array_equal(clean["tp_filled"], blocks[:, ::-1])
    ignore = ["--ignore-variables", "*_mask", "--bounds", "tp=0:1"]
    assert run("prepare", "--data", folder / "filled.nc", "--output", tmp_path / "plain.nc", *ignore) == 0
    with xr.open_dataset(tmp_path / "plain.nc") as clean:
        assert set(clean.data_vars) == {"t2m", "tp"}


def test_inspect_says_what_masks_mean_once_and_counts_what_was_filled(folder, capsys):
    assert run("inspect", "--data", folder / "filled.nc", *SMALL[:-2]) == 0
    said = capsys.readouterr().out
    line = "masks: 1 is observed in tp_mask, t2m_mask (0 repeats a constant); --mask-values to overrule"
    assert said.count(line) == 1
    assert len(re.findall(r"_mask", said)) == 2
    assert f"filled {100 * holes(200).mean():.3g} %" in said


@pytest.mark.parametrize("code", [-9999.0, 9.97e36, 0.0])
@pytest.mark.parametrize("cached", [{}, {"memory_budget": 1e-6, "cache_dtype": "int16"}])
def test_codes_under_a_mask_are_missing_not_inputs(tmp_path, code, cached):
    dataset, where = region(days=200), holes(200)
    dataset["t2m"] = dataset["t2m"].where(~where, np.float32(code)).assign_attrs(units="K")
    dataset["t2m_mask"] = (("time", "lat", "lon"), (~where).astype(np.int8))
    path = write(dataset, tmp_path / "codes.nc")
    inputs = prepared(path, cache_dir=str(tmp_path / "cache"), **cached)
    clean = dataset.drop_vars("t2m_mask")
    clean["t2m"] = clean["t2m"].where(~where).assign_attrs(units="K")
    expected = prepared(write(clean, tmp_path / "clean.nc")).sources.target
    values = inputs.sources.target.values_NCHW[0:200]
    np.testing.assert_allclose(values, expected.values_NCHW, atol=2e-3)
    spec = DataSpec.from_dict(inputs.spec.to_dict())
    again = open_sources(spec, open_dataset([path], masking=spec.target.masking)).target
    np.testing.assert_allclose(again.values_NCHW, expected.values_NCHW, atol=2e-3)
