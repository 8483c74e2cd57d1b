"""How much it rained on average where so much was forecast: least squares on validation, whatever the loss.

Shapes: L lead times, R precipitation channels, P the terms of the mean and the truth, four in all.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from convlstm_wx.data.rain import RAIN_TERMS
from convlstm_wx.distributed import Processes

RainNumbers = dict[str, list[list[float]]]  # as in RainMeans.by_channel
AS_FORECAST = np.array([0.0, 1.0, 0.0])
PRIOR_WINDOWS = 10  # that speak for the forecast as it is: they count where validation has few


class RainFit:
    """Gathers products of the forecast's terms and the truth, by lead time and channel.

    Args:
        channels: names of the R channels.
        leads: L.
    """

    def __init__(self, channels: Sequence[str], leads: int):
        self.channels = channels
        self.products_2RLPP = np.zeros((2, len(channels), leads, RAIN_TERMS + 1, RAIN_TERMS + 1))

    def add(self, place: int, forecast: Tensor, truth: Tensor, weights: Tensor, emphasis: Tensor | None) -> None:
        """Take in forecasts of the channel at a place, in mm, all [B, L, H, W].

        Args:
            weights: of the points in a score.
            emphasis: what the loss multiplies them with.
        """
        terms = torch.stack([torch.ones_like(forecast), forecast, forecast.log1p(), truth])
        values_PBLHW = torch.where(weights > 0, terms, 0)  # what is missing may be anything
        emphasised = weights if emphasis is None else weights * emphasis
        for kind, counted in enumerate((weights, emphasised)):
            products = torch.einsum("pblhw,qblhw->lpq", values_PBLHW * counted, values_PBLHW)
            self.products_2RLPP[kind, place] += products.cpu().numpy()

    def means(self, windows: int, processes: Processes) -> tuple[RainNumbers, np.ndarray]:
        """The numbers that so many windows showed, and the RMSE [R, L] with them in mm, NaN where nothing was valid."""
        all_windows, *sums = processes.sum(windows, *self.products_2RLPP.ravel())
        plain_RLPP, emphasised_RLPP = np.reshape(sums, self.products_2RLPP.shape)
        found = {
            channel: [_coefficients(products_PP, all_windows).tolist() for products_PP in products_LPP]
            for channel, products_LPP in zip(self.channels, emphasised_RLPP)
        }
        errors_RLP = np.reshape([[[*each, -1.0] for each in leads] for leads in found.values()], plain_RLPP.shape[:3])
        squares_RL = np.einsum("rlp,rlpq,rlq->rl", errors_RLP, plain_RLPP, errors_RLP).clip(min=0)
        weight_RL = plain_RLPP[:, :, 0, 0]
        means_RL = np.divide(squares_RL, weight_RL, out=np.full_like(squares_RL, np.nan), where=weight_RL > 0)
        return found, np.sqrt(means_RL)


def _coefficients(products_PP: np.ndarray, windows: float) -> np.ndarray:
    """a, b and c of the least mean square among those with which more rain is forecast where more was: b, c >= 0."""
    if not products_PP[0, 0] or not np.isfinite(products_PP).all():
        return AS_FORECAST  # nothing was valid; or the forecast is no number, which the loss tells
    inner, with_truth = products_PP[:RAIN_TERMS, :RAIN_TERMS], products_PP[:RAIN_TERMS, RAIN_TERMS]
    prior = np.diag(np.diag(inner)) * PRIOR_WINDOWS / max(windows, 1)
    inner, with_truth = inner + prior, with_truth + prior @ AS_FORECAST
    best, least = AS_FORECAST, np.inf
    for slopes in [some for size in range(RAIN_TERMS) for some in combinations((1, 2), size)]:
        at = [0, *slopes]
        found = np.zeros(RAIN_TERMS)
        found[at] = np.linalg.lstsq(inner[np.ix_(at, at)], with_truth[at], rcond=None)[0]
        error = found @ inner @ found - 2 * found @ with_truth
        if found[1:].min() >= 0 and error < least:
            best, least = found, error
    return best
