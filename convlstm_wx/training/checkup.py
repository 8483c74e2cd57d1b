"""The check-up: does a device compute what the CPU computes, is half precision safe there, and what is fast?

Each way of computing (a contender) first does one training step in a process of its own: where that one crashes, or
never ends, this is told instead of suffered. Those that came through then race each other.
"""

import json
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch

from convlstm_wx.data.loaders import TensorBatch
from convlstm_wx.device import DevicePolicy, choose_device
from convlstm_wx.training.loop import Run
from convlstm_wx.training.machine import Machine
from convlstm_wx.training.trial import Difference, difference, one_step, trial

PATIENCE_S = 300.0
ROUNDS = 5
RACE_S = 40.0
SLOWER = 0.95  # of a speed: what is less than 5 % apart is noise on a busy machine
STEP: dict[str, Any] = {
    "hidden_channels": (8, 16),
    "input_steps": 3,
    "lead_steps": 3,
    "batch_size": 4,
    "include_upstream": True,
    "dropout": 0.0,  # random numbers differ from device to device
    "input_noise": 0.0,
}
RACE: dict[str, Any] = {"hidden_channels": (32, 64), "batch_size": 4, "num_workers": 0}
RACE_GRID = {"days": 60, "height": 32, "width": 48}


# Contenders


@dataclass(frozen=True)
class Tolerance:
    """The largest shares of a :class:`~convlstm_wx.training.trial.Difference` that are rounding.

    Attributes:
        outputs, gradients, weights: as there.
        reason: why so much.
    """

    outputs: float
    gradients: float
    weights: float
    reason: str


# Measured on CPUs over many seeds: about 1e-6 in float32 with other threads and memory layouts, 5e-3, 1e-2 and 5e-2 in
# bfloat16, 7e-4, 2e-3 and 1e-2 in float16. The weights differ most: AdamW's first step goes by the sign of a gradient.
TOLERANCES = {
    "float32": Tolerance(1e-4, 1e-3, 1e-2, "float32 has 24 bits: only the order of sums may differ"),
    "tf32": Tolerance(5e-3, 2e-2, 1e-1, "TF32 convolutions multiply with 11 bits"),
    "float16": Tolerance(5e-3, 2e-2, 1e-1, "float16 has 11 bits"),
    "bfloat16": Tolerance(3e-2, 1e-1, 3e-1, "bfloat16 has 8 bits"),
}


@dataclass(frozen=True)
class Contender:
    """One way of computing.

    Attributes:
        device: as --device takes it.
        use_amp: half precision.
        threads: of the CPU; None for all.
    """

    device: str
    use_amp: bool = False
    threads: int | None = None

    def policy(self) -> DevicePolicy:
        """Its device and precision."""
        return choose_device(self.device, use_amp=self.use_amp)

    @property
    def precision(self) -> str:
        """A key of TOLERANCES."""
        policy = self.policy()
        if policy.amp_dtype is not None:
            return str(policy.amp_dtype).removeprefix("torch.")
        return "tf32" if policy.device.type == "cuda" else "float32"

    @property
    def name(self) -> str:
        """For people: "mps, bfloat16"."""
        threads = f", {self.threads} thread" if self.threads else ""
        return f"{self.device}, {self.precision}{threads}"


REFERENCE = Contender("cpu")


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def contenders(device: str) -> tuple[list[Contender], list[str]]:
    """Who is to be compared with the CPU in float32, and what cannot be told on this machine."""
    unknown: list[str] = []
    rivals = [Contender(device)] if device != "cpu" else []
    if device == "cpu":
        unknown.append("nothing about CUDA or MPS: the check-up of a device needs the device (--device)")
        if torch.get_num_threads() > 1:
            rivals.append(Contender("cpu", threads=1))
        else:
            unknown.append("nothing about threads: PyTorch has one only")
    if choose_device(device, use_amp=True).amp_dtype is None:
        unknown.append("nothing about half precision: this CPU has no native bfloat16, and --use-amp does nothing")
    else:
        rivals.append(Contender(device, use_amp=True))
    return rivals, unknown


# One step, in a process of its own


@dataclass(frozen=True)
class Outcome:
    """What came of a contender.

    Attributes:
        contender: who.
        difference: from the CPU's float32; None if the process failed.
        memory_bytes: for a training step of the race's size.
        failure: what became of the process; empty if all went well.
        windows_per_s: trained in the race; None if it did not take part.
    """

    contender: Contender
    difference: Difference | None = None
    memory_bytes: int | None = None
    failure: str = ""
    windows_per_s: float | None = None

    @property
    def problems(self) -> list[str]:
        """What is wrong with its numbers, in plain words."""
        if self.difference is None:
            return [f"{self.contender.name}: {self.failure}"] if self.failure else []
        if not self.difference.is_finite:
            return [f"{self.contender.name}: a training step gives numbers that are not finite"]
        allowed = TOLERANCES[self.contender.precision]
        found = ((name, getattr(self.difference, name), getattr(allowed, name)) for name in _COMPARED)
        return [
            f"{self.contender.name}: {name} differ from the CPU's by {share:.1e} of their size, at most {limit:.0e} is "
            f"rounding ({allowed.reason})" + (f"; most in {self.difference.worst}" if name == "gradients" else "")
            for name, share, limit in found
            if not share <= limit
        ]


_COMPARED = ("outputs", "gradients", "weights")


def step_apart(contender: Contender, seed: int, *, patience_s: float = PATIENCE_S) -> Outcome:
    """A contender's step in a process of its own."""
    request = json.dumps({"contender": asdict(contender), "seed": seed})
    command = [sys.executable, "-m", "convlstm_wx.training.checkup", request]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=patience_s, check=False)
    except subprocess.TimeoutExpired:
        return Outcome(contender, failure=f"no end of a training step within {patience_s:.0f} s")
    if done.returncode != 0:
        return Outcome(contender, failure=_told_end(done.returncode, done.stderr))
    answer = json.loads(done.stdout.splitlines()[-1])
    return Outcome(contender, Difference(**answer["difference"]), answer["memory_bytes"])


def _told_end(code: int, errors: str) -> str:
    """How a process died, in a line."""
    last = next((line.strip() for line in reversed(errors.splitlines()) if line.strip()), "without a word")
    if code < 0:
        return f"the training step killed its process ({signal.Signals(-code).name}; {last})"
    return f"the training step failed ({last})"


def step_here(contender: Contender, seed: int) -> dict[str, Any]:
    """What that process does: the numbers of a small step, the memory of a larger one."""
    with _threads(contender.threads):
        memory = _memory_of_a_step(contender)
        with trial(**STEP) as small:
            other = one_step(small.run(contender.policy(), seed=seed))
    with trial(**STEP) as small:
        reference = one_step(small.run(choose_device("cpu"), seed=seed))
    return {"difference": asdict(difference(reference, other)), "memory_bytes": memory}


def _memory_of_a_step(contender: Contender) -> int:
    """How much more memory a step takes than its data; on MPS, which tells no peak, what the driver keeps."""
    policy = contender.policy()
    with trial(**RACE_GRID, **RACE) as large:
        run = large.run(policy)
        before = 0 if policy.device.type != "cpu" else policy.peak_memory_bytes()
        one_step(run)
        _wait(policy)
        return policy.peak_memory_bytes() - before


# The race


def race(entries: Sequence[Contender], *, rounds: int = ROUNDS, tick: Callable[[], None] = lambda: None) -> list[float]:
    """Training windows a second of each, the median of rounds in which they take turns: a busy machine is so to all."""
    with trial(**RACE_GRID, **RACE) as large:
        lanes = [_Lane(entry, large.run(entry.policy())) for entry in entries]
        for lane in lanes:
            lane.step()  # the first one compiles kernels and finds memory
        times: list[list[float]] = [[] for _ in lanes]
        started = time.monotonic()
        for turn in range(rounds):
            for lane, taken in zip(lanes, times):
                taken.append(lane.step())
            tick()
            if turn >= 2 and time.monotonic() - started > RACE_S:
                break
    return [RACE["batch_size"] / statistics.median(taken) for taken in times]


@dataclass
class _Lane:
    contender: Contender
    run: Run
    batch: list[TensorBatch] = field(default_factory=list)

    def step(self) -> float:
        """Seconds of one optimiser step, data already at hand."""
        run = self.run
        self.batch = self.batch or list(run.load(run.training_windows, [np.arange(run.config.batch_size)]))
        with _threads(self.contender.threads):
            _wait(run.policy)
            started = time.perf_counter()
            run.learner.learn(self.batch, run.config.learning_rate)
            _wait(run.policy)
            return time.perf_counter() - started


def _wait(policy: DevicePolicy) -> None:
    """Until the device has done all that it was told."""
    if policy.device.type == "cuda":
        torch.cuda.synchronize(policy.device)
    elif policy.device.type == "mps":
        torch.mps.synchronize()


# All of it


@dataclass(frozen=True)
class Checkup:
    """What was found.

    Attributes:
        machine: what is there.
        device: that was looked at.
        seed: of weights; the same one repeats the check-up.
        outcomes: the CPU in float32, held against itself, then each contender.
        unknown: what this machine cannot tell.
    """

    machine: Machine
    device: str
    seed: int
    outcomes: list[Outcome]
    unknown: list[str]

    @property
    def problems(self) -> list[str]:
        """What is wrong."""
        return [problem for outcome in self.outcomes for problem in outcome.problems]

    @property
    def advice(self) -> list[str]:
        """What to do, in plain words."""
        return [*self.machine.advice, *_advice_on_failures(self.outcomes), *_advice_on_speed(self.outcomes)]

    @property
    def verdict(self) -> str:
        """In one line."""
        if self.problems:
            return "something is wrong with this machine: " + "; ".join(self.problems)
        good = [outcome for outcome in self.outcomes if outcome.windows_per_s]
        best = max(good, key=lambda outcome: outcome.windows_per_s or 0, default=self.outcomes[0]).contender
        flags = f"--device {best.device}{' --use-amp' if best.use_amp else ''}"
        return f"healthy; fastest here: {flags} ({best.name})"

    def to_dict(self) -> dict[str, Any]:
        """For programs; numbers that are not finite become null."""
        entries = [
            {"name": outcome.contender.name, **asdict(outcome)}
            | {"tolerance": asdict(TOLERANCES[outcome.contender.precision])}
            for outcome in self.outcomes
        ]
        told = {
            "healthy": not self.problems,
            "verdict": self.verdict,
            "device": self.device,
            "seed": self.seed,
            "machine": self.machine.facts,
            "outcomes": entries,
            "problems": self.problems,
            "advice": self.advice,
            "unknown": self.unknown,
        }
        return json.loads(json.dumps(told), parse_constant=lambda _: None)


def stages(device: str) -> int:
    """How many ticks :func:`check_up` will give."""
    return 1 + len(contenders(device)[0]) + ROUNDS


def check_up(machine: Machine, device: str, seed: int, tick: Callable[[], None] = lambda: None) -> Checkup:
    """Everything: each contender apart, then the race of those that came through."""
    rivals, unknown = contenders(device)
    outcomes = []
    for contender in (REFERENCE, *rivals):
        outcomes.append(step_apart(contender, seed))
        tick()
    fit = [outcome.contender for outcome in outcomes if not outcome.failure]
    speeds = dict(zip(fit, race(fit, tick=tick))) if fit else {}
    outcomes = [replace(outcome, windows_per_s=speeds.get(outcome.contender)) for outcome in outcomes]
    return Checkup(machine, device, seed, outcomes, unknown)


def _advice_on_failures(outcomes: Sequence[Outcome]) -> Iterator[str]:
    for outcome in outcomes:
        if outcome.problems:
            if outcome.contender.use_amp:
                yield f"train without --use-amp on {outcome.contender.device}"
            else:
                yield f"do not train with {outcome.contender.name}: update PyTorch and the driver, or use --device cpu"


def _advice_on_speed(outcomes: Sequence[Outcome]) -> Iterator[str]:
    speeds = {outcome.contender: outcome.windows_per_s for outcome in outcomes if outcome.windows_per_s}
    base = speeds.get(REFERENCE) or 0.0
    for contender, speed in speeds.items():
        plain = speeds.get(replace(contender, use_amp=False))
        if contender.use_amp and plain and speed < SLOWER * plain:
            yield f"leave --use-amp away on {contender.device}: {speed:.1f} windows/s with it, {plain:.1f} without"
        if contender.device != "cpu" and not contender.use_amp and speed < SLOWER * base:
            yield f"small networks are faster on the CPU here: {base:.1f} windows/s, {speed:.1f} on {contender.device}"
        if contender.threads == 1 and base < SLOWER * speed:
            yield f"OMP_NUM_THREADS=1 is faster here: {speed:.1f} windows/s, {base:.1f} with all threads"


if __name__ == "__main__":
    wanted = json.loads(sys.argv[1])
    # A core file of a crash that is expected and told would only fill the disk.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print(json.dumps(step_here(Contender(**wanted["contender"]), wanted["seed"])))
