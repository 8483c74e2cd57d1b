"""What the rivals learn in the training months, once for all channels, and the rivals of each channel."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import xarray as xr

from convlstm_wx.conventions import Channel, recognise
from convlstm_wx.data.reading import time_step
from convlstm_wx.errors import DataError
from convlstm_wx.linear import inverse_model
from convlstm_wx.linear.inverse_model import InverseForecast
from convlstm_wx.verification import baselines
from convlstm_wx.verification.baselines import Baseline
from convlstm_wx.verification.climatology import fit_climatology, minutes_of_day
from convlstm_wx.verification.pairs import fields_of
from convlstm_wx.verification.record import Record

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rivals:
    """The rivals of all channels.

    Attributes:
        names: in the order of baselines.NAMES.
        records: of each channel what was observed, and its climatology.
        training: times that they learnt from.
        lead_times: of the forecast.
        inverse: forecast of the linear inverse model, if it is one of them.
    """

    names: Sequence[str]
    records: Mapping[str, Record]
    training: np.ndarray
    lead_times: np.ndarray
    inverse: InverseForecast | None

    def of(self, channel: str) -> dict[str, Baseline]:
        """The rivals of one channel, by name."""
        record = self.records[channel]
        return baselines.make(
            self.names,
            channel,
            record,
            self.training,
            self.lead_times,
            self.inverse,
            never_negative=_never_negative(record.fields),
        )

    def spread(self, channel: str) -> dict[np.timedelta64, np.ndarray] | None:
        """How uncertain the linear inverse model is [H, W], by lead time; None where it is no rival."""
        return self._spreads.get(channel)

    @cached_property
    def _spreads(self) -> dict[str, dict[np.timedelta64, np.ndarray]]:
        """Of all channels at once, as each forecast is made from all."""
        return inverse_model.spreads(self.inverse.model, self.records, self.training) if self.inverse else {}

    def descriptions(self) -> dict[str, str]:
        """How each was made, in one sentence."""
        usual = {channel: record.usual.description for channel, record in self.records.items()}
        shared = set(usual.values())
        told = {name: baselines.DESCRIPTIONS[name] for name in self.names if name in baselines.DESCRIPTIONS}
        told["climatology"] = (
            shared.pop() if len(shared) == 1 else "; ".join(f"{name}: {text}" for name, text in usual.items())
        )
        if self.inverse is not None:
            told["linear_inverse_model"] = self.inverse.model.description
        return told


def learn(
    forecast: xr.Dataset,
    truth: xr.Dataset,
    channels: Sequence[Channel],
    training_times: np.ndarray,
    asked: Sequence[str] | None,
    weights_H: np.ndarray,
) -> Rivals:
    """Fit the climatology of every channel, and the linear inverse model.

    Args:
        truth: on the grid of the forecast.
        asked: names of the rivals; None for all that apply: the linear inverse model is then left out, with a
            warning, where training is too short for it.

    Raises:
        DataError: where training holds too little for one that was asked for.
    """
    init_times, lead_times = np.sort(forecast["init_time"].values), forecast["lead_time"].values
    names = baselines.choose(asked, lead_times)
    step = time_step(truth["time"].values)
    training, wanted = _times(truth["time"].values, training_times, init_times, lead_times, step)
    records = {}
    for channel in channels:
        observed = fields_of(truth, channel)
        usual = fit_climatology(observed, training_times, wanted, never_negative=_never_negative(observed))
        records[channel.name] = Record(observed, usual)
    inverse = None
    if "linear_inverse_model" in names:
        try:
            log.info("baselines  fitting the linear inverse model to %d training times", training.size)
            model = inverse_model.fit(records, training, list(lead_times), dict.fromkeys(records, weights_H), step)
            inverse = model.forecast(records, init_times)
        except DataError as error:
            if asked is not None:
                raise DataError(f"{error}; choose other --baselines") from error
            log.warning("%s; left out", error)
            names.remove("linear_inverse_model")
    return Rivals(names, records, training, lead_times, inverse)


def _times(
    held: np.ndarray,
    training_times: np.ndarray,
    init_times: np.ndarray,
    lead_times: np.ndarray,
    step: np.timedelta64,
) -> tuple[np.ndarray, np.ndarray]:
    """The training times to learn from, and all times whose climatology is needed.

    They are the same whichever rivals are asked for, as the thresholds of events follow from both. Of times of day
    that nobody asks for nothing is read.
    """
    valid_times = np.unique(np.add.outer(init_times, lead_times))
    training = np.intersect1d(training_times, held)
    past = [init_times - lag * step for lag in range(max(inverse_model.PAST_TIMES))]
    at_init = np.intersect1d(np.concatenate(past), held)
    asked_for = np.union1d(minutes_of_day(valid_times), minutes_of_day(at_init))
    training = training[np.isin(minutes_of_day(training), asked_for)]
    return training, np.unique(np.concatenate([valid_times, at_init, training]))


def _never_negative(observed: xr.DataArray) -> bool:
    known = recognise(str(observed.name), observed.attrs)
    return known is not None and known.non_negative
