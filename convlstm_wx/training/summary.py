"""What a run decided, told before it starts."""

from collections.abc import Iterator, Sequence

from convlstm_wx.config import TrainConfig, parse_rain_weights
from convlstm_wx.data.inputs import TrainingInputs
from convlstm_wx.data.reading import describe_step
from convlstm_wx.data.spec import RegionSpec
from convlstm_wx.data.splits import HELD_OUT, TRAIN, VALIDATION
from convlstm_wx.dressing import BYTES, FEWEST
from convlstm_wx.files import describe_bytes, describe_duration
from convlstm_wx.text import count, list_channels, wrap
from convlstm_wx.training.loop import Run
from convlstm_wx.training.probe import Probe, epoch_seconds
from convlstm_wx.training.residuals import how_many

ROLES = {TRAIN: "training", VALIDATION: "validation", HELD_OUT: "held out"}


def summary(run: Run, inputs: TrainingInputs, probed: Probe) -> Iterator[str]:
    """One line for each decision: device, data, regions, steps, splits, network, memory, output."""
    spec, config = inputs.spec, run.config
    step = spec.step
    yield from _indented("device", ["; ".join(run.policy.reasons), "; ".join(run.policy.training_choices())])
    if run.processes.world_size > 1:
        yield f"processes    {run.processes.world_size}"
    yield from _indented("data", inputs.account.lines())
    yield f"target       {spec.target.describe()}, {_points(spec.target)}"
    for region in spec.upstream:
        yield f"upstream     {region.describe()}, {_points(region)}"
    yield from _indented("", inputs.notes)
    yield from _indented("inputs", [list_channels(spec.channels)])
    yield from _indented("forecast", [list_channels(spec.targets)])
    masked = int(spec.target.statistics.gaps_C.sum())
    if masked:
        yield f"gaps         {count(masked, 'channel')} with missing values, which loss and scores leave out"
    yield f"climatology  {spec.target.statistics.basis.describe()}, training times only"
    yield (
        f"windows      {spec.input_steps} steps in, {spec.lead_steps} out, {describe_step(step)} each "
        f"(+{describe_step(step)} to +{describe_step(step * spec.lead_steps)})"
    )
    yield from _indented("split", spec.split.lines())
    counts = (f"{len(inputs.windows(role))} {name}" for role, name in ROLES.items())
    yield f"             windows: {', '.join(counts)}"
    yield (
        f"network      {config.model}, {' '.join(map(str, config.hidden_channels))} hidden channels, "
        f"{run.parameters:,} parameters"
    )
    if inputs.linear is not None:
        yield from _indented("blend", ["with a linear inverse model:", *inputs.linear.description.split("; ")])
    elif config.blend == "auto":
        yield "blend        none: training holds too little for a linear inverse model"
    if not how_many(spec, len(run.validation_windows) // run.processes.world_size):
        yield (
            f"ensembles    cannot be dressed with errors of validation: {FEWEST} windows are needed, of no more than "
            f"{describe_bytes(BYTES)}"
        )
    if run.start:
        yield f"start        {run.start}"
    effective = config.batch_size * config.gradient_accumulation_steps * run.processes.world_size
    whole = "" if effective == run.micro_batch else ", the effective batch size"
    yield f"batch        {run.micro_batch} windows, {effective} per optimiser step{whole}"
    yield from _indented("learning", list(_learning(config)))
    yield from _indented("saving", ["; ".join(_saving(config))])
    network, batch = describe_bytes(probed.network_bytes), describe_bytes(probed.batch_bytes)
    yield f"memory       data {inputs.stored}; {network} for the network, about {batch} for a batch"
    epoch = describe_duration(epoch_seconds(run, probed))
    yield f"time         about {epoch} an epoch, validation included, by a trial of {probed.windows} windows"
    yield f"output       {run.folder}"


def _learning(config: TrainConfig) -> Iterator[str]:
    """The loss, and what changes from step to step."""
    patience = config.early_stopping_patience
    yield count(config.num_epochs, "epoch") + (
        f", or until {patience} brought nothing better in validation" if patience else ""
    )
    yield f"loss {config.loss}" + (f" with delta {config.huber_delta:g}" if config.loss == "huber" else "")
    if config.variable_weights:
        yield f"weights {' '.join(config.variable_weights)}, of the others 1"
    if config.lead_weighting and config.lead_steps != 1:
        yield f"lead times count as their number to the power of {-config.lead_weighting:g}; in validation all alike"
    heavy = [f"{weight:g} from {mm:g} mm per step" for mm, weight in parse_rain_weights(config.rain_weights).items()]
    if heavy:
        yield f"errors of precipitation count {', '.join(heavy)}, so that forecasts become wetter"
    falls = "along a cosine"
    if config.schedule == "plateau":
        falls = f"times {config.plateau_factor:g} after {config.plateau_patience} epochs without improvement"
    yield f"learning rate {config.learning_rate:g} after the warm-up, then {falls}"
    if config.gradient_clip_norm:
        yield f"gradients clipped to a norm of {config.gradient_clip_norm:g}"
    if config.curriculum_epochs:
        yield f"1 lead step at first, all {config.lead_steps} after {config.curriculum_epochs} epochs"
    if config.scheduled_sampling:
        yield f"lead times start from the truth with probability {config.scheduled_sampling:g} at first, 0 at the end"


def _saving(config: TrainConfig) -> Iterator[str]:
    """When a run writes which checkpoint, and how many of them stay."""
    yield "best.pt when validation is better"
    if config.checkpoint_frequency:
        kept = f"the newest {config.keep_checkpoints}" if config.keep_checkpoints else "all"
        often = "epoch" if config.checkpoint_frequency == 1 else f"{config.checkpoint_frequency} epochs"
        yield f"epoch_NNNN.pt every {often}, {kept} kept"
    minutes = f" and every {config.save_every_minutes:g} minutes" if config.save_every_minutes else ""
    yield f"last.pt after each epoch{minutes}"


def _indented(name: str, lines: Sequence[str]) -> Iterator[str]:
    for index, line in enumerate(wrap(lines, 13)):
        yield f"{'' if index else name:<13}{line}"


def _points(region: RegionSpec) -> str:
    return f"{len(region.grid.lat)} x {len(region.grid.lon)} points"
