"""Forecasts from checkpoints and data, for any init times, in pieces of bounded size.

Shapes: N init times, B batch, R members, L lead times, C channels, D target channels, H lat, W lon.
"""

import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from itertools import product

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from tqdm import tqdm

from convlstm_wx.checkpoint import Checkpoint
from convlstm_wx.config import PERTURBATION
from convlstm_wx.data.inputs import Sources, open_sources
from convlstm_wx.data.loaders import TensorBatch, in_batches, load_batches
from convlstm_wx.data.reading import source_of
from convlstm_wx.data.spec import DataSpec
from convlstm_wx.device import DevicePolicy
from convlstm_wx.dressing import BYTES, DRESSED, FEWEST, Residuals, dressing, of_their_mean
from convlstm_wx.errors import CheckpointError, ConfigError, DataError
from convlstm_wx.forecast.at_once import AtOnce
from convlstm_wx.forecast.choosing import check_init_times, iso
from convlstm_wx.forecast.labelling import to_dataset, to_physical
from convlstm_wx.forecast.perturbing import perturbation
from convlstm_wx.models.network import Network

log = logging.getLogger(__name__)

STRETCH_BYTES = 64 * 2**20  # of inputs read at once
PIECE_BYTES = 256 * 2**20  # of forecasts kept at once, unless those of one init time are more


@dataclass(frozen=True)
class Ensemble:
    """How the members of an ensemble differ.

    Dressed members are the networks' mean with errors that it made on validation (see :mod:`convlstm_wx.dressing`).
    Else member m comes from checkpoint m modulo their number; the first round starts from the state as it was observed,
    the others from perturbed ones.

    Attributes:
        members: R.
        is_dressed: whether they are.
        perturbation: standard deviation of the noise, in units of a channel's typical change in one time step.
        seed: of errors or noise.
    """

    members: int
    is_dressed: bool = False
    perturbation: float = PERTURBATION
    seed: int = 0


@dataclass(frozen=True)
class Trained:
    """A checkpoint, and the data of its upstream regions that are read from files of their own."""

    checkpoint: Checkpoint
    upstream: Sequence[xr.Dataset] = ()


@dataclass(frozen=True)
class Forecast:
    """What is to be forecast, from what, and how.

    Attributes:
        trained: the network, or several of the same targets for an ensemble.
        dataset: canonical, fitting all of them (see :meth:`DataSpec.check`).
        init_times: the last input time of each forecast, N of them, increasing.
        lead_steps: L, in steps of the data.
        policy: device and precision.
        ensemble: None for one forecast of the one network.
        batch_size: forecasts at once.
        skip_incomplete: leave out init times whose inputs have missing values, instead of refusing.
        upstream_from: for each init time another one, whose upstream inputs are read in place of its own; None: its
            own. This is how the worth of upstream regions is tested.

    Raises:
        ConfigError: for members that would all be the same.
        CheckpointError: for checkpoints that forecast different things.
        DataError: for an init time whose input times are not in the data.
    """

    trained: Sequence[Trained]
    dataset: xr.Dataset
    init_times: np.ndarray
    lead_steps: int
    policy: DevicePolicy
    ensemble: Ensemble | None = None
    batch_size: int = 16
    skip_incomplete: bool = False
    upstream_from: np.ndarray | None = None
    pieces: list[np.ndarray] = field(init=False)
    """Numbers of the init times of each piece."""

    def __post_init__(self) -> None:
        check_members([each.checkpoint for each in self.trained], self.ensemble)
        for each in self.trained:
            check_init_times(each.checkpoint.spec, self.dataset, self.init_times)
            check_init_times(each.checkpoint.spec, self.dataset, self._upstream_of(self.init_times))
        if self.policy.most_images:
            longest = max(each.checkpoint.spec.input_steps for each in self.trained)
            object.__setattr__(self, "batch_size", min(self.batch_size, self.policy.most_images // longest))
        size = max(1, min(self.batch_size, PIECE_BYTES // self.bytes_of_one))
        object.__setattr__(self, "pieces", in_batches(np.arange(len(self.init_times)), size))

    @property
    def bytes_of_one(self) -> int:
        """Size of all fields, of every member, from one init time."""
        grid, members = self.spec.target.grid, self.ensemble.members if self.ensemble else 1
        return 4 * members * self.lead_steps * len(self.spec.targets) * len(grid.lat) * len(grid.lon)

    @property
    def spec(self) -> DataSpec:
        """Of the (first) checkpoint: targets, grid and units are the same in all."""
        return self.trained[0].checkpoint.spec

    def make(self, done: Collection[int] = ()) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """All pieces that are not done, one after the other, with a progress bar over the init times.

        Yields:
            The piece's number, its init times [B], and values in the data's units, float32 [B, L, D, H, W], or
            [B, R, L, D, H, W] of an ensemble.

        Raises:
            DataError: where the inputs of an init time have missing values, before the first piece is made.
        """
        stretches = self._stretches(done)
        opened = lru_cache(maxsize=1)(lambda index: self._open(stretches[index]))
        if not self.skip_incomplete:
            for index in range(len(stretches)):
                self._refuse_incomplete(stretches[index], opened(index))
        at_once = AtOnce(self.policy, self.batch_size)
        networks = [each.checkpoint.network() for each in self.trained]
        for network in networks:
            self.policy.place(network)
        here = sum(len(self.pieces[number]) for number in done)
        several = None if len(self.pieces) > 1 else True
        with tqdm(
            total=len(self.init_times), initial=here, desc="forecasting", unit="init", leave=False, disable=several
        ) as bar:
            for index, stretch in enumerate(stretches):
                sources = opened(index)
                for number in stretch:
                    kept = self._complete(sources, self.init_times[self.pieces[number]])
                    yield number, kept, self._piece(networks, sources, kept, at_once)
                    bar.update(len(self.pieces[number]))

    def collect(self) -> xr.Dataset:
        """All of it in memory, see :func:`~convlstm_wx.forecast.labelling.to_dataset`.

        Raises:
            DataError: where the inputs of an init time (or with skip_incomplete of all) have missing values.
        """
        made = list(self.make())
        init_times = np.concatenate([times for _, times, _ in made])
        self.check_some(init_times)
        return self.labelled(init_times, np.concatenate([values for _, _, values in made]))

    def labelled(self, init_times: np.ndarray, values: np.ndarray) -> xr.Dataset:
        """What was made as a dataset, which says how its members differ."""
        return to_dataset(self.spec, init_times, values).assign_attrs(
            DRESSED if self.ensemble and self.ensemble.is_dressed else {}
        )

    def check_some(self, kept: np.ndarray) -> None:
        """Say how many init times were left out.

        Raises:
            DataError: if none is left.
        """
        lost = len(self.init_times) - len(kept)
        if not len(kept):
            raise DataError(
                f"{source_of(self.dataset)}: the inputs of all {lost} init times have missing values that training had "
                f"not; choose others"
            )
        if lost:
            log.warning("%d of %d init times left out: their inputs have missing values", lost, len(self.init_times))

    # Reading

    def _needed(self, numbers: np.ndarray, input_steps: int) -> np.ndarray:
        """Where in the data's times the windows of some init times lie, increasing."""
        starts = self.init_times[numbers]
        at = np.searchsorted(self.dataset["time"].values, np.union1d(starts, self._upstream_of(starts)))
        return np.unique(at[:, None] + np.arange(1 - input_steps, 1))

    def _upstream_of(self, init_times: np.ndarray) -> np.ndarray:
        """The init times whose upstream inputs these read."""
        if self.upstream_from is None:
            return init_times
        return self.upstream_from[np.searchsorted(self.init_times, init_times)]

    def _stretches(self, done: Collection[int]) -> list[list[int]]:
        """The pieces still to be made, in groups whose inputs are read at once."""
        specs = [each.checkpoint.spec for each in self.trained]
        row_bytes = sum(
            4 * len(region.statistics.channels) * len(region.grid.lat) * len(region.grid.lon)
            for spec in specs
            for region in (spec.target, *spec.upstream)
        )
        longest = max(spec.input_steps for spec in specs)
        groups: list[list[int]] = []
        size = 0
        for number in range(len(self.pieces)):
            if number in done:
                continue
            more = row_bytes * len(self._needed(self.pieces[number], longest))
            if not groups or size + more > STRETCH_BYTES:
                groups.append([])
                size = 0
            groups[-1].append(number)
            size += more
        return groups

    def _open(self, stretch: Sequence[int]) -> list[Sources]:
        """The inputs of some pieces, normalised for each network."""
        numbers = np.concatenate([self.pieces[number] for number in stretch])
        opened = []
        for each in self.trained:
            spec = each.checkpoint.spec
            at = self._needed(numbers, spec.input_steps)
            # A slice is read faster; init times far apart need little of what lies between.
            chosen = slice(int(at[0]), int(at[-1]) + 1) if at[-1] - at[0] == len(at) - 1 else at
            opened.append(open_sources(spec, self.dataset.isel(time=chosen), each.upstream))
        return opened

    def _incomplete(self, sources: Sequence[Sources], init_times: np.ndarray) -> np.ndarray:
        """[B, T]: which input times have missing values, in any network's inputs; the last T of each."""
        longest = max(each.checkpoint.spec.input_steps for each in self.trained)
        missing = np.zeros((len(init_times), longest), bool)
        for each, source in zip(self.trained, sources):
            steps = each.checkpoint.spec.input_steps
            for starts in (init_times, self._upstream_of(init_times)):
                past = np.searchsorted(source.times, starts)[:, None] + np.arange(1 - steps, 1)
                missing[:, longest - steps :] |= ~source.complete_N[past]
        return missing

    def _complete(self, sources: Sequence[Sources], init_times: np.ndarray) -> np.ndarray:
        return init_times[~self._incomplete(sources, init_times).any(axis=1)]

    def _refuse_incomplete(self, stretch: Sequence[int], sources: Sequence[Sources]) -> None:
        init_times = self.init_times[np.concatenate([self.pieces[number] for number in stretch])]
        missing = self._incomplete(sources, init_times)
        wrong = np.flatnonzero(missing.any(axis=1))
        if not wrong.size:
            return
        steps_back = missing.shape[1] - 1 - np.flatnonzero(missing[wrong[0]])
        times = [iso(init_times[wrong[0]] - steps * self.spec.step) for steps in steps_back]
        raise DataError(
            f"{source_of(self.dataset)}: inputs of init time {iso(init_times[wrong[0]])} have missing values that "
            f"training had not, at {', '.join(times)}; choose another --init-time"
        )

    # Computing

    def _piece(
        self, networks: Sequence[Network], sources: Sequence[Sources], init_times: np.ndarray, at_once: AtOnce
    ) -> np.ndarray:
        if self.ensemble is not None and self.ensemble.is_dressed:
            return self._dressed(self.ensemble, networks, sources, init_times, at_once)
        grid, members = self.spec.target.grid, self.ensemble.members if self.ensemble else 1
        shape = (len(init_times), members, self.lead_steps, len(self.spec.targets), len(grid.lat), len(grid.lon))
        values_BRLDHW = np.empty(shape, np.float32)
        for made, at, member, fields_LDHW in self._rolled_out(networks, sources, init_times, at_once, members):
            values_BRLDHW[at, member] = to_physical(made.spec, init_times[at], fields_LDHW, made.rain)
        return values_BRLDHW if self.ensemble else values_BRLDHW[:, 0]

    def _dressed(
        self,
        ensemble: Ensemble,
        networks: Sequence[Network],
        sources: Sequence[Sources],
        init_times: np.ndarray,
        at_once: AtOnce,
    ) -> np.ndarray:
        """Each network is rolled out once; their mean is what all members are made of."""
        grid = self.spec.target.grid
        shape = (len(init_times), self.lead_steps, len(self.spec.targets), len(grid.lat), len(grid.lon))
        mean_BLDHW = np.zeros(shape, np.float32)
        values_BRLDHW = np.empty((shape[0], ensemble.members, *shape[1:]), np.float32)
        for _, at, _, fields_LDHW in self._rolled_out(networks, sources, init_times, at_once, len(networks)):
            mean_BLDHW[at] += fields_LDHW / len(networks)
        for at, init_time in enumerate(init_times):
            errors_RLDHW = dressing(
                self.residuals, init_time, members=ensemble.members, lead_steps=self.lead_steps, seed=ensemble.seed
            )
            for member, error_LDHW in enumerate(errors_RLDHW):
                values_BRLDHW[at, member] = to_physical(self.spec, init_time, mean_BLDHW[at] + error_LDHW)
        return values_BRLDHW

    def _rolled_out(
        self,
        networks: Sequence[Network],
        sources: Sequence[Sources],
        init_times: np.ndarray,
        at_once: AtOnce,
        members: int,
    ) -> Iterator[tuple[Checkpoint, int, int, np.ndarray]]:
        """Of so many members, taken from the networks in turn: whose they are, the init time's number, the member's,
        and normalised fields [L, D, H, W].
        """
        for place, (each, network, source) in enumerate(zip(self.trained, networks, sources)):
            mine = range(place, members, len(networks))
            rows = list(product(range(len(init_times)), mine))
            most = len(self.pieces[0]) * len(mine)  # those of a whole piece
            roll_out = partial(self._roll_out, network, each.checkpoint.spec, source, init_times)
            for some, fields in at_once.parts(rows, roll_out, most=most):
                for (at, member), fields_LDHW in zip(some, fields):
                    yield each.checkpoint, at, member, fields_LDHW

    @cached_property
    def residuals(self) -> Residuals:
        """What dressed members are made from."""
        return of_their_mean([each.checkpoint.residuals for each in self.trained if each.checkpoint.residuals])

    def _batch(self, spec: DataSpec, sources: Sources, init_times: np.ndarray) -> TensorBatch:
        at = np.searchsorted(sources.times, init_times)
        upstream_at = np.searchsorted(sources.times, self._upstream_of(init_times))
        windows = sources.windows_at(spec, at, lead_steps=self.lead_steps, with_targets=False, upstream_at=upstream_at)
        return next(load_batches(windows, [np.arange(len(at))], self.policy.device))

    def _apart(
        self, spec: DataSpec, sources: Sources, init_times: np.ndarray, rows: Sequence[tuple[int, int]]
    ) -> int | None:
        """How many input times later the window of each row starts, if they slide: see :meth:`Network.rollout`.

        Not for perturbed members, whose inputs are their own, nor with upstream inputs of other init times, nor where
        shapes are to be constant: a batch that is filled up does not slide.
        """
        perturbed = any(member >= len(self.trained) for _, member in rows)
        if perturbed or self.upstream_from is not None or self.policy.constant_shapes:
            return None
        steps = np.unique(np.diff(np.searchsorted(sources.times, init_times[[at for at, _ in rows]])))
        return int(steps[0]) if len(steps) == 1 and 0 < steps[0] < spec.input_steps else None

    @torch.inference_mode()
    def _roll_out(
        self,
        network: Network,
        spec: DataSpec,
        sources: Sources,
        init_times: np.ndarray,
        rows: Sequence[tuple[int, int]],
        size: int,
    ) -> list[np.ndarray]:
        """Normalised fields [L, D, H, W] of each row, an init time's number with a member's; `size` at once."""
        padded = [*rows, *[rows[-1]] * (size - len(rows))]
        needed, chosen = np.unique([at for at, _ in padded], return_inverse=True)
        batch = self._batch(spec, sources, init_times[needed])
        if len(needed) < len(padded):
            batch = _rows(batch, chosen)
        batch = batch._replace(x_BTCHW=self._perturbed(spec, batch.x_BTCHW, init_times, padded))
        with self.policy.autocast():
            rollout = network.rollout(
                batch.x_BTCHW, batch.forcing_BSFHW, batch.upstream, self._apart(spec, sources, init_times, padded)
            )
            leads = [y.float().cpu() for y in rollout]
        return list(torch.stack(leads, dim=1).numpy()[: len(rows)])

    def _perturbed(
        self, spec: DataSpec, x_BTCHW: Tensor, init_times: np.ndarray, rows: Sequence[tuple[int, int]]
    ) -> Tensor:
        """The same noise at all input times of a row: the state changes, its tendency does not."""
        if self.ensemble is None or all(member < len(self.trained) for _, member in rows):
            return x_BTCHW
        x_BTCHW = x_BTCHW.clone()
        statistics, ensemble = spec.target.statistics, self.ensemble
        gaps, channels = np.flatnonzero(statistics.gaps_C), len(statistics.channels)
        for row, (at, member) in enumerate(rows):
            if member < len(self.trained):
                continue
            noise = perturbation(
                statistics,
                spec.target.grid,
                ensemble.perturbation,
                seed=ensemble.seed,
                member=member,
                init_time=init_times[at],
            )
            noise_TCHW = torch.from_numpy(noise).to(x_BTCHW.device).repeat(x_BTCHW.shape[1], 1, 1, 1)
            noise_TCHW[:, gaps] *= x_BTCHW[row, :, channels:]  # where nothing was observed nothing is put
            x_BTCHW[row, :, :channels] += noise_TCHW
        return x_BTCHW


def check_members(checkpoints: Sequence[Checkpoint], ensemble: Ensemble | None) -> None:
    """Refuse an ensemble that is none.

    Raises:
        ConfigError: for fewer members than checkpoints, or members that would all be the same.
        CheckpointError: for checkpoints that forecast different things, or members to be dressed with errors that a
            checkpoint does not hold.
    """
    members = ensemble.members if ensemble else 1
    if members < len(checkpoints):
        raise ConfigError(f"--members {members}: fewer than the {len(checkpoints)} checkpoints; give at least as many")
    if ensemble and ensemble.is_dressed:
        lacking = lacks_to_dress(checkpoints)
        if lacking:
            raise CheckpointError(f"--spread errors: {lacking}; take --spread states or none")
    elif ensemble and members > len(checkpoints) and not ensemble.perturbation > 0:
        raise ConfigError(
            f"--members {members} of {len(checkpoints)} checkpoint{'s' if len(checkpoints) > 1 else ''} without errors "
            f"or perturbation are the same forecast several times; leave --spread out, or give --spread states and a "
            f"--perturbation above 0, such as {PERTURBATION:g}"
        )
    first = checkpoints[0].spec
    for other in (checkpoint.spec for checkpoint in checkpoints[1:]):
        found = first.target.grid.differences(other.target.grid)
        for what, mine, its in (
            ("targets", first.targets, other.targets),
            ("time step", first.step_s, other.step_s),
            ("units", _target_units(first), _target_units(other)),
            ("order of latitudes", first.lat_descending, other.lat_descending),
        ):
            if mine != its:
                found.append(f"another {what}")
        if found:
            raise CheckpointError(f"the checkpoints do not make one ensemble: {'; '.join(found)}")


def lacks_to_dress(checkpoints: Sequence[Checkpoint]) -> str:
    """Why their forecasts cannot be dressed; "" if they can."""
    first, *others = checkpoints
    bare = sum(each.residuals is None for each in checkpoints)
    if bare:
        return (
            f"{bare} of {len(checkpoints)} checkpoints hold no errors of validation (best.pt does, if {FEWEST} windows "
            f"of it are no more than {BYTES / 2**20:.0f} MB)"
        )
    for other in others:
        found = first.spec.changes(other.spec)
        if found:
            return f"the errors of networks that learned from different data cannot be averaged ({found[0]})"
        ours, theirs = ({*each.residuals.init_times.tolist()} for each in (first, other) if each.residuals)
        if ours != theirs:
            return "the checkpoints hold errors of different windows, which cannot be averaged"
    return ""


def _target_units(spec: DataSpec) -> list[str]:
    return [spec.target.attributes[channel.variable]["units"] for channel in spec.targets]


def _rows(batch: TensorBatch, chosen: np.ndarray) -> TensorBatch:
    at = torch.from_numpy(chosen).to(batch.x_BTCHW.device)
    return batch._replace(
        x_BTCHW=batch.x_BTCHW[at],
        clock_BSG=batch.clock_BSG[at],
        upstream_fields=[fields[at] for fields in batch.upstream_fields],
    )
