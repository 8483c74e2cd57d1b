"""What a run decided, told before it starts."""

from collections.abc import Iterator, Sequence

from convlstm_wx.data.inputs import TrainingInputs
from convlstm_wx.data.reading import describe_step
from convlstm_wx.data.spec import RegionSpec
from convlstm_wx.data.splits import HELD_OUT, TRAIN, VALIDATION
from convlstm_wx.files import describe_bytes
from convlstm_wx.training.loop import Run
from convlstm_wx.training.probe import Probe


def summary(run: Run, inputs: TrainingInputs, probed: Probe) -> Iterator[str]:
    """One line for each decision: device, data, regions, steps, splits, network, memory, output."""
    spec, config = inputs.spec, run.config
    step = spec.step
    yield f"device       {'; '.join(run.policy.reasons)}"
    if run.processes.world_size > 1:
        yield f"processes    {run.processes.world_size}"
    yield from _indented("data", inputs.account.lines())
    yield f"target       {spec.target.describe()}, {_points(spec.target)}"
    for region in spec.upstream:
        yield f"upstream     {region.describe()}, {_points(region)}"
    for note in inputs.notes:
        yield f"             {note}"
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
    network, batch = describe_bytes(probed.network_bytes), describe_bytes(probed.batch_bytes)
    yield f"memory       data {inputs.stored}; {network} for the network, about {batch} for a batch"
    yield f"output       {run.folder}"


def _indented(name: str, lines: Sequence[str]) -> Iterator[str]:
    for index, line in enumerate(lines):
        yield f"{'' if index else name:<13}{line}"


_ROLES = {TRAIN: "training", VALIDATION: "validation", HELD_OUT: "held out"}


def _points(region: RegionSpec) -> str:
    return f"{len(region.grid.lat)} x {len(region.grid.lon)} points"
