"""The plan of a run: how many windows there are, what cost some of them, what memory and time it will take."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from convlstm_wx.data.inputs import TrainingInputs
from convlstm_wx.data.store import memory_budget_bytes
from convlstm_wx.data.windows import init_indices
from convlstm_wx.device import DevicePolicy
from convlstm_wx.distributed import Processes
from convlstm_wx.memory import memory_bytes, memory_limits
from convlstm_wx.training.loop import Run
from convlstm_wx.training.probe import Probe, epoch_seconds
from convlstm_wx.training.summary import ROLES

_MOST_IDEAL_TIMES = 10_000_000  # a record of seconds with a gap of years is not counted through
_USABLE_SHARE = 0.8  # of a memory: the rest is for the system, kernels and fragments


@dataclass(frozen=True)
class RolePlan:
    """The windows of one role of the split.

    Attributes:
        role: training, validation or held out.
        first, last: times, ISO to the minute.
        windows: how many there are.
        lost_to_gaps: how many more there would be without holes in the time axis.
        lost_to_missing: how many more without times that are incomplete.
    """

    role: str
    first: str
    last: str
    windows: int
    lost_to_gaps: int
    lost_to_missing: int


def role_plans(inputs: TrainingInputs) -> list[RolePlan]:
    """One for each role, in the order of the split."""
    spec, times = inputs.spec, inputs.sources.times
    ideal = _without_gaps(times, spec.step)
    ideal_roles = spec.split.roles(ideal)
    plans = []
    for role, name in ROLES.items():
        in_role = inputs.roles_N == role
        at = times[in_role].astype("datetime64[m]").astype(str)
        windows, whole = len(inputs.windows(role)), _count(inputs, times, in_role)
        possible = max(whole, _count(inputs, ideal, ideal_roles == role))
        plans.append(RolePlan(name, at[0], at[-1], windows, possible - whole, whole - windows))
    return plans


def _without_gaps(times: np.ndarray, step: np.timedelta64) -> np.ndarray:
    """The times that a record without holes would have."""
    if (times[-1] - times[0]) / step > _MOST_IDEAL_TIMES:
        return times
    return np.arange(times[0], times[-1] + step, step)


def _count(inputs: TrainingInputs, times: np.ndarray, allowed_N: np.ndarray) -> int:
    spec = inputs.spec
    lengths = {"input_steps": spec.input_steps, "lead_steps": spec.lead_steps}
    return len(init_indices(times, spec.step, allowed_N, **lengths))


@dataclass(frozen=True)
class Plan:
    """What a run will need.

    Attributes:
        data_bytes: of the arrays of all regions, masks included.
        stored: where they are kept, in words.
        budget_bytes: what of them may be in memory.
        in_memory: whether they are.
        device_bytes: memory for network and batches.
        batch_size: as asked.
        largest_batch_size: that fits into the device's memory, a power of two, 0, or all training windows.
        parameters: of the network.
        epoch_seconds: training and validation, without waiting for data.
        probe: what one batch costs.
    """

    data_bytes: int
    stored: str
    budget_bytes: int
    in_memory: bool
    device_bytes: int
    batch_size: int
    largest_batch_size: int
    parameters: int
    epoch_seconds: float
    probe: Probe

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return asdict(self)


def make_plan(run: Run, inputs: TrainingInputs, probed: Probe) -> Plan:
    """The plan of a run whose first batch has been tried."""
    arrays = [
        array
        for source in (inputs.sources.target, *inputs.sources.upstream)
        for array in (source.values_NCHW, source.observed_NMHW)
    ]
    in_memory = isinstance(arrays[0], np.ndarray)
    data_bytes = sum(array.nbytes for array in arrays)
    device_bytes = usable_bytes(run.policy, data_bytes if in_memory else 0)
    return Plan(
        data_bytes=data_bytes,
        stored=inputs.stored,
        budget_bytes=memory_budget_bytes(run.config.memory_budget),
        in_memory=in_memory,
        device_bytes=device_bytes,
        batch_size=run.config.batch_size,
        largest_batch_size=min(
            probed.windows_that_fit(device_bytes), max(len(run.training_windows), run.config.batch_size)
        ),
        parameters=run.parameters,
        epoch_seconds=epoch_seconds(run, probed),
        probe=probed,
    )


def usable_bytes(policy: DevicePolicy, data_bytes: int = 0) -> int:
    """Memory of the device that a network and its batches may take; on a CPU beside the data."""
    if policy.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(policy.device)
        return int(_USABLE_SHARE * (free + torch.cuda.memory_reserved(policy.device)))
    if policy.device.type == "mps":
        return int(_USABLE_SHARE * torch.mps.recommended_max_memory())
    return max(0, int(_USABLE_SHARE * memory_bytes()) - data_bytes)


def free_bytes(policy: DevicePolicy, processes: Processes) -> int:
    """What of that is free now, for each process; on a CPU other programs have their part."""
    memory = Path("/proc/meminfo")
    if policy.device.type != "cpu" or not memory.exists():
        return usable_bytes(policy)
    (available,) = (line for line in memory.read_text().splitlines() if line.startswith("MemAvailable"))
    free = [1024 * int(available.split()[1]), *(limit.left_bytes for limit in memory_limits())]
    return int(_USABLE_SHARE * min(free)) // processes.local_size
