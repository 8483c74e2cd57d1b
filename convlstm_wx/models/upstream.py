"""Upstream regions: what is on its way to the target region, read on its own grid.

Shapes: B batch, T input times, C channels, H lat, W lon, K hidden channels, Q target points, N upstream points.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from convlstm_wx.models.blocks import RecurrentPyramid, grow, with_whole_gradient
from convlstm_wx.models.convlstm import Memory

MOST_UPSTREAM_POINTS = 256
HEADS = 4


class UpstreamEncoder(nn.Module):
    """Reads one upstream region's past; regions may have any size and resolution."""

    def __init__(
        self, input_channels: int, hidden_channels: Sequence[int], kernel_size: int, dropout: float, memory: Memory
    ):
        super().__init__()
        # The two coordinates, -1 to 1, tell the attention where in its region a feature lies.
        self.pyramid = RecurrentPyramid(input_channels + 2, hidden_channels, kernel_size, dropout, memory)

    def forward(self, x_BTCHW: Tensor, apart: int | None = None) -> Tensor:
        """The coarsest hidden state after the last input time, [B, K, h, w], of at most 256 points."""
        place_BT2HW = unit_coordinates(x_BTCHW.flatten(0, 1)).unflatten(0, x_BTCHW.shape[:2])
        features = self.pyramid.read(torch.cat([x_BTCHW, place_BT2HW], dim=2), apart)[-1][0]
        while features.shape[-2] * features.shape[-1] > MOST_UPSTREAM_POINTS:
            features = functional.avg_pool2d(features, 2, ceil_mode=True)
        return features


class UpstreamFusion(nn.Module):
    """Cross-attention: each coarse target point asks all upstream points for what will reach it.

    The regions need not touch, nor share a grid, so no fixed map from one to the other would be right.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.query = nn.Conv2d(channels + 2, channels, 1)
        self.key_value = nn.Conv2d(channels + 2, 2 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, target_BKHW: Tensor, upstream: Sequence[Tensor]) -> Tensor:
        """What the upstream features [B, K, h, w] say to each target point, [B, K, H, W]."""
        height, width = target_BKHW.shape[-2:]
        query_BQK = _points(self.query(_with_place(target_BKHW)))
        keys_values = [_points(self.key_value(_with_place(features))) for features in upstream]
        key_BNK, value_BNK = torch.cat(keys_values, dim=1).chunk(2, dim=-1)
        query, key, value = map(_heads, (query_BQK, key_BNK, value_BNK))
        attended = functional.scaled_dot_product_attention(query, key, value)
        attended_BKQ = attended.transpose(2, 3).flatten(1, 2)
        return self.out(attended_BKQ.unflatten(2, (height, width)).contiguous())


class ResampledFusion(nn.Module):
    """Concatenation: each region's features are stretched over the coarse target grid, corner to corner, and mixed in.

    What lies at the same share of two grids meets at one point, wherever the regions are: a fixed map, unlike
    attention's, but a cheap one, from which the layers above have to learn where things come from.
    """

    def __init__(self, channels: int, regions: int):
        super().__init__()
        self.mix = nn.Conv2d(channels * (1 + regions), channels, 1)

    def forward(self, target_BKHW: Tensor, upstream: Sequence[Tensor]) -> Tensor:
        """What the upstream features [B, K, h, w] say to each target point, [B, K, H, W]."""
        stretched = [grow(features, target_BKHW.shape[-2:]) for features in upstream]
        return self.mix(torch.cat([target_BKHW, *stretched], dim=1))


def fuse_by(name: str, channels: int, *, regions: int) -> nn.Module:
    """The fusion called "attention" or "resample", of features of so many channels from so many regions."""
    return UpstreamFusion(channels) if name == "attention" else ResampledFusion(channels, regions)


def read_upstream(encoders: nn.ModuleList, upstream: Sequence[Tensor], apart: int | None = None) -> list[Tensor]:
    """What each region's encoder has to say, [B, K, h, w] each.

    Raises:
        ValueError: if there are more or fewer regions than encoders.
    """
    if len(upstream) != len(encoders):
        raise ValueError(f"{len(upstream)} upstream inputs for {len(encoders)} upstream encoders")
    return [encoder(u_BTCHW, apart) for encoder, u_BTCHW in zip(encoders, upstream)]


def unit_coordinates(x_BCHW: Tensor) -> Tensor:
    """Row and column of every point, -1 to 1, as two channels [B, 2, H, W]."""
    batch, _, height, width = x_BCHW.shape
    rows = torch.linspace(-1, 1, height, device=x_BCHW.device, dtype=x_BCHW.dtype)
    columns = torch.linspace(-1, 1, width, device=x_BCHW.device, dtype=x_BCHW.dtype)
    place_2HW = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))
    return place_2HW.expand(batch, 2, height, width)


def _with_place(x_BCHW: Tensor) -> Tensor:
    return torch.cat([x_BCHW, unit_coordinates(x_BCHW)], dim=1)


def _points(x_BKHW: Tensor) -> Tensor:
    """[B, K, H, W] -> [B, N, K]."""
    return with_whole_gradient(x_BKHW).flatten(2).transpose(1, 2)


def _heads(x_BNK: Tensor) -> Tensor:
    """[B, N, K] -> [B, heads, N, K / heads]; a width that four heads do not divide gets one.

    Contiguous: attention on MPS gives wrong numbers for what is not (pytorch#163597, #181133).
    """
    heads = HEADS if x_BNK.shape[-1] % HEADS == 0 else 1
    return x_BNK.unflatten(-1, (heads, -1)).transpose(1, 2).contiguous()
