"""doctor: the check-up of a machine, through the real command where it can be."""

import json
import re
from dataclasses import replace

import pytest
import torch

from convlstm_wx import device
from convlstm_wx.cli import main
from convlstm_wx.device import choose_device
from convlstm_wx.training import checkup, machine
from convlstm_wx.training.checkup import TOLERANCES, Checkup, Contender, Outcome, contenders, race, step_apart
from convlstm_wx.training.machine import Machine, look
from convlstm_wx.training.trial import Difference, difference, one_step, trial

CPU, HALF = Contender("cpu"), Contender("cpu", use_amp=True)
SAME = Difference(outputs=0.0, gradients=0.0, weights=0.0, worst="head.bias", is_finite=True)
NO_ADVICE = Machine({"Python": "3"}, ())


@pytest.fixture(scope="module")
def small():
    with trial(**checkup.STEP) as made:
        yield made


@pytest.fixture
def quick(monkeypatch):
    """A race of small networks."""
    monkeypatch.setattr(checkup, "RACE", {"hidden_channels": (4,), "batch_size": 4})
    monkeypatch.setattr(checkup, "RACE_GRID", {"days": 60, "height": 8, "width": 20})
    monkeypatch.setattr(checkup, "ROUNDS", 2)


@pytest.fixture
def a_python_that(monkeypatch, tmp_path):
    """Puts a shell script into the place of the interpreter that steps run in."""

    def put(script: str) -> None:
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setattr(checkup.sys, "executable", str(path))

    return put


# The command


@pytest.mark.slow
def test_a_machine_without_gpu_is_looked_at_and_told(quick, tmp_path, capsys):
    json_file, page = tmp_path / "new" / "doctor.json", tmp_path / "doctor.html"
    given = ["doctor", "--device", "cpu", "--seed", "5", "--json", str(json_file), "--report", str(page)]
    assert main(given) == 0
    said = capsys.readouterr().out
    found = json.loads(json_file.read_text())
    assert found["healthy"] is True
    assert found["seed"] == 5
    assert {"Python", "system", "processor", "memory", "PyTorch", "CUDA", "MPS", "C compiler"} <= set(found["machine"])
    assert "zarr" in found["machine"]["optional packages"]
    first = found["outcomes"][0]
    assert first["name"] == "cpu, float32"
    assert (first["difference"]["outputs"], first["difference"]["weights"]) == (0, 0)
    assert all(outcome["windows_per_s"] > 0 and outcome["memory_bytes"] > 0 for outcome in found["outcomes"])
    assert any("nothing about CUDA or MPS" in line for line in found["unknown"])
    for text in (found["verdict"], "cannot tell", "outputs"):
        assert text in said
    html = page.read_text()
    assert found["verdict"] in html
    assert "--seed 5" in html
    assert not re.search(r"(src|href)=|https?://", html)


def test_crashes_are_told_and_the_exit_code_is_one(quick, a_python_that, capsys, tmp_path):
    a_python_that("kill -ABRT $$")
    page = tmp_path / "page.html"
    assert main(["doctor", "--device", "cpu", "--json", "-", "--report", str(page)]) == 1
    found = json.loads(capsys.readouterr().out)  # and nothing else
    assert found["healthy"] is False
    assert "SIGABRT" in found["verdict"]
    assert any(line.startswith("do not train with cpu, float32") for line in found["advice"])
    assert 'class="bad">the training step killed its process' in page.read_text()


def test_a_seed_is_drawn_anew_and_told(quick, a_python_that, capsys):
    a_python_that("exit 1")
    seeds = set()
    for _ in range(2):
        main(["doctor", "--device", "cpu", "--json", "-"])
        seeds.add(json.loads(capsys.readouterr().out)["seed"])
    assert len(seeds) == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--device", "tpu"], "unknown device"),
        (["--device", "cuda:99"], "--device cuda"),
        (["--json", "."], "is a folder; name a file in it"),
        (["--report", "/proc/none/page.html"], "cannot be written"),
    ],
)
def test_mistakes_end_with_two_before_anything_is_tried(options, said, capsys):
    assert main(["doctor", *options]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


# A step in a process of its own


def test_a_step_apart_gives_the_numbers_of_a_step_here(quick, small):
    outcome = step_apart(HALF, seed=3)
    here = difference(*(one_step(small.run(who.policy(), seed=3)) for who in (CPU, HALF)))
    assert outcome.failure == ""
    assert outcome.difference.outputs == pytest.approx(here.outputs, rel=0.2, abs=1e-6)
    assert outcome.memory_bytes > 0


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("kill -ABRT $$", "killed its process (SIGABRT"),
        ("echo some words >&2; echo failed assertion >&2; kill -SEGV $$", "(SIGSEGV; failed assertion)"),
        ("echo 'RuntimeError: no kernel' >&2; exit 1", "failed (RuntimeError: no kernel)"),
        ("exec sleep 60", "no end of a training step within 1 s"),
    ],
)
def test_whatever_ends_a_step_is_told(a_python_that, script, told):
    a_python_that(script)
    outcome = step_apart(HALF, seed=0, patience_s=0.5 if "sleep" in script else 60)
    assert told in outcome.failure.replace("within 0 s", "within 1 s")
    assert [told in problem.replace("within 0 s", "within 1 s") for problem in outcome.problems] == [True]


# Numbers


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_another_memory_layout_is_rounding_and_half_precision_is_more(small, seed):
    policy = choose_device("cpu")
    plain = one_step(small.run(policy, seed=seed))
    other = one_step(small.run(replace(policy, channels_last=False, fused_optimizer=False), seed=seed))
    assert Outcome(CPU, difference(plain, other)).problems == []
    coarse = replace(policy, amp_dtype=torch.bfloat16)
    found = difference(plain, one_step(small.run(coarse, seed=seed)))
    limits = TOLERANCES["bfloat16"]
    assert all(getattr(found, name) <= getattr(limits, name) for name in ("outputs", "gradients", "weights"))
    assert len(Outcome(CPU, found).problems) == 3


def spoil_weight(run):
    run.learner.network.head.weight.data *= 1.01


def spoil_gradient(run):
    run.learner.network.encoder.stem.weight.register_hook(lambda gradient: 1.01 * gradient)


def spoil_update(run):
    run.learner.optimizer.param_groups[0]["weight_decay"] = 100.0


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoil_weight, "outputs differ"),
        (spoil_gradient, "most in encoder.stem.weight"),
        (spoil_update, "weights differ"),
    ],
)
def test_a_device_that_computes_wrongly_is_found_out(small, spoil, said):
    reference = one_step(small.run(choose_device("cpu"), seed=1))
    run = small.run(choose_device("cpu"), seed=1)
    spoil(run)
    assert any(said in problem for problem in Outcome(CPU, difference(reference, one_step(run))).problems)


def test_numbers_that_are_none_are_a_problem():
    assert "not finite" in Outcome(CPU, replace(SAME, is_finite=False)).problems[0]
    assert len(Outcome(CPU, replace(SAME, outputs=float("nan"))).problems) == 1


def test_every_parameter_gets_a_gradient_and_moves(small):
    run = small.run(choose_device("cpu"), seed=1)
    step = one_step(run)
    assert set(step.gradients) == {name for name, _ in run.learner.network.named_parameters()}
    assert all(bool(change.any()) for change in step.changes.values())


# Who is compared, and what is made of it


def test_a_cpu_is_compared_with_half_precision_where_it_has_it_and_with_one_thread(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(device, "cpu_has_bf16", lambda: True)
    rivals, unknown = contenders("cpu")
    assert rivals == [Contender("cpu", threads=1), HALF]
    assert len(unknown) == 1
    monkeypatch.setattr(device, "cpu_has_bf16", lambda: False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    rivals, unknown = contenders("cpu")
    assert rivals == []
    assert [line.split(":")[0] for line in unknown] == [
        "nothing about CUDA or MPS",
        "nothing about threads",
        "nothing about half precision",
    ]


def test_the_race_takes_turns_and_gives_windows_a_second(quick):
    turns = []
    speeds = race([CPU, Contender("cpu", threads=1)], rounds=2, tick=lambda: turns.append(1))
    assert all(speed > 0 for speed in speeds)
    assert len(turns) == 2


def with_speeds(**speeds: float) -> Checkup:
    who = {"cpu": CPU, "half": HALF, "one": Contender("cpu", threads=1)}
    outcomes = [Outcome(who[name], SAME, 1, windows_per_s=speed) for name, speed in speeds.items()]
    return Checkup(NO_ADVICE, "cpu", 0, outcomes, [])


@pytest.mark.parametrize(
    ("speeds", "advice", "fastest"),
    [
        ({"cpu": 10.0, "half": 20.0}, [], "--device cpu --use-amp"),
        ({"cpu": 10.0, "half": 5.0}, ["leave --use-amp away on cpu: 5.0 windows/s with it, 10.0 without"], "cpu, fl"),
        ({"cpu": 10.0, "half": 9.8}, [], "cpu, float32"),
        ({"cpu": 5.0, "one": 9.0}, ["OMP_NUM_THREADS=1 is faster here: 9.0 windows/s, 5.0 with all"], "1 thread"),
    ],
)
def test_advice_follows_the_speeds(monkeypatch, speeds, advice, fastest):
    monkeypatch.setattr(device, "cpu_has_bf16", lambda: True)
    found = with_speeds(**speeds)
    assert [given[: len(wanted)] for given, wanted in zip(found.advice, advice, strict=True)] == advice
    assert fastest in found.verdict


def test_half_precision_that_fails_is_advised_against(monkeypatch):
    monkeypatch.setattr(device, "cpu_has_bf16", lambda: True)
    found = Checkup(NO_ADVICE, "cpu", 0, [Outcome(CPU, SAME), Outcome(HALF, failure="it crashed")], [])
    assert found.advice == ["train without --use-amp on cpu"]
    assert "cpu, bfloat16: it crashed" in found.verdict


def test_numbers_that_are_none_are_null_for_programs():
    found = Checkup(NO_ADVICE, "cpu", 0, [Outcome(CPU, replace(SAME, outputs=float("inf"), is_finite=False))], [])
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["outcomes"][0]["difference"]["outputs"] is None


# The machine


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("PYTORCH_ENABLE_MPS_FALLBACK", "1", "PYTORCH_ENABLE_MPS_FALLBACK is set"),
        ("PYTORCH_MPS_HIGH_WATERMARK_RATIO", "0.0", "memory has no limit"),
    ],
)
def test_a_dangerous_environment_is_told(monkeypatch, name, value, said):
    monkeypatch.delenv(name, raising=False)
    assert not any(said in line for line in look().advice)
    monkeypatch.setenv(name, value)
    assert any(said in line for line in look().advice)


def test_the_environment_of_mps_is_told_wherever_it_is(monkeypatch):
    monkeypatch.delenv("PYTORCH_ENABLE_MPS_FALLBACK", raising=False)
    monkeypatch.setenv("PYTORCH_MPS_HIGH_WATERMARK_RATIO", "0.7")
    told = look().facts["MPS environment"]
    assert "PYTORCH_ENABLE_MPS_FALLBACK not set (" in told
    assert "PYTORCH_MPS_HIGH_WATERMARK_RATIO 0.7 (" in told


def test_little_memory_is_told(monkeypatch):
    monkeypatch.setattr(machine, "memory_bytes", lambda: 2**30)
    assert any("1 GB of memory is little" in line for line in look().advice)


def test_packages_that_are_not_there_are_told_so(monkeypatch):
    monkeypatch.setattr(machine.importlib.metadata, "requires", lambda _: ["numpy>=1", 'nothere; extra == "cloud"'])
    facts = look().facts
    assert facts["packages"].startswith("numpy ")
    assert facts["optional packages"] == "nothere (not installed)"
