"""Which network a run trains: its name and its numbers, from the settings and the data."""

from collections.abc import Collection
from dataclasses import fields
from typing import Any, NamedTuple

from convlstm_wx.checkpoint import Checkpoint
from convlstm_wx.config import TrainConfig
from convlstm_wx.data.spec import DataSpec
from convlstm_wx.linear.inverse_model import InverseModel
from convlstm_wx.models.network import NetworkOptions
from convlstm_wx.text import list_names

# What may change between two parts of a run: it leaves the weights as they are.
FREE = ("dropout", "increment_scale", "recompute")


class Blueprint(NamedTuple):
    """What :func:`~convlstm_wx.models.build.build` needs, and a checkpoint stores."""

    name: str
    options: dict[str, Any]


def blueprint(config: TrainConfig, spec: DataSpec, linear: InverseModel | None = None) -> Blueprint:
    """The network that the settings ask for, cut to the data and to the model that it is blended with."""
    scale = spec.target.statistics.increment_std_C[spec.target_indices]
    options = {
        "input_channels": spec.target.input_channels,
        "target_indices": spec.target_indices,
        "target_mask_indices": spec.target_mask_indices,
        "mask_channels": int(spec.target.statistics.gaps_C.sum()),
        "forcing_channels": spec.target.forcing_channels,
        "upstream_channels": [region.input_channels + region.forcing_channels for region in spec.upstream],
        "increment_scale": [float(value) for value in scale],
        "hidden_channels": list(config.hidden_channels),
        "kernel_size": config.kernel_size,
        "dropout": config.dropout,
        "recompute": config.recompute,
    }
    if spec.upstream:
        options["upstream_fusion"] = config.upstream_fusion
    if linear is not None:
        options["blend"] = _blend_options(spec, linear)
    return Blueprint(config.model, options)


def _blend_options(spec: DataSpec, linear: InverseModel) -> dict[str, Any]:
    """Of a :class:`~convlstm_wx.models.blend.LinearBlend`."""
    regions = [
        [len(region.statistics.channels), len(region.grid.lat), len(region.grid.lon)]
        for region in (spec.target, *spec.upstream)
    ]
    eofs = next(iter(linear.operators_DK.values())).shape[1]
    return {"regions": regions, "eofs": eofs, "past": linear.past, "leads": len(linear.operators_DK)}


def network_changes(checkpoint: Checkpoint, ours: Blueprint) -> list[str]:
    """What makes a checkpoint's network another one than ours; nothing if it can go on as ours."""
    if checkpoint.model_name != ours.name:
        return [f"model {checkpoint.model_name} there, {ours.name} here"]
    differ = differing_options(checkpoint, ours)
    return [f"{name} {in_words(there)} there, {in_words(here)} here" for name, (there, here) in differ.items()]


def in_words(value: Any) -> str:
    """An option of a network, of a long list the first numbers."""
    return (list_names([str(each) for each in value], " ") or "none") if isinstance(value, list | tuple) else str(value)


def differing_options(checkpoint: Checkpoint, ours: Blueprint, free: Collection[str] = FREE) -> dict[str, tuple]:
    """Options of the network that a checkpoint and we have different, there and here; but for those that are free."""
    # A checkpoint from before an option was there lacks it, and its network was built with the default.
    defaults = {option.name: option.default for option in fields(NetworkOptions)}
    theirs, mine = defaults | checkpoint.model_options, defaults | ours.options
    return {name: (theirs[name], mine[name]) for name in defaults if name not in free and theirs[name] != mine[name]}
