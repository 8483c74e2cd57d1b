"""Starting from the weights of another run: fine-tuning. Optimiser, schedule and history start anew."""

from collections.abc import Iterator
from typing import Any

from convlstm_wx.checkpoint import Checkpoint, checkpoints_of, load_checkpoint
from convlstm_wx.config import TrainConfig
from convlstm_wx.data.spec import DataSpec
from convlstm_wx.errors import CheckpointError, ConfigError
from convlstm_wx.models.network import Network
from convlstm_wx.text import list_channels, list_names
from convlstm_wx.training import blueprint
from convlstm_wx.training.blueprint import Blueprint, differing_options, in_words

# What leaves the weights as they are; the linear model of a blend is fitted to the new data, and weighted anew.
FREE = (*blueprint.FREE, "target_mask_indices", "blend")


def start_from(path: str, network: Network, ours: Blueprint, spec: DataSpec) -> str:
    """Give a fresh network the averaged weights of another run; its buffers, statistics of the new data, stay.

    Args:
        path: of the other run's checkpoint, or its folder, whose best.pt it is then.
        network: that is changed.
        ours: what it was built from.
        spec: the new run's data.

    Returns:
        What was taken, in words.

    Raises:
        CheckpointError: if the checkpoint cannot be read, or its network has another shape or other channels, naming
            what differs.
    """
    file, *others = checkpoints_of(path)
    if others:
        raise CheckpointError(
            f"--init-from {path}: is an ensemble of {len(others) + 1}; name one of them, such as {file}"
        )
    checkpoint = load_checkpoint(file)
    found = [*_other_network(checkpoint, ours), *_out_of_place(checkpoint.spec, spec)]
    if found:
        raise CheckpointError(f"--init-from {path}: its network does not fit: {'; '.join(found)}")
    names = [name for name, _ in network.named_parameters()]
    network.load_state_dict({name: checkpoint.weights[name] for name in names}, strict=False)
    epochs = len(checkpoint.training["progress"]["history"])
    return f"weights of {path}, after epoch {epochs} on {checkpoint.spec.source}{_renamed(checkpoint.spec, spec)}"


def check_same_start(config: TrainConfig, resume: Checkpoint) -> None:
    """Refuse another start for a run that goes on; the same one, as in a command given again, does no harm.

    Raises:
        ConfigError: naming both.
    """
    if config.init_from != resume.config.init_from:
        began = f"from {resume.config.init_from}" if resume.config.init_from else "with random weights"
        raise ConfigError(
            f"--init-from {config.init_from} is for a new run, but --resume goes on with one that began {began}: "
            f"drop one of the two, or choose another --output-dir"
        )


def _other_network(checkpoint: Checkpoint, ours: Blueprint) -> Iterator[str]:
    """What of the network's shape differs, each with what would make it fit."""
    if checkpoint.model_name != ours.name:
        yield f"model {checkpoint.model_name} there, {ours.name} here (--model {checkpoint.model_name})"
        return
    for name, (there, here) in differing_options(checkpoint, ours, FREE).items():
        yield f"{name} {in_words(there)} there, {in_words(here)} here ({_remedy(name, there, checkpoint.spec)})"


def _remedy(name: str, there: Any, spec: DataSpec) -> str:
    remedies = {
        "input_channels": f"--variables and --levels: it reads {list_channels(spec.channels)}",
        "target_indices": f"--target-variables: it forecasts {list_channels(spec.targets)}",
        "mask_channels": "how many channels have missing values",
        "forcing_channels": "how many fields without a time the files have",
        "upstream_channels": "--include-upstream, --upstream-region, --upstream-data",
    }
    return remedies.get(name) or f"--{name.replace('_', '-')} {in_words(there)}"


def _names(spec: DataSpec) -> list[list[str]]:
    return [[channel.name for channel in each.statistics.channels] for each in (spec.target, *spec.upstream)]


def _out_of_place(theirs: DataSpec, ours: DataSpec) -> Iterator[str]:
    """Channels that both have, at different places: their weights would be taken for another's."""
    for there, here in zip(_names(theirs), _names(ours)):
        if any(name in here and here.index(name) != place for place, name in enumerate(there)):
            order = f"{list_names(there, ' ')} there, {list_names(here, ' ')} here"
            yield f"channels {order} (their order is that of --variables)"


def _renamed(theirs: DataSpec, ours: DataSpec) -> str:
    """Which channels take over whose weights, in words."""
    pairs = (pair for there, here in zip(_names(theirs), _names(ours)) for pair in zip(there, here))
    found = [f"{here} for {there}" for there, here in pairs if here != there]
    return f", taken for other channels: {list_names(found)}" if found else ""
