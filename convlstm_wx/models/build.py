"""A network from its name and a plain dict: what a checkpoint stores, and nothing else."""

from collections.abc import Mapping, Sequence
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


def activation_bytes(
    *, batch_size: int, steps: int, height: int, width: int, hidden_channels: Sequence[int], bytes_per_value: int = 4
) -> int:
    """What a training step keeps of one region for its backward pass: a rough estimate.

    Per time step and resolution a ConvLSTM keeps its gates before and after their activation (8 K), the cell and
    hidden states and their products (5 K), its input and the features around it (5 K).
    """
    points = [-(-height // 2**level) * -(-width // 2**level) for level in range(len(hidden_channels))]
    values = 18 * sum(p * k for p, k in zip(points, hidden_channels)) * steps
    return values * batch_size * bytes_per_value
