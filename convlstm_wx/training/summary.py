"""What a run decided, told before it starts."""

from collections.abc import Iterator, Sequence

import numpy as np

from convlstm_wx.data.inputs import TrainingInputs
from convlstm_wx.data.reading import describe_step
from convlstm_wx.data.splits import HELD_OUT, TRAIN, VALIDATION
from convlstm_wx.models.build import activation_bytes
from convlstm_wx.training.loop import Run


def summary(run: Run, inputs: TrainingInputs) -> Iterator[str]:
    """One line for each decision: device, data, regions, steps, splits, network, memory, output."""
    spec, config = inputs.spec, run.config
    step = spec.step
    yield f"device       {'; '.join(run.policy.reasons)}"
    if run.processes.world_size > 1:
        yield f"processes    {run.processes.world_size}"
    yield from _indented("data", inputs.account)
    height, width = len(spec.target.grid.lat), len(spec.target.grid.lon)
    box = "the whole file" if spec.target.box is None else str(spec.target.box)
    yield f"target       {box}, {height} x {width} points"
    for region in spec.upstream:
        yield f"upstream     {region.box}, {len(region.grid.lat)} x {len(region.grid.lon)} points"
    yield f"inputs       {', '.join(channel.name for channel in spec.channels)}"
    yield f"forecast     {', '.join(channel.name for channel in spec.targets)}"
    masked = int(spec.target.statistics.gaps_C.sum())
    if masked:
        yield f"gaps         {masked} channels have missing values: each gets a mask, loss and scores leave them out"
    yield f"climatology  {spec.target.statistics.basis.describe()}, training times only"
    yield (
        f"windows      {spec.input_steps} steps in, {spec.lead_steps} out, {describe_step(step)} each "
        f"(+{describe_step(step)} to +{describe_step(step * spec.lead_steps)})"
    )
    yield from _indented("split", spec.split.lines())
    counts = (f"{len(inputs.windows(role))} {name}" for role, name in _ROLES.items())
    yield f"             windows: {', '.join(counts)}"
    yield (
        f"network      encoder-forecaster, {' '.join(map(str, config.hidden_channels))} hidden channels, "
        f"{run.parameters:,} parameters"
    )
    effective = config.batch_size * config.gradient_accumulation_steps * run.processes.world_size
    yield f"batch        {config.batch_size} windows, {effective} per optimiser step"
    yield f"memory       {_memory(run, inputs)}"
    yield f"output       {run.folder}"


def _indented(name: str, lines: Sequence[str]) -> Iterator[str]:
    for index, line in enumerate(lines):
        yield f"{'' if index else name:<13}{line}"


_ROLES = {TRAIN: "training", VALIDATION: "validation", HELD_OUT: "held out"}


def _memory(run: Run, inputs: TrainingInputs) -> str:
    """An estimate of what the data, the network and one micro-batch need."""
    spec = inputs.spec
    arrays = [source.values_NCHW for source in (inputs.sources.target, *inputs.sources.upstream)]
    mapped = any(isinstance(array, np.memmap) for array in arrays)
    data = sum(array.nbytes for array in arrays)
    activations = sum(
        activation_bytes(
            batch_size=run.config.batch_size,
            steps=spec.input_steps + (spec.lead_steps if region is spec.target else 0),
            height=len(region.grid.lat),
            width=len(region.grid.lon),
            hidden_channels=run.config.hidden_channels,
        )
        for region in (spec.target, *spec.upstream)
    )
    network = 5 * 4 * run.parameters  # weights, gradients, two moments, moving average
    where = "in a temporary file of the working folder" if mapped else "in memory"
    return f"about {_size(data)} of data {where}, {_size(network)} for the network, {_size(activations)} for a batch"


def _size(size: float) -> str:
    return f"{size / 2**30:.1f} GB" if size >= 2**30 else f"{size / 2**20:.0f} MB"
