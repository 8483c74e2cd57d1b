"""Which network a run trains: its name and its numbers, from the settings and the data."""

from dataclasses import fields
from typing import Any, NamedTuple

from convlstm_wx.checkpoint import Checkpoint
from convlstm_wx.config import TrainConfig
from convlstm_wx.data.spec import DataSpec
from convlstm_wx.linear.inverse_model import InverseModel
from convlstm_wx.models.network import NetworkOptions

# What may change between two parts of a run: it leaves the weights as they are.
FREE = ("dropout", "increment_scale", "recompute")


class Blueprint(NamedTuple):
    """What :func:`~convlstm_wx.models.build.build` needs, and a checkpoint stores."""

    name: str
    options: dict[str, Any]


def blueprint(config: TrainConfig, spec: DataSpec, base: InverseModel | None = None) -> Blueprint:
    """The network that the settings ask for, cut to the data and to the forecast that it corrects."""
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
    if base is not None:
        options["base"] = _base_options(spec, base)
    return Blueprint(config.model, options)


def _base_options(spec: DataSpec, base: InverseModel) -> dict[str, Any]:
    """Of a :class:`~convlstm_wx.models.base.LinearBase`."""
    first = next(iter(base.left_out_FDK.values()))
    regions = [
        [len(region.statistics.channels), len(region.grid.lat), len(region.grid.lon)]
        for region in (spec.target, *spec.upstream)
    ]
    return {
        "regions": regions,
        "eofs": first.shape[2],
        "past": base.past,
        "leads": len(base.operators_DK),
        "folds": len(first),
    }


def network_changes(checkpoint: Checkpoint, ours: Blueprint) -> list[str]:
    """What makes a checkpoint's network another one than ours; nothing if it can go on as ours."""
    if checkpoint.model_name != ours.name:
        return [f"model {checkpoint.model_name} there, {ours.name} here"]
    # A checkpoint from before an option was there lacks it, and its network was built with the default.
    defaults = {option.name: option.default for option in fields(NetworkOptions)}
    theirs = defaults | checkpoint.model_options
    compared = (name for name in ours.options if name not in FREE)
    return [
        f"{name} {theirs[name]} there, {ours.options[name]} here"
        for name in compared
        if theirs[name] != ours.options[name]
    ]
