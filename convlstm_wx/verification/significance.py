"""Is one forecast better than another, or is it luck? Paired block bootstrap over init times.

Forecasts from neighbouring init times share the same weather, so their errors are a dependent series: 400 of them say
less than 400 independent ones. Blocks of consecutive init times are drawn instead of single ones, and both forecasts
keep the same draw, so that what is hard for both cancels.

Sources: Kuensch (1989) and Politis and Romano (1992, circular blocks) for the bootstrap; Wilks, Statistical Methods in
the Atmospheric Sciences, ch. 5, for the effective sample size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import NormalDist
from typing import Any

import numpy as np
import xarray as xr

RESAMPLES = 1000
# Below this many blocks a spread over blocks is guesswork; then no interval is given (NaN), and the verdict says so.
MIN_BLOCKS = 4
PAIRED_FIGURES = (
    "mse_difference",
    "mse_difference_low",
    "mse_difference_high",
    "skill",
    "skill_low",
    "skill_high",
    "p_value",
    "effective_size",
    "block_length",
)


@dataclass(frozen=True)
class Dependence:
    """How much the neighbours in a series [N] repeat each other.

    size: number of values; correlations: autocorrelations at lags 1, 2, ..., 0 from the first one that is not positive;
    length: values that carry the information of one independent value, 1 + 2 * sum(correlations); 1 is white noise;
    excess: kurtosis above that of the normal distribution; large if few values carry most of the variance.
    """

    size: int
    correlations: np.ndarray
    length: float
    excess: float

    @classmethod
    def of(cls, series: np.ndarray, season: np.ndarray) -> "Dependence":
        """Estimate it from what is left of the series without its mean and the course of the season, `season` [N, S].

        Errors are larger in winter: that is known beforehand, and not a memory of the weather. Taking out 1 + S numbers
        lowers every sample autocorrelation by about (1 + S) length / N; that is added back.
        """
        fitted = np.column_stack([np.ones(series.size), season])
        residual = series - fitted @ np.linalg.lstsq(fitted, series, rcond=None)[0]
        raw = _autocorrelation(residual, series)
        correlations, length = np.zeros_like(raw), 1.0
        for _ in range(3):  # the correction needs the length, which needs the correction; three rounds settle it
            corrected = raw + (fitted.shape[1] * length / series.size if length > 1.0 else 0.0)
            correlations = corrected * np.cumprod(corrected > 0)
            length = 1.0 + 2.0 * float(correlations.sum())
        variance = float(np.mean(residual**2))
        excess = float(np.mean(residual**4)) / variance**2 - 3.0 if raw.any() else 0.0
        return cls(series.size, correlations, length, max(excess, 0.0))

    @property
    def effective_size(self) -> float:
        """Number of independent values that the series is worth."""
        return self.size / self.length

    def block(self, lead_steps: float) -> int | None:
        """Block length for forecasts that reach `lead_steps` init spacings ahead; None if the series is too short.

        At least lead + decorrelation length, because forecasts that overlap share errors; three decorrelation lengths
        where the series affords them.
        """
        longest = self.size // MIN_BLOCKS
        if lead_steps + self.length > longest:
            return None
        return min(int(np.ceil(max(lead_steps + self.length, 3.0 * self.length))), longest)

    def stretch(self, block: int, confidence: float) -> float:
        """Factor by which a bootstrap interval from blocks of this length is too narrow.

        Beside what :meth:`widening` says, few blocks ask for the t distribution, with as many degrees of freedom as
        blocks less one; fewer where a few values carry most of the variance, as then the spread itself is less certain
        [Satterthwaite 1946, Biometrics Bull.]. Without all this "95 %" intervals hold the truth 85 to 90 % of the time.
        """
        degrees = self.size / block / (1.0 + 0.5 * self.excess * self.length / block) - 1.0
        return self.widening(block) * _t_over_normal((1.0 + confidence) / 2.0, max(degrees, MIN_BLOCKS - 1.0))

    def widening(self, block: int) -> float:
        """Factor by which the spread over resamples of blocks of this length is too small.

        What correlates across the edges of blocks is lost, and the mean of a block is measured against a mean that
        holds the block itself.
        """
        lags = np.arange(1, min(block, self.correlations.size + 1))
        kept = 1.0 + 2.0 * float(((1.0 - lags / block) * self.correlations[: lags.size]).sum())
        across, own_mean = self.length / kept, self.size / (self.size - block)
        return float(np.sqrt(across * own_mean))


def _autocorrelation(residual: np.ndarray, series: np.ndarray) -> np.ndarray:
    """Sample autocorrelation at lags 1 to N/3; all 0 for a series of which nothing but rounding is left."""
    lags = residual.size // 3
    variance = float(residual @ residual)
    if variance <= 1e-20 * float(series @ series):
        return np.zeros(lags)
    power = np.abs(np.fft.rfft(residual, 2 * residual.size)) ** 2  # Wiener and Khinchin: all lags at once
    return np.fft.irfft(power)[1 : lags + 1] / variance


def _t_over_normal(probability: float, degrees: float) -> float:
    """Quantile of Student's t over that of the normal: Cornish-Fisher series (Abramowitz and Stegun 26.7.5).

    Within 1 % for three degrees of freedom or more at 95 %, and free of a dependence on scipy.
    """
    z2 = NormalDist().inv_cdf(probability) ** 2
    first = (z2 + 1) / 4
    second = (5 * z2**2 + 16 * z2 + 3) / 96
    third = (3 * z2**3 + 19 * z2**2 + 17 * z2 - 15) / 384
    return 1 + first / degrees + second / degrees**2 + third / degrees**3


def resample_sums(
    series: np.ndarray, block: int, generator: np.random.Generator, resamples: int = RESAMPLES
) -> np.ndarray:
    """Sums over circular moving-block resamples of the rows of `series` [N, K]; returns [resamples, K].

    Every column gets the same draw. Each resample holds the number of blocks nearest to N / block.
    """
    wrapped = np.concatenate([np.zeros((1, series.shape[1])), series, series[: block - 1]]).cumsum(axis=0)
    block_sums = wrapped[block:] - wrapped[:-block]
    starts = generator.integers(0, len(series), (resamples, max(round(len(series) / block), 1)))
    return block_sums[starts].sum(axis=1)


def resampled(
    sums: np.ndarray,
    figures: Callable[[np.ndarray], np.ndarray],
    season: np.ndarray,
    lead_steps: float,
    *,
    confidence: float,
    generator: np.random.Generator,
) -> np.ndarray:
    """Figures made of sums over init times, their intervals, and how likely chance makes them differ so from 0.

    How dependent the init times are is read from what each adds to the figure (the difference that leaving it out
    makes): of a ratio that is what does not cancel between numerator and denominator.

    Args:
        sums: [N, K], what each init time adds, in their order.
        figures: sums [R, K] -> figures [R, F]; NaN where there is none.
        season: [N, S], see `season_of`.
        lead_steps: lead time over the spacing of the init times.

    Returns:
        [F, 6]: figure, low, high, p, effective size, block length. All F share the longest block that one of them
        needs. NaN, but for the figure and the size, where the series holds fewer than MIN_BLOCKS blocks.
    """
    total = sums.sum(axis=0, keepdims=True)
    best = figures(total)[0]
    left_out = figures(total - sums)
    found = np.full((best.size, 6), np.nan)
    found[:, 0] = best
    known = np.flatnonzero(np.isfinite(best) & np.isfinite(left_out).all(axis=0))
    dependences = {at: Dependence.of(_but_rounding(best[at] - left_out[:, at], best[at]), season) for at in known}
    blocks = {at: block for at, each in dependences.items() if (block := each.block(lead_steps)) is not None}
    for at, each in dependences.items():
        found[at, 4] = each.effective_size
    if not blocks:
        return found
    block = max(blocks.values())
    draws = figures(resample_sums(sums, block, generator))
    for at in blocks:
        if np.isfinite(draws[:, at]).all():
            stretched = best[at] + dependences[at].stretch(block, confidence) * (draws[:, at] - best[at])
            found[at, 1:4] = [*_percentiles(stretched, confidence), _chance(stretched)]
            found[at, 5] = block
    return found


def _but_rounding(series: np.ndarray, size: float) -> np.ndarray:
    return np.where(np.abs(series) > 1e-13 * abs(size), series, 0.0)


def _percentiles(draws: np.ndarray, confidence: float) -> np.ndarray:
    tail = (1.0 - confidence) / 2.0
    return np.quantile(draws, [tail, 1.0 - tail])


def _chance(draws: np.ndarray) -> float:
    """Two-sided probability of 0: twice the share of the draws on its smaller side."""
    return min(1.0, 2.0 * min(float((draws <= 0).mean()), float((draws >= 0).mean())))


def holm(p: np.ndarray) -> np.ndarray:
    """Probabilities [..., n] of n tests that are read together, adjusted so that the chance of any false finding among
    them stays below the level of each [Holm 1979, Scand. J. Statist.]. NaN is no test.
    """
    order = np.argsort(p, axis=-1)  # NaN comes last
    ranked = np.take_along_axis(p, order, -1)
    left = np.isfinite(p).sum(axis=-1, keepdims=True) - np.arange(p.shape[-1])
    adjusted = np.maximum.accumulate(ranked * left, axis=-1).clip(max=1.0)
    found = np.empty_like(adjusted)
    np.put_along_axis(found, order, adjusted, -1)
    return found


def mean_interval(
    values: np.ndarray,
    weights: np.ndarray,
    season: np.ndarray,
    lead_steps: float,
    *,
    confidence: float,
    generator: np.random.Generator,
) -> np.ndarray:
    """Weighted mean of a dependent series and its interval: [mean, low, high]; NaN limits if there are too few values.

    Args:
        values, weights: [N], in the order of the init times; places with weight 0 are left out.
        season: [N, S], see `season_of`.
        lead_steps: lead time over the spacing of the init times.
    """
    keep = weights > 0
    if not keep.any():
        return np.full(3, np.nan)
    sums = np.column_stack([weights * values, weights])[keep]
    return resampled(sums, _mean, season[keep], lead_steps, confidence=confidence, generator=generator)[0, :3]


def paired(
    mse: np.ndarray,
    reference_mse: np.ndarray,
    weights: np.ndarray,
    season: np.ndarray,
    lead_steps: float,
    *,
    confidence: float,
    generator: np.random.Generator,
) -> np.ndarray:
    """Compare two forecasts on the same init times; the figures named in PAIRED_FIGURES, in that order.

    mse_difference is MSE minus reference MSE (negative: better than the reference); skill is 1 - MSE / reference MSE.
    Limits are NaN if the series holds fewer than MIN_BLOCKS blocks. p_value, effective_size (the number of independent
    pairs that the series is worth) and block_length (in init times) are those of the skill. It tells better than the
    difference whether there is one: days that are hard for both forecasts count in the latter again and again, in the
    ratio they do not.

    Args:
        mse, reference_mse: area-mean squared error per init time [N].
        weights: valid area per init time [N]; the means over init times use it, so that they equal the pooled MSE.
        season: [N, S], see `season_of`.
        lead_steps: lead time over the spacing of the init times.
    """
    keep = weights > 0
    if not keep.any():
        return np.full(len(PAIRED_FIGURES), np.nan)
    mse, reference_mse, weights = mse[keep], reference_mse[keep], weights[keep]
    drawn: dict[str, Any] = {"confidence": confidence, "generator": generator}
    of_difference = np.column_stack([weights * (mse - reference_mse), weights])
    difference = resampled(of_difference, _mean, season[keep], lead_steps, **drawn)[0]
    of_skill = np.column_stack([weights * mse, weights * reference_mse])
    skill = resampled(of_skill, _skill, season[keep], lead_steps, **drawn)[0]
    return np.concatenate([difference[:3], skill])


def _mean(sums: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return sums[:, :1] / sums[:, 1:]


def _skill(sums: np.ndarray) -> np.ndarray:
    """NaN against a perfect reference."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return 1.0 - sums[:, :1] / np.where(sums[:, 1:] > 0, sums[:, 1:], np.nan)


def lead_in_spacings(lead_times: xr.DataArray, init_times: np.ndarray) -> xr.DataArray:
    """Lead times over the usual spacing of the init times [lead_time]: how many forecasts reach past the next start."""
    return lead_times / (np.median(np.diff(init_times)) if init_times.size > 1 else lead_times.values[0])


def season_of(init_times: np.ndarray) -> np.ndarray:
    """The course of the season at the init times: cosine and sine of the year [N, 2], or, where they span less than
    about a year, a straight line [N, 1].
    """
    years = (init_times - init_times[0]) / np.timedelta64(1, "D") / 365.25
    if years[-1] < 0.9:
        return years[:, None]
    return np.column_stack([np.cos(2 * np.pi * years), np.sin(2 * np.pi * years)])


def limits_by_channel(
    mse: xr.DataArray, weight: xr.DataArray, *, confidence: float, generator: np.random.Generator
) -> xr.DataArray:
    """`mean_interval` over init_time for all other dims: the last dim, "limit", holds mean, low and high."""
    function = partial(mean_interval, confidence=confidence, generator=generator)
    return _by_channel(function, "limit", mse, weight)


def paired_by_channel(
    mse: xr.DataArray,
    reference_mse: xr.DataArray,
    weight: xr.DataArray,
    *,
    confidence: float,
    generator: np.random.Generator,
) -> xr.Dataset:
    """`paired` over init_time for all other dims: a variable per name in PAIRED_FIGURES.

    Lead times are read together ("beats it until +48 h"), so p_value is that of `holm` across them.
    """
    function = partial(paired, confidence=confidence, generator=generator)
    figures = _by_channel(function, "figure", mse, reference_mse, weight)
    found = figures.assign_coords(figure=list(PAIRED_FIGURES)).to_dataset("figure")
    p = found["p_value"].transpose(..., "lead_time")
    found["p_value"] = p.copy(data=holm(p.values)).transpose(*found["p_value"].dims)
    return found


def _by_channel(function: Callable[..., np.ndarray], output: str, *series: xr.DataArray) -> xr.DataArray:
    """Apply a function of series, season and lead to every series along init_time; its results get the dim `output`."""
    init_times = series[0]["init_time"].values
    return xr.apply_ufunc(
        function,
        *series,
        xr.DataArray(season_of(init_times), dims=("init_time", "wave")),
        lead_in_spacings(series[0]["lead_time"], init_times),
        input_core_dims=[["init_time"] for _ in series] + [["init_time", "wave"], []],
        output_core_dims=[[output]],
        vectorize=True,
    )
