"""A network from its name and a plain dict: what a checkpoint stores, and nothing else."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from convlstm_wx.errors import ConfigError
from convlstm_wx.models.forecaster import EncoderForecaster
from convlstm_wx.models.network import Network, NetworkOptions
from convlstm_wx.models.shi2015 import Shi2015
from convlstm_wx.models.unet import UNet

NETWORKS: dict[str, type[Network]] = {"encoder-forecaster": EncoderForecaster, "unet": UNet, "shi2015": Shi2015}


def build(name: str, options: Mapping[str, Any]) -> Network:
    """A freshly initialised network; the options are those of :class:`~convlstm_wx.models.network.NetworkOptions`.

    Raises:
        ConfigError: if no network has that name, or it cannot read upstream regions that are asked for.
    """
    if name not in NETWORKS:
        raise ConfigError(f"no network is called '{name}'; there are: {', '.join(NETWORKS)}")
    return NETWORKS[name](NetworkOptions(**options))


def count_parameters(network: nn.Module) -> int:
    """Number of trainable values."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)
