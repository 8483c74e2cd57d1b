"""A linear inverse model: what can be forecast by linear statistics of the training months, and no network.

The anomalies of all channels together, each channel divided by its standard deviation and each row weighted by area,
are written as sums of empirical orthogonal functions (EOFs) [Lorenz 1956; Hannachi et al. 2007, Int. J. Climatol.]. The
coefficients at the valid time are a linear function of those at the latest times [Penland 1989, Mon. Wea. Rev.],
fitted by ridge regression [Hoerl and Kennard 1970, Technometrics] for each lead time on its own. How many EOFs and past
times predict, and how strong the ridge is, is chosen for each lead time by cross-validation inside the training months.
What the EOFs do not hold of the latest state is damped, point by point.

Shapes: N times, S snapshots, H lat, W lon, P points of a channel, K EOFs, D predictors (past times x EOFs), F folds,
L lead times. Channels may lie on grids of their own.
"""

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from convlstm_wx.errors import DataError
from convlstm_wx.linear.damping import damping
from convlstm_wx.linear.record import Record, blocks_of, in_blocks

PAST_TIMES = (1, 3)
EXPLAINED = (0.8, 0.9, 0.95, 0.98, 0.99, 0.995)  # share of the variance that the predicting EOFs hold
MOST_EOFS = 150
TIMES_PER_EOF = 4  # of training, at least
EOF_BYTES = 256e6  # of all of them in float32
FOLDS = 5
RIDGES = np.geomspace(1e-4, 10.0, 11)  # over the mean sum of squares of a predictor
MOST_SNAPSHOTS, SNAPSHOT_BYTES = 1500, 400e6  # the EOFs come from evenly spaced training times, in bounded memory
FEWEST_TIMES = 40
T = TypeVar("T")
LEAST_OBSERVED = 0.5  # of the snapshots; points that are observed less often have no part in the EOFs


class TooLittleError(DataError):
    """There is too little in training to fit the model to."""


@dataclass(frozen=True)
class InverseModel:
    """A fitted linear inverse model.

    Attributes:
        patterns_KHW: of each channel that is forecast, the anomaly that a coefficient of 1 stands for.
        projectors_KHW: of each channel; a coefficient is the sum of anomaly x projector over points and channels.
        operators_DK: of each lead time; the predictors are the coefficients of the latest time, then of earlier ones.
        damping_HW: of each channel that is forecast and each lead time, how much is left of what the EOFs do not hold.
        optimism: of each lead time, the mean square of errors left out in cross-validation over that of the fit.
        past: how many times predict.
        step: between them.
        description: how it was made, in one sentence.
    """

    patterns_KHW: Mapping[str, np.ndarray]
    projectors_KHW: Mapping[str, np.ndarray]
    operators_DK: Mapping[np.timedelta64, np.ndarray]
    damping_HW: Mapping[str, Mapping[np.timedelta64, np.ndarray]]
    optimism: Mapping[np.timedelta64, float]
    past: int
    step: np.timedelta64
    description: str

    def forecast(self, records: Mapping[str, Record], init_times: np.ndarray) -> "InverseForecast":
        """Forecasts from these init times (sorted). A missing value counts as usual; an earlier time that the record
        lacks is taken to be like the one after it.
        """
        past = [init_times - lag * self.step for lag in range(self.past)]
        times = np.unique(np.concatenate(past))
        known = _coefficients(records, self.projectors_KHW, times)
        states = [known[np.searchsorted(times, at)] for at in past]
        for later, earlier in itertools.pairwise(states):
            lacking = np.isnan(earlier).any(axis=1)
            earlier[lacking] = later[lacking]
        predictors = np.concatenate(states, axis=1)
        leads = {lead: predictors @ at for lead, at in self.operators_DK.items()}
        return InverseForecast(self, init_times, states[0], leads)


@dataclass(frozen=True)
class InverseForecast:
    """Forecasts from some init times, as coefficients of each lead time; fields are made when asked for.

    Attributes:
        state_NK: coefficients at the init times.
        coefficients_NK: those forecast, of each lead time.
    """

    model: InverseModel
    init_times: np.ndarray
    state_NK: np.ndarray
    coefficients_NK: Mapping[np.timedelta64, np.ndarray]

    def anomaly(
        self, channel: str, init_times: np.ndarray, lead_time: np.timedelta64, now_NHW: np.ndarray
    ) -> np.ndarray:
        """Forecast anomaly of a channel [N, H, W], in its units, from these of the init times.

        Args:
            now_NHW: its anomaly at the init times, NaN where nothing was observed.
        """
        rows = np.searchsorted(self.init_times, init_times)
        patterns = self.model.patterns_KHW[channel]
        damped = self.model.damping_HW[channel][lead_time]
        rest = np.nan_to_num(now_NHW - np.tensordot(self.state_NK[rows], patterns, 1))
        return np.tensordot(self.coefficients_NK[lead_time][rows], patterns, 1) + damped * rest


def fit(
    records: Mapping[str, Record],
    training_times: np.ndarray,
    lead_times: Sequence[np.timedelta64],
    weights_H: Mapping[str, np.ndarray],
    step: np.timedelta64,
    *,
    targets: Collection[str] | None = None,
    most_past: int = max(PAST_TIMES),
) -> InverseModel:
    """Fit the model to training times alone: predictors and what they predict both lie in them.

    Args:
        records: channel name -> record; all are predictors.
        weights_H: of each channel, the area weight of each row.
        step: between past times, commonly that of the record.
        targets: the channels that are forecast; None: all.
        most_past: times that may predict, at most.

    Raises:
        TooLittleError: for fewer than forty training times in the records, no times in a row with values of all
            channels, or anomalies that are zero throughout.
    """
    training = training_times
    for record in records.values():
        training = np.intersect1d(training, record.times)
    if training.size < FEWEST_TIMES:
        raise TooLittleError(
            f"the linear inverse model needs {FEWEST_TIMES} training times or more, there are {training.size}"
        )
    patterns, projectors, held = _orthogonal_functions(records, training, weights_H)
    coefficients = _coefficients(records, projectors, training)
    past_times = [past for past in PAST_TIMES if past <= most_past]
    sums = _sums(coefficients, training, lead_times, step, max(past_times))
    if not sums.squares_FDD.any():
        raise TooLittleError(
            f"the linear inverse model needs {max(past_times)} times in a row with values of all channels; there are "
            "none in training"
        )
    counts = np.unique(np.minimum(np.searchsorted(held, EXPLAINED) + 1, held.size))
    choices = list(itertools.product(counts.tolist(), past_times))
    operators, optimism, chosen = {}, {}, []
    for lead, (operator, optimism[lead], choice) in zip(lead_times, _regressions(sums, choices)):
        operators[lead] = operator
        chosen.append(choice)
    names = list(records) if targets is None else list(targets)
    rests = {name: _Rest(records[name], patterns[name], training, coefficients) for name in names}
    damped = {name: damping(rest, training, lead_times) for name, rest in _progress(rests.items(), "damping")}
    said = ", ".join(f"{n_eofs} x {n_past}" for n_eofs, n_past in dict.fromkeys(chosen))
    description = (
        f"{held.size} EOFs of all channels ({100 * held[-1]:.1f} % of the variance of their anomalies), ridge "
        f"regression for each lead time, fitted to {training.size} training times; EOFs x past times that predict "
        f"(chosen with the ridge by {FOLDS}-fold cross-validation in training): {said}; what the EOFs do not hold of "
        f"the state at the init time is damped"
    )
    kept = {name: patterns[name] for name in names}
    return InverseModel(kept, projectors, operators, damped, optimism, max(past_times), step, description)


@dataclass(frozen=True)
class _Rest:
    """What the EOFs do not hold of a channel's anomalies, at training times."""

    record: Record
    patterns_KHW: np.ndarray
    times: np.ndarray
    coefficients_NK: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        return self.record.shape

    def anomalies(self, times: np.ndarray) -> np.ndarray:
        held = self.coefficients_NK[np.searchsorted(self.times, times)].astype(np.float32)
        return self.record.anomalies(times) - np.tensordot(held, self.patterns_KHW, 1)


def spreads(
    model: InverseModel, records: Mapping[str, Record], training_times: np.ndarray
) -> dict[str, dict[np.timedelta64, np.ndarray]]:
    """Standard deviation of the errors [H, W] by channel that is forecast and lead time, 0 where nothing was observed.

    That of the fit over the training times, made larger by the model's optimism.
    """
    wanted, largest = list(model.patterns_KHW), max(records.values(), key=lambda record: np.prod(record.shape))
    sums = {name: {lead: np.zeros((2, *records[name].shape)) for lead in model.operators_DK} for name in wanted}
    for starts in blocks_of(training_times, largest):
        made = model.forecast(records, starts)
        for name in wanted:
            now = records[name].anomalies(starts)
            for lead, sum_ in sums[name].items():
                error = made.anomaly(name, starts, lead, now) - records[name].anomalies(starts + lead)
                error[~np.isin(starts + lead, training_times)] = np.nan
                sum_ += [np.nansum(error**2, axis=0), np.isfinite(error).sum(axis=0)]
    return {
        name: {lead: np.sqrt(model.optimism[lead] * total / np.maximum(n, 1)) for lead, (total, n) in of.items()}
        for name, of in sums.items()
    }


def _progress(channels: Collection[T], what: str) -> "tqdm[T]":
    """The channels with a progress bar, which is shown where they take long."""
    label = f"linear inverse model, {what}"
    return tqdm(channels, desc=label, unit="channel", leave=False, disable=None, delay=2)


def _orthogonal_functions(
    records: Mapping[str, Record], training: np.ndarray, weights_H: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray]:
    """Patterns and projectors [K, H, W] by channel, and the share of the variance that the leading EOFs hold [K].

    By the method of snapshots [Sirovich 1987]: the EOFs are sums of snapshots, weighted by the eigenvectors of the
    snapshots' inner products [S, S], which is small however many points there are.
    """
    n_points = sum(int(np.prod(record.shape)) for record in records.values())
    n_snapshots = int(np.clip(SNAPSHOT_BYTES / (4 * n_points), FEWEST_TIMES, min(MOST_SNAPSHOTS, training.size)))
    some = training[np.linspace(0, training.size - 1, n_snapshots).round().astype(int)]
    roots_H1 = {name: np.sqrt(weights_H[name]).astype(np.float32)[:, None] for name in records}
    snapshots, scales = {}, {}
    inner = np.zeros((n_snapshots, n_snapshots))
    for name, record in _progress(records.items(), "EOFs"):
        scaled, scales[name] = _standardised(record, some, roots_H1[name])
        snapshots[name] = scaled.reshape(n_snapshots, -1)
        inner += snapshots[name] @ snapshots[name].T
    variances, vectors = np.linalg.eigh(inner)
    variances, vectors = variances[::-1].clip(min=0), vectors[:, ::-1]
    if not variances[0] > 0:
        raise TooLittleError("the linear inverse model: the anomalies of the training times are zero throughout")
    held = np.cumsum(variances) / variances.sum()
    most = min(
        MOST_EOFS,
        training.size // TIMES_PER_EOF,
        max(int(EOF_BYTES / (4 * n_points)), 1),
        int((variances > 1e-9 * variances[0]).sum()),
    )
    n_eofs = min(int(np.searchsorted(held, EXPLAINED[-1])) + 1, most)
    combine = (vectors[:, :n_eofs] / np.sqrt(variances[:n_eofs])).astype(np.float32)
    patterns, projectors = {}, {}
    for name in records:
        eofs = (combine.T @ snapshots.pop(name)).reshape(n_eofs, *records[name].shape)
        patterns[name] = eofs * scales[name] / roots_H1[name]
        projectors[name] = eofs / scales[name] * roots_H1[name]
    return patterns, projectors, held[:n_eofs]


def _standardised(record: Record, times: np.ndarray, roots_H1: np.ndarray) -> tuple[np.ndarray, np.float32]:
    """Anomalies [N, H, W] over their standard deviation, times the root of the area, 0 where missing; the deviation."""
    anomalies = np.concatenate([block.astype(np.float32) for block in in_blocks(record, times)])
    observed = np.isfinite(anomalies)
    observed &= observed.mean(axis=0) >= LEAST_OBSERVED
    anomalies[~observed] = 0.0
    anomalies *= roots_H1
    scale = np.sqrt((anomalies.astype(float) ** 2).sum() / max(observed.sum(), 1)).astype(np.float32)
    return anomalies / (scale if scale > 0 else np.float32(1)), scale if scale > 0 else np.float32(1)


def _coefficients(
    records: Mapping[str, Record], projectors_KHW: Mapping[str, np.ndarray], times: np.ndarray
) -> np.ndarray:
    """Coefficients [N, K] at these times, NaN where a channel has no value at all."""
    total: float | np.ndarray = 0.0
    for name, record in _progress(records.items(), "coefficients"):
        inverse_KP = projectors_KHW[name].reshape(len(projectors_KHW[name]), -1).astype(float)
        parts = []
        for block in in_blocks(record, times):
            flat = block.reshape(len(block), -1)
            part = np.nan_to_num(flat) @ inverse_KP.T
            part[np.isnan(flat).all(axis=1)] = np.nan
            parts.append(part)
        total = total + np.concatenate(parts)
    return np.asarray(total)


@dataclass(frozen=True)
class _Sums:
    """All that the regressions need of the training pairs, by fold.

    squares_FDD: of predictors with predictors; products_LFDK: of predictors with what they predict, scaled to the same
    number of init times, as the last ones of a fold have nothing to predict; totals_L: of the predicted with itself.
    """

    squares_FDD: np.ndarray
    products_LFDK: np.ndarray
    totals_L: np.ndarray


def _sums(
    states_NK: np.ndarray,
    training: np.ndarray,
    lead_times: Sequence[np.timedelta64],
    step: np.timedelta64,
    n_past: int,
) -> _Sums:
    """Sums over the training pairs, in contiguous folds; pairs that reach from one fold into another are left out."""
    past = [_at(states_NK, training, training - lag * step) for lag in range(n_past)]
    predictors = np.concatenate(past, axis=1)
    complete = np.isfinite(predictors).all(axis=1)
    folds = np.arange(training.size) * FOLDS // training.size
    squares, products, totals = [], [], []
    for fold in range(FOLDS):
        x = predictors[complete & (folds == fold)]
        squares.append(x.T @ x)
    for lead in lead_times:
        y = _at(states_NK, training, training + lead)
        same = _at(folds[:, None].astype(float), training, training + lead)[:, 0] == folds
        paired = complete & same & np.isfinite(y).all(axis=1)
        by_fold, total = [], 0.0
        for fold in range(FOLDS):
            here = paired & (folds == fold)
            share = here.sum() / max((complete & (folds == fold)).sum(), 1)
            by_fold.append(predictors[here].T @ y[here] / (share or 1.0))
            total += np.vdot(y[here], y[here]) / (share or 1.0)
        products.append(np.stack(by_fold))
        totals.append(total)
    return _Sums(np.stack(squares), np.stack(products), np.array(totals))


def _at(values: np.ndarray, times: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Rows of `values` at the wanted times, NaN where there are none."""
    places = np.searchsorted(times, wanted).clip(max=times.size - 1)
    return np.where((times[places] == wanted)[:, None], values[places], np.nan)


def _regressions(
    sums: _Sums, choices: Sequence[tuple[int, int]]
) -> Iterator[tuple[np.ndarray, float, tuple[int, int]]]:
    """Of each lead time: the operator [D, K] that explains most of the variance left out, by how much the mean square
    of errors left out is above that of the fit, and its EOFs and past times.

    Args:
        choices: of numbers of EOFs and of past times.
    """
    n_eofs = sums.products_LFDK.shape[-1]
    gains = np.stack([_gains(sums, _predictors(choice, n_eofs)) for choice in choices])  # [choice, L, ridge]
    for lead, products_FDK in enumerate(sums.products_LFDK):
        best, ridge = (int(at) for at in np.unravel_index(np.argmax(gains[:, lead]), gains[:, lead].shape))
        chosen = _predictors(choices[best], n_eofs)
        operator = np.zeros(products_FDK.shape[1:])
        squares = sums.squares_FDD.sum(axis=0)[np.ix_(chosen, chosen)]
        ridged = squares + RIDGES[ridge] * np.trace(squares) / chosen.size * np.eye(chosen.size)
        products = products_FDK.sum(axis=0)[chosen]
        operator[chosen] = fitted = np.linalg.solve(ridged, products)
        explained = 2 * np.vdot(fitted, products) - np.vdot(fitted, squares @ fitted)
        left_out, left_in = (sums.totals_L[lead] - gain for gain in (gains[best, lead, ridge], explained))
        yield operator, max(left_out / left_in, 1.0) if left_in > 0 else 1.0, choices[best]


def _predictors(choice: tuple[int, int], n_eofs: int) -> np.ndarray:
    """Places of the leading EOFs of the latest times among all predictors."""
    count, n_past = choice
    return (np.arange(n_past)[:, None] * n_eofs + np.arange(count)).ravel()


def _gains(sums: _Sums, chosen: np.ndarray) -> np.ndarray:
    """Variance explained in folds that were left out [L, ridge], in the eigenbasis of the predictors.

    With y the predicted and x b its forecast, the error is y'y - 2 b'x'y + b'x'x b: sums alone tell it, and in the
    eigenbasis of x'x every ridge is a division.
    """
    squares = sums.squares_FDD[:, chosen][:, :, chosen]
    gains = np.zeros((len(sums.products_LFDK), RIDGES.size))
    for fold in range(FOLDS):
        values, basis = np.linalg.eigh(squares.sum(axis=0) - squares[fold])
        factors = 1.0 / (values.clip(min=0) + RIDGES[:, None] * max(values.mean(), 1e-30))  # [ridge, D]
        left_out = basis.T @ squares[fold] @ basis
        for lead, products in enumerate(sums.products_LFDK[:, :, chosen]):
            fitted = basis.T @ (products.sum(axis=0) - products[fold])
            matched = ((basis.T @ products[fold]) * fitted).sum(axis=1)
            spread = left_out * (fitted @ fitted.T)
            gains[lead] += 2 * factors @ matched - np.einsum("ri,ij,rj->r", factors, spread, factors, optimize=True)
    return gains
