"""What the README says is there."""

import re
import shlex
from pathlib import Path

import pytest

from convlstm_wx.cli import _parser, main
from convlstm_wx.commands.options import training_config
from convlstm_wx.errors import ConfigError
from tests.region_files import region, write

ROOT = Path(__file__).parents[1]
COMMANDS = (
    "train",
    "info",
    "plot-history",
    "inspect",
    "prepare",
    "fetch",
    "forecast",
    "evaluate",
    "compare",
    "permute-upstream",
    "experiment upstream",
    "sample",
    "doctor",
)


def test_every_option_of_the_readme_exists(capsys):
    offered = set()
    for command in COMMANDS:
        with pytest.raises(SystemExit):
            main([*command.split(), "--help"])
        offered |= set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out))
    torchrun = {"--nproc-per-node", "--nnodes", "--rdzv-backend", "--rdzv-endpoint"}
    others = {*torchrun, "--logdir"}  # tensorboard's
    named = set(re.findall(r"--[a-z][a-z-]+", (ROOT / "README.md").read_text()))
    named |= set(re.findall(r"--[a-z][a-z-]+", (ROOT / "train_convlstm.py").read_text()))
    assert named - others <= offered


NEEDED = {
    "train": ["--data"],
    "forecast": ["--checkpoint", "--data", "--output"],
    "evaluate": ["--checkpoint", "--data", "--output"],
}


def rows_of(title: str) -> list[str]:
    """The rows of the first table with a first cell of this title."""
    lines = (ROOT / "README.md").read_text().splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith(f"| {title} |"))
    rows = lines[start + 2 :]
    return rows[: next(place for place, line in enumerate(rows) if not line.startswith("|"))]


TABLES = {title: rows_of(title) for title in ("there", "what you may look for")}
SHOWN = [span for rows in TABLES.values() for row in rows for span in re.findall(r"`([^`]+)`", row.split("|")[2])]
COMMANDS_SHOWN = [text for text in SHOWN if text.split()[0] in {name.split()[0] for name in COMMANDS} and " " in text]


def test_the_tables_for_newcomers_answer_each_row():
    assert [len(rows) for rows in TABLES.values()] == [14, 13]
    assert len(COMMANDS_SHOWN) >= 25


@pytest.mark.parametrize("command", [text for text in COMMANDS_SHOWN if text != "experiment upstream"])
def test_the_commands_in_the_tables_for_newcomers_are_understood(command):
    words = shlex.split(command)
    for option in NEEDED.get(words[0], []):
        words += [] if option in words else [option, "x"]
    options = _parser().parse_args(words)
    if words[0] == "train":
        training_config(options)


def test_the_options_that_other_code_has_are_those_of_train():
    first = re.findall(r"`([^`]+)`", TABLES["there"][0])[0]
    flags = {"--data": "x", "--output-dir": "x", "--device": "mps", "--hidden-channels": "16 32", "--use-amp": ""}
    words = [word for flag in re.findall(r"--[a-z-]+", first) for word in (flag, *flags.get(flag, "2").split())]
    config = training_config(_parser().parse_args(["train", *words]))
    assert (config.hidden_channels, config.num_workers, config.use_amp) == ((16, 32), 2, True)


def test_the_lines_that_the_tables_name_are_printed(tmp_path, monkeypatch, capsys):
    named = set(re.findall(r"line `([^`]+)`", "".join(TABLES["what you may look for"])))
    path, folder = str(write(region(days=120), tmp_path / "region.nc")), str(tmp_path / "run")
    options = ["--data", path, "--hidden-channels", "4", "--lead-steps", "1", "--device", "cpu"]
    train = ["--num-epochs", "1", "--batch-size", "8", "--gradient-accumulation-steps", "2", "--output-dir", folder]
    assert main(["train", *options, *train, "--num-workers", "2"]) == 0
    said = {"train": capsys.readouterr().out}
    assert "8 windows, 16 per optimiser step, the effective batch size" in said["train"]
    assert "gradients clipped to a norm of 1" in said["train"]
    assert "2 threads gather batches ahead" in said["train"]
    assert "epoch_NNNN.pt every 5 epochs, the newest 3 kept" in said["train"]
    assert "memory used at most" in said["train"]
    made = ["--checkpoint", folder, "--data", path, "--device", "cpu"]
    assert main(["forecast", *made, "--output", str(tmp_path / "forecast.nc")]) == 0
    said["forecast"] = capsys.readouterr().out
    assert main(["inspect", *options]) == 0
    said["inspect"] = capsys.readouterr().out

    def stopped(*_, **__):
        raise ConfigError("far enough")

    monkeypatch.setattr("convlstm_wx.training.checkup.check_up", stopped)
    main(["doctor", "--device", "cpu"])
    said["doctor"] = capsys.readouterr().out
    assert "PYTORCH_ENABLE_MPS_FALLBACK" in said["doctor"]
    assert "PYTORCH_MPS_HIGH_WATERMARK_RATIO" in said["doctor"]
    for command, names in {
        "train": {"device", "batch", "learning", "saving"},
        "forecast": {"device"},
        "inspect": {"device"},
        "doctor": {"device", "in training", "MPS environment"},
    }.items():
        named -= names
        for name in names:
            assert re.search(rf"^ *{name} ", said[command], re.M), (command, name)
    assert not named


def test_every_file_and_section_that_the_readme_links_to_exists():
    text = (ROOT / "README.md").read_text()
    sections = {
        re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.+)$", text, re.M)
    }
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert (link.removeprefix("#") in sections) if link.startswith("#") else (ROOT / link).exists(), link


def test_every_make_target_of_the_readme_exists():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", (ROOT / "README.md").read_text(), re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target
