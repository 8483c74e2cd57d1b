"""Experiments from a TOML file: what is trained, what is chosen by, and what is told."""

import csv
import json
import re
import shutil
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from convlstm_wx.checkpoint import load_checkpoint
from convlstm_wx.cli import main
from convlstm_wx.commands.variants import read
from convlstm_wx.report.variants import Result, compared, markdown, tables
from tests.region_files import region, write

ROOT = Path(__file__).parents[1]
SETTINGS = """
[settings]
data = "{data}"
variables = "t2m"
hidden_channels = [3, 4]
input_steps = 2
lead_steps = 2
batch_size = 16
num_epochs = 2
blend = "none"
checkpoint_frequency = 1
device = "cpu"
"""
TWO = """
[[variant]]
name = "plain"

[[variant]]
name = "faster one"
learning_rate = 1e-2
"""


# by what is chosen


def result(variant: str, seed: int, loss: float, *, persistence: float = 2.0, **more: object) -> Result:
    known = {"parameters": 1000, "epochs": 3, "best_epoch": 2, "seconds_per_epoch": 1.5, "training_loss": 0.5}
    known |= {"rmse": {"t2m": [loss, 2 * loss]}, "persistence_rmse": {"t2m": [3.0, 4.0]}, "units": {"t2m": "K"}}
    known |= {"lead_hours": [24.0, 48.0], "folder": f"e/{variant}/{seed}"} | more
    return Result(variant=variant, seed=seed, validation_loss=loss, persistence_loss=persistence, **known)


A, B = {"a": "as they are"}, {"b": "dropout 0"}


def test_differences_are_taken_seed_by_seed():
    losses = {"a": (1.0, 2.0, 6.0), "b": (0.9, 1.8, 5.7)}
    results = [result(name, seed, loss) for name, of in losses.items() for seed, loss in enumerate(of)]
    first, other = compared(results, A | B)
    assert (first.mean_loss, other.mean_loss) == (3.0, pytest.approx(2.8))
    assert first.difference is None
    assert other.difference == pytest.approx(-0.2)
    # -0.1, -0.2 and -0.3: a standard deviation of 0.1, beside losses that differ by 5 among the seeds.
    assert other.standard_error == pytest.approx(0.1 / 3**0.5)
    assert "-0.2000 ± 0.0577 (-6.7 %)" in markdown("e", [first, other], [])


def test_seeds_that_only_one_variant_has_are_left_out_of_the_difference():
    first, other = compared([result("a", 0, 1.0), result("b", 0, 0.9), result("b", 1, 5.0)], A | B)
    assert other.difference == pytest.approx(-0.1)
    assert other.standard_error is None
    text = markdown("e", [first, other], [])
    assert "| 1.0000, -" in text
    assert "One pair of runs does not tell a difference from the luck of a seed" in text
    assert "**" not in text


def test_the_lowest_of_whole_variants_stands_out():
    text = markdown("e", compared([result("a", 0, 1.0), result("b", 0, 0.9)], A | B), [])
    assert "**0.9000**" in text
    assert "**1.0000**" not in text


def test_losses_of_other_windows_are_scaled_and_those_of_another_kind_not_compared():
    found = compared([result("a", 0, 1.0), result("b", 0, 1.01, persistence=2.02)], A | B)
    assert found[1].difference == pytest.approx(0.0)
    assert "losses are scaled to the same one" in markdown("e", found, [])
    found = compared([result("a", 0, 1.0), result("b", 0, 0.5, persistence=1.0)], A | B)
    assert found[1].difference is None
    text = markdown("e", found, [])
    assert "| b *" in text
    assert "\\* b: persistence has another loss there" in text
    assert "**0.5000**" not in text


def test_errors_stand_beside_persistence_and_files_have_every_lead():
    hours = [6.0 * lead for lead in range(1, 11)]
    ten = {"lead_hours": hours, "rmse": {"t2m": list(range(10))}, "persistence_rmse": {"t2m": [20.0] * 10}}
    found = compared([result("a", 0, 1.0, **ten), result("a", 1, 1.0, **ten)], A)
    text = markdown("e", found, [])
    assert [line.split("|")[2].strip() for line in text.splitlines() if line.startswith("| t2m, K")] == [
        *("+6 h", "+18 h", "+30 h", "+36 h", "+48 h", "+60 h"),
    ]
    assert re.search(r"\| t2m, K +\| \+60 h +\| 20.00 +\| 9.000 +\|", text)
    assert tables(found)["rmse.csv"].splitlines()[20] == "a,1,2,t2m,K,60,9,20"


def test_of_many_channels_the_table_has_some_of_each_variable_and_the_files_all():
    names = [*(f"z@{level}hPa" for level in (100, 200, 300, 400, 500, 600, 700, 850, 1000)), "tp"]
    many = {"units": dict.fromkeys(names, "m"), "lead_hours": [6.0]}
    many |= {key: {name: [1.0] for name in names} for key in ("rmse", "persistence_rmse")}
    found = compared([result("a", 0, 1.0, **many)], A)
    text = markdown("e", found, [])
    shown = [line.split(",")[0].removeprefix("| ") for line in text.splitlines() if " m " in line.partition("|")[2]]
    assert shown == [name for name in names if name not in ("z@700hPa", "z@1000hPa")]
    assert "mean over the seeds; 8 of 10 channels, rmse.csv has all:" in text
    assert len(tables(found)["rmse.csv"].splitlines()) == 11


def test_held_out_scores_stand_apart():
    rows = [
        {"channel": "t2m", "units": "K", "lead_hours": "24", "system": system, "rmse": rmse}
        for system, rmse in (("model", "1.5"), ("persistence", "3"), ("linear_inverse_model", "1.25"))
    ]
    text = markdown("e", compared([result("a", 0, 1.0, held_out=rows)], A), [])
    assert text.index("## Validation: to choose by") < text.index("## Held out, not for choosing")
    assert re.search(r"persistence +\| linear inverse model +\| a +\|", text)
    assert re.search(r"\| t2m, K +\| \+24 h +\| 3.000 +\| 1.250 +\| 1.500 +\|", text)


# run once


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write(region(days=160)[["t2m"]], tmp_path_factory.mktemp("data") / "region.nc")


def write_file(folder: Path, data: Path, *, seeds: Sequence[int] = (0, 1), more: str = "", variants: str = TWO) -> Path:
    file = folder / "rates.toml"
    head = f'[experiment]\noutput_dir = "{folder / "out"}"\nseeds = {list(seeds)}\n{more}'
    file.write_text(head + SETTINGS.format(data=data) + variants)
    return file


def run(file: Path) -> int:
    return main(["experiment", "variants", str(file)])


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> Path:
    """The folder of an experiment of two variants and two seeds, with its file; only to be looked at."""
    folder = tmp_path_factory.mktemp("experiment")
    assert run(write_file(folder, data)) == 0
    return folder


@pytest.fixture
def copied(finished, data, tmp_path) -> Path:
    """The same, to be changed."""
    shutil.copytree(finished / "out", tmp_path / "out")
    write_file(tmp_path, data)
    return tmp_path


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open()))


def losses(folder: Path) -> Mapping[tuple[str, str], list[float]]:
    found = {}
    for file in folder.glob("out/*/seed_*/last.pt"):
        history = load_checkpoint(file).training["progress"]["history"]
        found[file.parts[-3], file.parts[-2]] = [row["validation_loss"] for row in history]
    return found


def test_every_variant_is_trained_with_every_seed_and_its_own_settings(finished):
    assert len(losses(finished)) == 4
    one = load_checkpoint(finished / "out/plain/seed_0/best.pt").config.to_dict()
    other = load_checkpoint(finished / "out/faster one/seed_1/best.pt").config.to_dict()
    assert {name for name in one if one[name] != other[name]} == {"learning_rate", "seed", "output_dir"}


def test_the_tables_tell_what_the_runs_wrote(finished):
    runs = rows(finished / "out/runs.csv")
    assert [(row["variant"], row["seed"]) for row in runs] == [
        *(("plain", "0"), ("plain", "1"), ("faster one", "0"), ("faster one", "1")),
    ]
    for row in runs:
        best = min(losses(finished)[row["variant"], f"seed_{row['seed']}"])
        assert float(row["validation_loss"]) == pytest.approx(best, rel=1e-5)
    errors = rows(finished / "out/rmse.csv")
    last = [row for row in errors if (row["variant"], row["seed"]) == ("faster one", "1")]
    written = rows(finished / "out/faster one/seed_1/validation_rmse.csv")
    of_best = [row for row in written if row["epoch"] == last[0]["epoch"]]
    assert [row["rmse"] for row in last] == [row["rmse"] for row in of_best]
    assert [row["persistence_rmse"] for row in last] == [row["persistence_rmse"] for row in of_best]
    text = (finished / "out/table.md").read_text()
    for words in ("# rates", "4 of 4 runs are done", "learning_rate 0.01", "to plain", "+48 h", "t2m, K"):
        assert words in text
    assert "Held out" not in text


def test_what_is_done_is_not_done_again_and_seeds_and_variants_are_added(copied, data, capsys):
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("seed_*/*")}
    assert run(write_file(copied, data, seeds=(0,), variants=TWO + '[[variant]]\nname = "c"\ndropout = 0.0\n')) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    said = capsys.readouterr().out
    assert "3 runs, 2 of them done already" in said
    assert "run 3 of 3: c, seed 0; little is left" in said
    assert [row["variant"] for row in rows(copied / "out/runs.csv")] == ["plain", "faster one", "c"]


def test_a_run_that_was_stopped_goes_on_to_the_same_end(copied, finished, capsys):
    stopped = copied / "out/plain/seed_1"
    for name in ("last.pt", "best.pt", "epoch_0002.pt"):
        (stopped / name).unlink()
    assert run(copied / "rates.toml") == 0
    assert f"resuming from {stopped / 'epoch_0001.pt'}" in capsys.readouterr().out
    assert losses(copied) == losses(finished)


def test_other_settings_under_an_old_name_are_refused(copied, data, capsys):
    changed = TWO.replace("1e-2", "2e-2")
    assert run(write_file(copied, data, variants=changed)) == 2
    message = "faster one was trained with other settings (learning_rate): give them back, call the variant otherwise"
    assert message in capsys.readouterr().err
    assert run(write_file(copied, data, more="minutes = 1\n")) == 2
    assert "other settings (minutes)" in capsys.readouterr().err


def test_a_variant_begun_before_there_was_a_setting_is_another_one(copied, data, capsys):
    memory = copied / "out/plain/variant.json"
    settings = json.loads(memory.read_text())
    del settings["lead_weighting"]
    memory.write_text(json.dumps(settings))
    assert run(write_file(copied, data)) == 2
    assert "plain was trained with other settings (lead_weighting)" in capsys.readouterr().err


def test_minutes_lower_the_epochs_to_what_fits(data, tmp_path, capsys):
    variants = '[[variant]]\nname = "a"\n[[variant]]\nname = "b"\nnum_epochs = 1\ndropout = 0.0\n'
    assert run(write_file(tmp_path, data, seeds=(0,), more="minutes = 0.0001\n", variants=variants)) == 0
    assert {key: len(of) for key, of in losses(tmp_path).items()} == {("a", "seed_0"): 1, ("b", "seed_0"): 1}
    assert capsys.readouterr().out.count("a: an epoch takes about") == 1
    assert run(write_file(tmp_path, data, more="minutes = 0.0001\n", variants=variants)) == 0
    assert "an epoch takes about" not in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "out/a/seed_0/best.pt").config.num_epochs == 1


def test_a_run_that_fails_is_told_and_the_others_go_on(data, tmp_path, capsys):
    variants = '[[variant]]\nname = "wild"\ninput_noise = 9e18\n[[variant]]\nname = "a"\n'
    assert run(write_file(tmp_path, data, seeds=(0,), variants=variants)) == 2
    assert "1 of 2 runs failed" in capsys.readouterr().err
    text = (tmp_path / "out/table.md").read_text()
    assert "1 of 2 runs are done" in text
    assert "Failed: wild, seed 0: " in text
    assert [row["variant"] for row in rows(tmp_path / "out/runs.csv")] == ["a"]


def test_held_out_months_are_scored_on_request(copied, data, capsys):
    variants = '[[variant]]\nname = "plain"\n'
    assert run(write_file(copied, data, seeds=(0,), more="evaluate = true\n", variants=variants)) == 0
    assert "held-out months, 1 of 1: plain, seed 0" in capsys.readouterr().out
    text = (copied / "out/table.md").read_text()
    assert "## Held out, not for choosing" in text
    scores = rows(copied / "out/plain/seed_0/evaluation/scores.csv")
    assert [row["rmse"] for row in rows(copied / "out/held_out.csv")] == [row["rmse"] for row in scores]


# the file


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[experiment", "not TOML"),
        ("[settings]\n[[variant]]\nname = 'a'", "variant 'a': no data; give it under [settings]"),
        ("[settings]\ndata = 'x.nc'", "no variant; give at least one: [[variant]]"),
        (
            "[variants]\n[[variant]]\nname = 'a'",
            "unknown 'variants'; there are [experiment], [settings] and [[variant]]",
        ),
        ("[variant]\nname = 'a'", "write each variant as [[variant]]"),
        ("settings = 1", "write settings as [settings]"),
        ("[experiment]\nseed = 1", "[experiment] has no 'seed'; it takes output_dir, seeds, minutes, evaluate"),
        ("[experiment]\nseeds = 1", "[experiment] seeds: expected list, found 1"),
        ("[experiment]\nseeds = [1, 1]", "seeds = [1, 1]: give one or more different whole numbers"),
        ("[experiment]\nminutes = 0", "minutes = 0: must be above 0"),
        ("[settings]\nlearning = 1", "[settings]: unknown setting 'learning'"),
        ("[settings]\nseed = 1", "[settings]: seed is for the experiment to set; give seeds under [experiment]"),
        ("[settings]\ndata = 'x'\n[[variant]]\nname = 'a'\ndropout = 2.0", "variant 'a': --dropout 2: must be below 1"),
        ("[[variant]]\ndropout = 0.0", "a variant needs a name of letters, digits"),
        ("[[variant]]\nname = '../a'", "found '../a'"),
        ("[settings]\ndata = 'x'\n[[variant]]\nname = 'a'\n[[variant]]\nname = 'A'", "two variants are called 'A'"),
        (
            "[settings]\ndata = 'x'\ndropout = 0.1\n[[variant]]\nname = 'a'\n[[variant]]\nname = 'b'\ndropout = 0.1",
            "variants 'a' and 'b' have the same settings; give 'b' one that differs",
        ),
    ],
)
def test_mistakes_in_the_file_are_told_in_one_line(text, message, tmp_path, capsys):
    (tmp_path / "e.toml").write_text(text)
    assert run(tmp_path / "e.toml") == 2
    error = capsys.readouterr().err
    assert message in error
    assert str(tmp_path / "e.toml") in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["e.toml"]


def test_a_file_that_is_not_there_is_told(tmp_path, capsys):
    assert run(tmp_path / "none.toml") == 2
    assert "none.toml: cannot be read (No such file or directory)" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted((ROOT / "scripts/experiments").glob("*.toml")), ids=lambda path: path.name)
def test_the_example_files_can_be_read(path):
    experiment = read(path)
    assert len(experiment.variants) > 1
    assert {config.data for config in experiment.variants.values()} == {("data/sample_region.nc",)}
    asked = tomllib.loads(path.read_text())["experiment"]
    assert experiment.folder == Path(asked["output_dir"])
