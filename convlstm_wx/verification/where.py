"""Where is one forecast better than another? A test at every grid point, and how many of them chance would pass.

Shapes: N init times, P points.

Sources: Kuensch (1989) for the blocks; Benjamini and Hochberg (1995) for the false discovery rate, and Wilks (2016,
"The stippling shows statistically significant grid points", BAMS 97) for why maps need it.
"""

import math

import numpy as np

from convlstm_wx.verification.significance import Dependence

_erfc = np.vectorize(math.erfc, otypes=[float])


def p_values(difference_NP: np.ndarray, dependence: Dependence, block: int) -> np.ndarray:
    """How likely chance alone makes a mean difference as large as that of each point [P]; NaN where nothing is valid.

    The spread is that of the mean over circular block resamples. It is known without drawing any: the blocks of a
    resample are independent draws out of all blocks.

    Args:
        difference_NP: in the order of the init times; NaN does not count.
        dependence: of the area mean of the differences: few points have a series that tells it well.
        block: length of the blocks in init times, fewer than N.
    """
    size = len(difference_NP)
    valid = np.isfinite(difference_NP)
    share = valid.mean(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(valid, difference_NP, 0.0).sum(axis=0) / valid.sum(axis=0)
        residual = np.where(valid, difference_NP - mean, 0.0)
        wrapped = np.concatenate([np.zeros((1, residual.shape[1])), residual, residual[: block - 1]]).cumsum(axis=0)
        of_block = (wrapped[block:] - wrapped[:-block]).std(axis=0)
        blocks = size / block
        spread = of_block / (np.sqrt(blocks) * block * share) * dependence.widening(block)
        return np.where(mean == 0, 1.0, _two_sided(mean / spread, blocks - 1.0))


def _two_sided(t: np.ndarray, degrees: float) -> np.ndarray:
    """Probability that Student's t is farther from 0, through the normal that it corresponds to.

    Abramowitz and Stegun 26.7.8: within 0.01 of the true probability for three degrees of freedom or more.
    """
    z = t * (1.0 - 1.0 / (4.0 * degrees)) / np.sqrt(1.0 + t**2 / (2.0 * degrees))
    return _erfc(np.abs(z) / math.sqrt(2.0))


def discoveries(p: np.ndarray, rate: float) -> np.ndarray:
    """Which of many tests count, so that of those which do at most this share is chance (Benjamini and Hochberg).

    Args:
        p: of any shape; NaN is no test.
        rate: the false discovery rate.
    """
    tests = np.sort(p[np.isfinite(p)])
    below = np.flatnonzero(tests <= rate * np.arange(1, tests.size + 1) / max(tests.size, 1))
    return p <= tests[below[-1]] if below.size else np.zeros(p.shape, bool)
