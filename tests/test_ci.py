"""What the hosted checks run."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
JOBS = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]


def commands(job: str) -> list[str]:
    return [step["run"] for step in JOBS[job]["steps"] if "run" in step]


def test_both_systems_run_the_test_command_of_the_readme():
    named = re.findall(r"^(make \w+)", (ROOT / "README.md").read_text(), re.M)
    assert "make test" in named
    assert set(named) <= set(commands("linux"))
    assert "make test" in commands("macos")


def test_the_mac_also_runs_the_check_up_and_the_tests_of_mps():
    said = " ".join(commands("macos"))
    assert "convlstm-wx doctor --device mps" in said
    assert "pytest -m mps" in said
    assert "macos-15" in JOBS["macos"]["runs-on"]


def test_steps_that_depend_on_another_name_one_that_exists():
    ids = {step["id"] for step in JOBS["macos"]["steps"] if "id" in step}
    used = {name for step in JOBS["macos"]["steps"] for name in re.findall(r"steps\.(\w+)\.", str(step.get("if", "")))}
    assert used == ids
