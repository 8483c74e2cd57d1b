"""The operator audit: every network and option through training and a forecast on the CPU, held against MPS's limits.

A necessary condition for a Mac, not a proof of right numbers or speed: those `convlstm-wx doctor` shows there.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from tqdm import tqdm

from convlstm_wx.checkpoint import load_checkpoint
from convlstm_wx.commands.options import DONE
from convlstm_wx.config import TrainConfig
from convlstm_wx.data.reading import open_dataset
from convlstm_wx.device import rehearsal_of_mps
from convlstm_wx.errors import ConfigError
from convlstm_wx.forecast.assembling import make_forecast
from convlstm_wx.forecast.choosing import choose_init_times
from convlstm_wx.forecast.rollout import Trained
from convlstm_wx.models.build import NETWORKS
from convlstm_wx.training.mps_facts import SKIP_LISTS, skips
from convlstm_wx.training.mps_rules import Finding, findings, source_findings
from convlstm_wx.training.recording import Recording, recording
from convlstm_wx.training.rehearsal import as_on_mps
from convlstm_wx.training.trial import Trial, trial

FOUND = 1
PACKAGE = Path(__file__).parents[1]
AUDITED_GROUPS = ("Network", "Training", "Device")
# Settings that change numbers, but not what is computed.
NEUTRAL = {
    *("learning_rate", "weight_decay", "num_epochs", "early_stopping_patience", "seed", "device", "use_amp"),
    *("huber_delta", "plateau_factor", "plateau_patience", "lead_weighting"),
    *("amp_dtype", "tf32", "memory_cap", "auto_batch", "members"),
    "compile",  # not on MPS
    "init_from",
}
# Values for settings that do not say themselves which they may have.
VALUES: dict[str, tuple[Any, ...]] = {
    "hidden_channels": ((4,), (4, 8, 12)),
    "kernel_size": (1, 5),
    "variable_weights": (("t2m=2",),),
    "rain_weights": (("1=2", "2=5"),),
}
# Settings that another one is impossible without.
NEEDED: dict[str, dict[str, Any]] = {"curriculum_epochs": {"num_epochs": 2}}
SMALL: dict[str, Any] = {
    "hidden_channels": (4, 8),
    "batch_size": 48,
    "input_steps": 3,
    "lead_steps": 2,
    "num_epochs": 1,
}


# What is tried


@dataclass(frozen=True)
class Case:
    """One run of the audit.

    Attributes:
        settings: that differ from the small run's.
        use_amp: half precision.
        upstream: with an upstream region.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    use_amp: bool = False
    upstream: bool = False

    def __str__(self) -> str:
        words = [f"{name}={value}" for name, value in self.settings.items()]
        words += ["bfloat16"] * self.use_amp + ["upstream"] * self.upstream
        return ", ".join(words) or "defaults"


def cases() -> Iterator[Case]:
    """The defaults with both precisions, without and with an upstream region; then each setting by itself.

    Each with an upstream region, unless it and such a region exclude each other.
    """
    for upstream in (False, True):
        for use_amp in (False, True):
            yield Case(use_amp=use_amp, upstream=upstream)
    for entry in fields(TrainConfig):
        for value in values_of(entry):
            settings = {entry.name: value} | NEEDED.get(entry.name, {})
            yield from _with_both_precisions(settings, halved=entry.metadata["group"] == "Network")
    for name in NETWORKS:
        yield from _with_both_precisions({"model": name, "recompute": True}, halved=False)


def _with_both_precisions(settings: dict[str, Any], *, halved: bool) -> Iterator[Case]:
    upstream = next((upstream for upstream in (True, False) if _is_possible(settings, upstream)), None)
    if upstream is not None:
        yield from (Case(settings, use_amp=use_amp, upstream=upstream) for use_amp in (False, True)[: 1 + halved])


def values_of(entry: Field) -> tuple[Any, ...]:
    """Other values of a setting than its default: off, on, more, or each of its choices."""
    metadata = entry.metadata
    default: Any = entry.default
    if metadata["group"] not in AUDITED_GROUPS or entry.name in NEUTRAL:
        return ()
    if entry.name in VALUES:
        return VALUES[entry.name]
    if metadata["kind"] is bool:
        return (not default,)
    if choices := metadata.get("choices"):
        return tuple(choice for choice in choices if choice != default)
    if metadata["kind"] is int:
        return (max(1, metadata["low"] or 0), (default or 1) + 1)
    if metadata["kind"] is float:
        return (0.0,) if default else (0.5,)
    return ()


def untried() -> list[str]:
    """Settings of the audited groups for which no value is known: VALUES must name some, or NEUTRAL the setting."""
    entries = [entry for entry in fields(TrainConfig) if entry.metadata["group"] in AUDITED_GROUPS]
    return [entry.name for entry in entries if entry.name not in NEUTRAL and not values_of(entry)]


def _is_possible(settings: dict[str, Any], upstream: bool) -> bool:
    try:
        TrainConfig(**(SMALL | settings), include_upstream=upstream)
    except ConfigError:
        return False
    return True


# Trying it


def record(small: Trial, case: Case) -> Recording:
    """A whole small training run, with validation and checkpoints, and a forecast from it."""
    policy = rehearsal_of_mps(use_amp=case.use_amp)
    run = small.run(policy, **case.settings)
    with recording() as kept, as_on_mps():
        run.train()
        checkpoint = load_checkpoint(small.folder / "last.pt")
        dataset = open_dataset(small.config.data)
        init_times = choose_init_times(checkpoint.spec, dataset, [], None, None)
        make_forecast([Trained(checkpoint)], dataset, init_times, lead_steps=run.config.lead_steps, policy=policy)
    return kept


@dataclass
class Audit:
    """What the audit found.

    Attributes:
        found: each finding with the first case that showed it.
        operators: names of all operators that were seen.
        networks: classes of the networks that ran.
    """

    found: dict[Finding, Case] = field(default_factory=dict)
    operators: set[str] = field(default_factory=set)
    networks: set[type] = field(default_factory=set)

    def add(self, case: Case, kept: Recording) -> None:
        """Judge a recording."""
        self.operators |= {call.name for call in kept.calls if not call.name.startswith("python:")}
        self.networks |= kept.modules & set(NETWORKS.values())
        known = {(finding.rule, finding.where) for finding in self.found}
        self.found |= {finding: case for finding in findings(kept) if (finding.rule, finding.where) not in known}


def audit(chosen: Sequence[Case]) -> Audit:
    """Record and judge the given cases."""
    result = Audit()
    with ExitStack() as stack:
        trials = {
            upstream: stack.enter_context(trial(days=80, include_upstream=upstream, **SMALL))
            for upstream in sorted({case.upstream for case in chosen})
        }
        for case in tqdm(chosen, desc="recording", unit="run", disable=None, leave=False):
            result.add(case, record(trials[case.upstream], case))
    return result


def source_audit() -> list[Finding]:
    """What our own source must not say."""
    files = (path for path in sorted(PACKAGE.rglob("*.py")) if path.name != "mps_rules.py")
    return [found for path in files for found in source_findings(path, str(path.relative_to(PACKAGE.parent)))]


# The script


def main(arguments: Sequence[str] | None = None) -> int:
    """Audit everything, tell, one line for each finding; 1 if there is one."""
    parser = argparse.ArgumentParser(description="Check all that training computes against the limits of Apple's MPS.")
    parser.add_argument("--operators", action="store_true", help="also list the operators that were seen")
    options = parser.parse_args(arguments)
    chosen = list(cases())
    result = audit(chosen)
    in_source = source_audit()
    for finding, case in result.found.items():
        print(f"{finding} (first with: {case})")
    for line in [*in_source, *(f"setting {name}: no value known to try, see VALUES" for name in untried())]:
        print(line)
    missing = sorted(name for name, network in NETWORKS.items() if network not in result.networks)
    for name in missing:
        print(f"network {name}: no run used it")
    if options.operators:
        print("\n".join(sorted(result.operators)))
    total = len(result.found) + len(in_source) + len(untried()) + len(missing)
    print(f"{len(chosen)} runs, {len(result.operators)} operators, {total} findings", file=sys.stderr)
    if not skips():
        print(f"{SKIP_LISTS} is not in this PyTorch: its lists of skipped operators were not asked", file=sys.stderr)
    return FOUND if total else DONE
