"""The training loss: a masked, area-weighted mean of squared errors.

Shapes: B batch, L lead times, D target channels, H lat, W lon.
"""

from torch import Tensor, nn


class WeightedSquaredError(nn.Module):
    """Sum of weighted squared errors, and the sum of their weights.

    Errors are divided by the standard deviation of one-step differences, so that a smooth field (500 hPa height) and
    a restless one (rain) count alike at the first lead time. Sums, not a mean: the mean is taken over the valid points
    of a whole optimiser step, so that micro-batches and processes do not change what is learned.

    Args:
        area_weights_H: weight of each grid row, mean 1.
        increment_scale_D: standard deviation of one-step differences of each target, normalised units.
    """

    weights_DH1: Tensor
    area_H1: Tensor

    def __init__(self, area_weights_H: Tensor, increment_scale_D: Tensor):
        super().__init__()
        weights_D1H1 = area_weights_H.float()[None, None, :, None] / increment_scale_D[:, None, None, None] ** 2
        self.register_buffer("weights_DH1", weights_D1H1.reshape(len(increment_scale_D), -1, 1))
        self.register_buffer("area_H1", area_weights_H.float()[:, None])

    def forward(self, forecast_BLDHW: Tensor, y_BLDHW: Tensor, valid_BLDHW: Tensor) -> tuple[Tensor, Tensor]:
        """The two sums; their quotient is the mean loss, 1 for an error of one typical one-step change."""
        error = (forecast_BLDHW.to(y_BLDHW.dtype) - y_BLDHW) * valid_BLDHW
        return (error.square() * self.weights_DH1).sum(), (valid_BLDHW * self.area_H1).sum()


def persistence(x_BTCHW: Tensor, target_indices: list[int], lead_steps: int) -> Tensor:
    """The last input state at every lead time: what the network starts from, [B, L, D, H, W]."""
    last_B1DHW = x_BTCHW[:, -1:, target_indices]
    return last_B1DHW.expand(-1, lead_steps, -1, -1, -1)


def mean_loss(total: float, weight: float) -> float:
    """The quotient, not a number where nothing was valid."""
    return total / weight if weight > 0 else float("nan")
