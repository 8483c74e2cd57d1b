"""What the README says is there."""

import re
from pathlib import Path

import pytest

from convlstm_wx.cli import main

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
