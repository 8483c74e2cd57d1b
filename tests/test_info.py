"""info and plot-history: a checkpoint tells what it is, a run how it learned."""

import csv
import json
import shlex
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch

from convlstm_wx.checkpoint import load_checkpoint, save_checkpoint
from convlstm_wx.cli import main
from convlstm_wx.commands.card import card_of
from convlstm_wx.report.curves import history_figure, read_histories
from tests.region_files import region, write

SMALL = ["--hidden-channels", "4", "8", "--input-steps", "3", "--lead-steps", "2", "--device", "cpu"]


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Two runs, a (with an upstream region, two epochs) and b (one epoch)."""
    folder = tmp_path_factory.mktemp("my runs")
    path = write(region(days=240, levels=(850, 500)), folder / "region.nc")
    upstream = ["--target-region", 50, 60, 0, 6, "--include-upstream", "--upstream-region", 50, 60, -10, -2]
    given = ["--data", path, *SMALL]
    assert run("train", *given, *upstream, "--num-epochs", 2, "--output-dir", folder / "a") == 0
    assert run("train", *given, "--num-epochs", 1, "--seed", 1, "--output-dir", folder / "b") == 0
    return folder


# info


def test_info_tells_what_it_is_trained_on_what_and_how_good(trained, capsys):
    assert run("info", trained / "a/last.pt") == 0
    said = capsys.readouterr().out
    for words in (
        *("last.pt", "written 20", "convlstm_wx", "PyTorch", "4 8 hidden channels", "parameters"),
        *("t2m (K)", "tp (m)", "z@500hPa (m2 s-2)", "reads 3 steps of 1 d", "+1 d to +2 d"),
        *("region.nc", "2001-01-01 00:00 to 2001-", "6 x 4 points", "50 to 60 degrees north, 0 to 6 degrees east"),
        *("upstream region", "-10 to -2 degrees east", "held out: 2001-", "validation: 2001-", "fingerprint"),
        *("2 of 2 epochs", "optimiser steps", "best so far: epoch", "persistence", "+24 h", "+48 h"),
    ):
        assert words in said, words


def test_info_takes_a_folder_and_says_which_file_it_took(trained, capsys):
    assert run("info", trained / "a") == 0
    assert "this is its best.pt" in capsys.readouterr().out


def test_info_as_json_has_the_numbers_of_the_csv(trained, capsys):
    assert run("info", trained / "a/last.pt", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    rows = [row for row in csv.DictReader((trained / "a/validation_rmse.csv").open()) if row["epoch"] == "2"]
    assert facts["validation_rmse"]["epoch"] == 2
    for row, score in zip(rows, facts["validation_rmse"]["scores"], strict=True):
        assert (row["variable"], row["unit"], float(row["lead_hours"])) == (
            *(score["variable"], score["unit"], score["lead_hours"]),
        )
        assert float(row["rmse"]) == pytest.approx(score["rmse"], rel=1e-5)
        assert float(row["persistence_rmse"]) == pytest.approx(score["persistence_rmse"], rel=1e-5)
    assert facts["progress"]["epochs_done"] == 2
    assert facts["file"]["bytes"] == (trained / "a/last.pt").stat().st_size
    assert facts["config"]["hidden_channels"] == [4, 8]
    assert len(facts["trained_on"]["upstream"]) == 1


@pytest.fixture
def blended(trained, tmp_path) -> Path:
    """Run b as if blended: in the mean over targets the network counts 0.6 and 0.2, the linear model 0.5 and 0.9."""
    checkpoint = load_checkpoint(trained / "b/best.pt")
    weights_2LD = torch.tensor([[[0.5, 0.7], [0.1, 0.3]], [[0.5, 0.5], [0.9, 0.9]]])
    weights = checkpoint.weights | {"blend.weights_2LD": weights_2LD}
    save_checkpoint(tmp_path / "best.pt", replace(checkpoint, weights=weights))
    return tmp_path / "best.pt"


def test_info_tells_what_network_and_linear_model_count(blended, capsys):
    assert run("info", blended) == 0
    lines = capsys.readouterr().out.splitlines()
    at = next(place for place, line in enumerate(lines) if "blended with a linear inverse model" in line)
    table = [line.split() for line in lines[at + 1 : at + 4]]
    assert table == [["+24", "h", "+48", "h"], ["network", "0.60", "0.20"], ["linear", "0.50", "0.90"]]
    assert run("info", blended, "--json") == 0
    told = json.loads(capsys.readouterr().out)["network"]["blend"]
    assert [[at["lead_hours"], at["network"], at["linear"]] for at in told] == [
        pytest.approx([24.0, 0.6, 0.5]),
        pytest.approx([48.0, 0.2, 0.9]),
    ]


def test_the_page_tells_of_the_blend_or_that_there_is_none(blended, trained):
    init_times = np.array(["2001-08-01"], "datetime64[ns]")
    told = card_of([load_checkpoint(blended)], blended, "held out", init_times).facts["Blend"]
    assert told == (
        "with a linear inverse model; the network counts 0.60, the linear model 0.50 at +24 h; 0.20 and 0.90 at +48 h "
        "(mean over the variables)"
    )
    alone = load_checkpoint(trained / "a/best.pt")
    alone.weights.pop("blend.weights_2LD", None)
    facts = card_of([alone], trained / "a/best.pt", "held out", init_times).facts
    assert facts["Blend"] == "none, the network alone"
    assert "-10 to -2 degrees east" in facts["Upstream region 1"]


def test_what_info_proposes_can_be_pasted(trained, capsys, monkeypatch, tmp_path):
    assert run("info", trained / "b", "--json") == 0
    commands = json.loads(capsys.readouterr().out)["next"]
    assert [shlex.split(command)[1] for command in commands] == ["forecast", "evaluate", "plot-history"]
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(commands[0])[1:]) == 0
    assert main(shlex.split(commands[2])[1:]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["forecast.nc", "history.png"]


def test_an_unfinished_run_is_proposed_to_be_resumed(trained, tmp_path, capsys):
    checkpoint = load_checkpoint(trained / "b/last.pt")
    unfinished = replace(checkpoint, config=replace(checkpoint.config, num_epochs=9))
    save_checkpoint(tmp_path / "interrupted.pt", unfinished)
    assert run("info", tmp_path) == 0
    said = capsys.readouterr().out
    assert "1 of 9 epochs" in said
    assert f"convlstm-wx train --data '{trained / 'region.nc'}' --resume {tmp_path / 'interrupted.pt'}" in said


def test_a_run_that_stopped_early_is_not_proposed_to_be_resumed(trained, tmp_path, capsys):
    checkpoint = load_checkpoint(trained / "b/last.pt")
    progress = checkpoint.training["progress"] | {"waited": 4}
    early = replace(checkpoint, config=replace(checkpoint.config, num_epochs=9))
    save_checkpoint(tmp_path / "last.pt", replace(early, training=early.training | {"progress": progress}))
    assert run("info", tmp_path / "last.pt") == 0
    assert "--resume" not in capsys.readouterr().out


def test_a_checkpoint_of_an_earlier_version_has_no_skill_to_tell(trained, tmp_path, capsys):
    old = load_checkpoint(trained / "b/last.pt")
    del old.training["progress"]["rmse"], old.training["progress"]["persistence_rmse"]
    save_checkpoint(tmp_path / "old.pt", old)
    contents = torch.load(tmp_path / "old.pt", weights_only=True)
    del contents["written"]
    torch.save(contents, tmp_path / "old.pt")
    assert run("info", tmp_path / "old.pt") == 0
    said = capsys.readouterr().out
    assert "none stored; convlstm-wx evaluate scores it" in said
    assert "written" not in said


# plot-history


def test_a_run_is_drawn_with_its_units(trained):
    figure = history_figure(read_histories([trained / "a"]))
    losses, rates, *errors = figure.axes
    assert losses.get_ylabel() == "loss (no unit)"
    assert "a (best: epoch 2)" in [text.get_text() for text in losses.get_legend().get_texts()]
    assert rates.get_ylabel() == "learning rate"
    units = {panel.get_title(): panel.get_ylabel() for panel in errors}
    assert units["t2m, validation"] == "RMSE (K)"
    assert units["tp, validation"] == "RMSE (m)"
    assert units["z@500hPa, validation"] == "RMSE (m² s⁻²)"
    assert [text.get_text() for text in errors[0].get_legend().get_texts()] == ["+24 h", "+48 h", "persistence"]


def test_the_lines_are_those_of_the_files(trained):
    losses, rates, *errors = history_figure(read_histories([trained / "a"])).axes
    history = list(csv.DictReader((trained / "a/history.csv").open()))
    drawn = [list(line.get_ydata()) for line in losses.lines]
    for name in ("validation_loss", "train_loss", "persistence_loss"):
        assert [float(row[name]) for row in history] in drawn
    assert [float(row["learning_rate"]) for row in history] in [list(line.get_ydata()) for line in rates.lines]
    noted = [row for row in csv.DictReader((trained / "a/validation_rmse.csv").open()) if row["variable"] == "t2m"]
    for lead in ("24", "48"):
        values = [float(row["rmse"]) for row in noted if row["lead_hours"] == lead]
        assert values in [list(line.get_ydata()) for line in errors[0].lines]


def test_several_runs_are_drawn_over_each_other(trained, tmp_path):
    assert run("plot-history", trained / "a", trained / "b/best.pt", "--output", tmp_path / "new/h.png") == 0
    assert matplotlib.image.imread(tmp_path / "new/h.png")[..., :3].std() > 0.02  # not blank
    legend = history_figure(read_histories([trained / "a", trained / "b"])).axes[0].get_legend()
    assert [text.get_text().split()[0] for text in legend.get_texts()][:2] == ["a", "b"]


def test_a_run_of_an_earlier_version_is_drawn_without_errors(trained, tmp_path):
    (tmp_path / "history.csv").write_text((trained / "a/history.csv").read_text())
    assert len(history_figure(read_histories([tmp_path])).axes) == 2
    assert run("plot-history", tmp_path, "--output", tmp_path / "h.svg") == 0
    assert "<svg" in (tmp_path / "h.svg").read_text()


# Mistakes


@pytest.fixture(scope="module")
def mistakes(trained, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mistakes")
    whole = (trained / "a/best.pt").read_bytes()
    (folder / "cut.pt").write_bytes(whole[: len(whole) // 2])
    torch.save({"state_dict": {}}, folder / "foreign.pt")
    (folder / "empty").mkdir()
    for name, text in (("words", "epoch,validation_loss,learning_rate\n1,high,0.1\n"), ("other", "a,b\n1,2\n")):
        (folder / name).mkdir()
        (folder / name / "history.csv").write_text(text)
    (folder / "begun").mkdir()
    (folder / "begun/history.csv").write_text("epoch,validation_loss,learning_rate\n")
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "none.pt"], "none.pt: no such checkpoint"),
        (["info", "cut.pt"], "cut.pt: not a whole checkpoint"),
        (["info", "foreign.pt", "--json"], "not a checkpoint of convlstm_wx"),
        (["info", "empty"], "empty: no checkpoint in this folder"),
        (["plot-history", "none", "--output", "h.png"], "none: no such folder"),
        (["plot-history", "empty", "--output", "h.png"], "history.csv: cannot be read"),
        (["plot-history", "words", "--output", "h.png"], "'high' is not a number"),
        (["plot-history", "other", "--output", "h.png"], "has no column epoch, validation_loss"),
        (["plot-history", "begun", "--output", "h.png"], "no epoch is finished yet"),
        (["plot-history", *["words"] * 8, "--output", "h.png"], "at most 7"),
        (["plot-history", "words", "--output", "h.txt"], "must end in .png"),
        (["plot-history", "words", "--output", "empty"], "must end in .png"),
        (["plot-history", "words"], "--output"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_nothing_is_written(mistakes, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(mistakes)
    before = sorted(mistakes.rglob("*"))
    try:
        code = main(arguments)
    except SystemExit as error:
        code = error.code
    assert code == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert len(said.splitlines()) == 1
    assert sorted(mistakes.rglob("*")) == before
