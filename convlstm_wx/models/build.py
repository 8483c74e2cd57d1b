"""A network from its name and a plain dict: what a checkpoint stores, and nothing else."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from convlstm_wx.errors import ConfigError
from convlstm_wx.models.forecaster import EncoderForecaster

NETWORKS: dict[str, type[EncoderForecaster]] = {"encoder-forecaster": EncoderForecaster}


def build(name: str, options: Mapping[str, Any]) -> EncoderForecaster:
    """A freshly initialised network.

    Raises:
        ConfigError: if no network has that name.
    """
    if name not in NETWORKS:
        raise ConfigError(f"no network is called '{name}'; there are: {', '.join(NETWORKS)}")
    return NETWORKS[name](**options)


def count_parameters(network: nn.Module) -> int:
    """Number of trainable values."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)
