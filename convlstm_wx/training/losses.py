"""The training loss: a masked, area-weighted mean over the errors of all points.

Shapes: B batch, L lead times, D target channels, H lat, W lon.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from convlstm_wx.config import TrainConfig, parse_weights
from convlstm_wx.conventions import Channel
from convlstm_wx.errors import ConfigError
from convlstm_wx.text import list_channels

# Takes errors and their unit u, and gives u^2 f(e) for e = error / u: the weights of the points divide by u^2.
PointwiseLoss = Callable[[Tensor, Tensor], Tensor]


def squared(error: Tensor, _unit: Tensor) -> Tensor:
    """f(e) = e^2."""
    return error.square()


def absolute(error: Tensor, unit: Tensor) -> Tensor:
    """f(e) = |e|."""
    return unit * error.abs()


def huber(error: Tensor, unit: Tensor, *, delta: float) -> Tensor:
    """f(e) = e^2 / 2 up to delta, delta (|e| - delta / 2) beyond [Huber 1964]."""
    size = error.abs()
    bent = torch.minimum(size, delta * unit)
    return bent * (size - 0.5 * bent)


def log_cosh(error: Tensor, unit: Tensor) -> Tensor:
    """f(e) = log(cosh(e)), e^2 / 2 for small and |e| - log(2) for large errors."""
    size = (error / unit).abs()
    return unit.square() * (size + functional.softplus(-2 * size) - math.log(2))  # cosh itself overflows at 89


def pointwise(name: str, *, huber_delta: float = 1.0) -> PointwiseLoss:
    """The loss at a point, by the name that `--loss` gives it."""
    losses: dict[str, PointwiseLoss] = {
        "mse": squared,
        "mae": absolute,
        "huber": partial(huber, delta=huber_delta),
        "log-cosh": log_cosh,
    }
    return losses[name]


class WeightedLoss(nn.Module):
    """Sum of the weighted losses of all points, and the sum of their area weights.

    Errors are divided by the standard deviation of one-step differences, so that a smooth field (500 hPa height) and
    a restless one (rain) count alike at the first lead time. Sums, not a mean: the mean is taken over the valid points
    of a whole optimiser step, so that micro-batches and processes do not change what is learned.

    Args:
        area_weights_H: weight of each grid row, mean 1.
        increment_scale_D: standard deviation of one-step differences of each target, normalised units.
        target_weights_D: how much each target counts, mean 1; by default all alike.
        loss_at: the loss at a point, see :func:`pointwise`.
    """

    weights_DH1: Tensor
    area_H1: Tensor
    unit_D11: Tensor

    def __init__(
        self,
        area_weights_H: Tensor,
        increment_scale_D: Tensor,
        target_weights_D: Tensor | None = None,
        loss_at: PointwiseLoss = squared,
    ):
        super().__init__()
        self.loss_at = loss_at
        weights_D1H1 = area_weights_H.float()[None, None, :, None] / increment_scale_D[:, None, None, None] ** 2
        if target_weights_D is not None:
            weights_D1H1 = weights_D1H1 * target_weights_D[:, None, None, None]
        self.register_buffer("weights_DH1", weights_D1H1.reshape(len(increment_scale_D), -1, 1))
        self.register_buffer("area_H1", area_weights_H.float()[:, None])
        self.register_buffer("unit_D11", increment_scale_D[:, None, None].clone())

    def forward(
        self, forecast_BLDHW: Tensor, y_BLDHW: Tensor, valid_BLDHW: Tensor, emphasis_BLDHW: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The two sums; their quotient is the mean loss, with squared errors 1 for one typical one-step change.

        Emphasis multiplies the loss of a point, not its part in the divisor [Shi et al. 2017, eq. 6].
        """
        error = (forecast_BLDHW.to(y_BLDHW.dtype) - y_BLDHW) * valid_BLDHW
        loss = self.loss_at(error, self.unit_D11) * self.weights_DH1
        if emphasis_BLDHW is not None:
            loss = loss * emphasis_BLDHW
        return loss.sum(), (valid_BLDHW * self.area_H1).sum()


def make_loss(
    config: TrainConfig, area_weights_H: Tensor, increment_scale_D: Tensor, targets: Sequence[Channel]
) -> WeightedLoss:
    """The loss that the settings ask for.

    Raises:
        ConfigError: if `--variable-weights` names what is not forecast.
    """
    return WeightedLoss(
        area_weights_H,
        increment_scale_D,
        target_weights(config.variable_weights, targets),
        pointwise(config.loss, huber_delta=config.huber_delta),
    )


def target_weights(entries: Sequence[str], targets: Sequence[Channel]) -> Tensor:
    """How much each target counts, mean 1, from entries such as "t2m=2" or, for one level, "z@500hPa=2".

    Raises:
        ConfigError: for a name that is not forecast, or if nothing is left to count.
    """
    weights = parse_weights("--variable-weights", entries)
    unknown = [name for name in weights if not any(name in (each.variable, each.name) for each in targets)]
    if unknown:
        raise ConfigError(f"--variable-weights {' '.join(unknown)}: not forecast; there are {list_channels(targets)}")
    # A level's own weight goes before that of its variable.
    weights_D = torch.tensor([weights.get(each.name, weights.get(each.variable, 1.0)) for each in targets])
    if not weights_D.any():
        raise ConfigError("--variable-weights leaves nothing to learn: give one target a weight above 0")
    return weights_D / weights_D.mean()


def lead_weights(leads: int, power: float) -> Tensor:
    """How much each lead time counts, [L, 1, 1, 1] and mean 1, falling with the power of its number.

    Errors far ahead are large and mostly chance: weighted alike they are most of a gradient, and its noise.
    """
    weights_L = torch.arange(1, leads + 1, dtype=torch.float32) ** -power
    return (weights_L / weights_L.mean())[:, None, None, None]


def persistence(x_BTCHW: Tensor, target_indices: list[int], lead_steps: int) -> Tensor:
    """The last input state at every lead time: what the network starts from, [B, L, D, H, W]."""
    last_B1DHW = x_BTCHW[:, -1:, target_indices]
    return last_B1DHW.expand(-1, lead_steps, -1, -1, -1)


def mean_loss(total: float, weight: float) -> float:
    """The quotient, not a number where nothing was valid."""
    return total / weight if weight > 0 else float("nan")
