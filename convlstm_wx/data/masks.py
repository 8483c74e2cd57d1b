"""Masks in files: which variables only say whether the values of another one were observed, and with which values.

A mask of X is called like it (X_mask, valid_X, X_qc ...), or X names it in its CF attribute `ancillary_variables`. What
its values mean is taken from --mask-values, from a checkpoint, from its attributes, or else from the data themselves
(see :mod:`~convlstm_wx.data.polarity`).
"""

import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import xarray as xr

from convlstm_wx.data import polarity
from convlstm_wx.data.flags import SUFFIX, Mark, with_flags
from convlstm_wx.data.meanings import FLAG_MASKS, FLAG_VALUES, hint_of, meaning_of
from convlstm_wx.data.polarity import Look, holds_marks
from convlstm_wx.errors import CheckpointError, ConfigError, DataError

log = logging.getLogger(__name__)

_WORDS = ("quality_flag", "quality", "validity", "valid", "mask", "flag", "qc", SUFFIX.removeprefix("_"))
_SUFFIXED = re.compile(rf"(?P<owner>.+?)_(?P<word>{'|'.join(_WORDS)})", re.IGNORECASE)
_PREFIXED = re.compile(rf"(?P<word>{'|'.join(_WORDS)})_(?P<owner>.+)", re.IGNORECASE)
_STATUS = re.compile(r"(.* )?(status|quality)_flag")
_MOST_NAMED = 2


@dataclass(frozen=True)
class Masking:
    """How the masks of a dataset are to be read.

    Attributes:
        ignored: names of variables and masks to leave out; * stands for any text.
        values: values that mean observed, by mask; those under "" are of all others.
        wanted: the variables whose masks matter; empty: all.
        fields: what is known to be a variable, whatever it is called.
        marks: what is known of masks.
    """

    ignored: tuple[str, ...] = ()
    values: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    wanted: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    marks: tuple[Mark, ...] = ()

    def ignores(self, name: str) -> bool:
        """Whether a variable is to be left out."""
        return any(fnmatchcase(name, pattern) for pattern in self.ignored)


def same_masking(maskings: Sequence[Masking]) -> Masking:
    """One way to read a dataset for some checkpoints: a mask that one of them knows is a mask for all.

    Raises:
        CheckpointError: if they read the same mask differently.
    """
    fields = tuple(dict.fromkeys(name for each in maskings for name in each.fields))
    known: dict[tuple[str, str], Mark] = {}
    for mark in (mark for each in maskings for mark in each.marks):
        other = known.setdefault((mark.mask, mark.variable), mark)
        if other != mark or mark.mask in fields:
            is_else = "a variable" if mark.mask in fields else str(other)
            raise CheckpointError(
                f"the checkpoints read '{mark.mask}' differently: observed is {mark} for one, for another it is "
                f"{is_else}; use them one by one"
            )
    ignored = maskings[0].ignored if maskings else ()
    return Masking(
        ignored=tuple(name for name in ignored if all(name in each.ignored for each in maskings)),
        wanted=tuple(dict.fromkeys(name for each in maskings for name in each.wanted)),
        fields=fields,
        marks=tuple(known.values()),
    )


def check_names(masking: Masking, datasets: Sequence[xr.Dataset]) -> None:
    """Refuse names in --ignore-variables and --mask-values that none of the datasets has.

    Raises:
        ConfigError: naming them, and what there is.
    """
    source = ", ".join(dict.fromkeys(str(dataset.attrs.get("source", "the data")) for dataset in datasets))
    left_out = dict.fromkeys(name for dataset in datasets for name in dataset.attrs.get("ignored", ()))
    masks = dict.fromkeys(mark.mask for dataset in datasets for mark in dataset.attrs.get("masks", ()))
    unknown = [pattern for pattern in masking.ignored if not any(fnmatchcase(name, pattern) for name in left_out)]
    if unknown:
        names = dict.fromkeys(str(name) for dataset in datasets for name in dataset.data_vars)
        raise ConfigError(
            f"--ignore-variables {' '.join(unknown)}: no such variable in {source}; there are "
            f"{', '.join(names | masks | left_out)}"
        )
    unknown = [name for name in masking.values if name and name not in masks]
    if unknown or (masking.values and not masks):
        raise ConfigError(
            f"--mask-values{''.join(f' {name}=...' for name in unknown)}: no such mask of a variable in use in "
            f"{source}; there are {', '.join(masks) or 'none'}"
        )


# Recognising


@dataclass(frozen=True)
class Claim:
    """What makes a variable of a file look like a mask.

    Attributes:
        attrs: of the variable in the file: texts and flag values.
        of: the variables of the file that name it in `ancillary_variables`.
        is_field: whether it could also be a variable on the grid.
    """

    attrs: Mapping[str, Any]
    of: tuple[str, ...] = ()
    is_field: bool = True

    @property
    def is_flag(self) -> bool:
        """Whether CF attributes say that it is a flag of the variables that name it."""
        standard_name = str(self.attrs.get("standard_name", ""))
        has_values = (FLAG_VALUES in self.attrs or FLAG_MASKS in self.attrs) and "flag_meanings" in self.attrs
        return bool(self.of) and (has_values or bool(_STATUS.fullmatch(standard_name)))


def claims_of(dataset: xr.Dataset) -> dict[str, Claim]:
    """The variables of a file that may be masks, of variables in this file or in another."""
    named: dict[str, list[str]] = {}
    for name, variable in dataset.variables.items():
        for other in str(variable.attrs.get("ancillary_variables", "")).split():
            named.setdefault(other, []).append(str(name))
    claims = {
        str(name): Claim(variable.attrs, tuple(named.get(str(name), ())))
        for name, variable in dataset.variables.items()
        if variable.dtype.kind in "fiub" and name not in dataset.indexes
    }
    return {name: claim for name, claim in claims.items() if claim.is_flag or _owners(name)}


def owners_of(name: str, claim: Claim, there: Mapping[str, Any]) -> dict[str, str]:
    """The variables, of those that are there, that a mask belongs to, each with the pattern of its name (*_mask)."""
    folded = {other.casefold(): other for other in there if other != name}
    by_name = {}
    for owner, pattern in _owners(name).items():
        if owner in there or owner.casefold() in folded:
            by_name[owner if owner in there else folded[owner.casefold()]] = pattern
    named = [owner for owner in claim.of if owner in there] if claim.is_flag or by_name else []
    return {owner: by_name.get(owner, name.replace(owner, "*")) for owner in named or list(by_name)[:1]}


def _owners(name: str) -> dict[str, str]:
    """What a mask of this name may be a mask of, each with the pattern of the name."""
    matches = {"*_{}": _SUFFIXED.fullmatch(name), "{}_*": _PREFIXED.fullmatch(name)}
    return {match["owner"]: pattern.format(match["word"].lower()) for pattern, match in matches.items() if match}


@dataclass(frozen=True, eq=False)
class _Mask:
    """A mask in some files, the variables that it marks, and the pattern of its name."""

    name: str
    attrs: Mapping[str, Any]
    variables: tuple[str, ...]
    pattern: str
    look: Look


def _masks_in(parts: Sequence[xr.Dataset], masking: Masking) -> Iterator[_Mask]:
    """The masks of variables that are there, or left out; what is called so but holds other numbers is none."""
    claims: dict[str, Claim] = {}
    for part in parts:
        claims = part.attrs["claims"] | claims
    left_out = [name for part in parts for name in (*part.attrs["ignored"], *part.attrs["refused"])]
    names = [*left_out, *(str(name) for part in parts for name in part.data_vars)]
    there = {name: name for name in names if name not in claims or claims[name].is_field}
    known = {*masking.values, *(mark.mask for mark in masking.marks)}
    for name, claim in claims.items():
        owners = {} if name in masking.fields else owners_of(name, claim, there)
        if not owners:
            continue
        look = Look(parts, name, next((owner for owner in owners if owner not in left_out), ""))
        if name in known or claim.is_flag or look.holds_marks():
            yield _Mask(name, claim.attrs, tuple(owners), next(iter(owners.values())), look)


def is_on_the_grid(mask: xr.DataArray, axes: Mapping[Any, str], owners: Mapping[str, str]) -> bool:
    """Whether what may be a mask has no dimensions but those of variables.

    Args:
        axes: the axis of each dimension of variables.
        owners: what it would be a mask of.

    Raises:
        DataError: if it is a mask on other dimensions.
    """
    extra = [str(dim) for dim, size in mask.sizes.items() if dim not in axes and size > 1]
    if extra and owners and holds_marks(mask.isel({dim: slice(16) for dim in mask.dims}).values):
        raise DataError(
            f"'{mask.name}' marks values of '{next(iter(owners))}', but is on other dimensions ({', '.join(extra)}); "
            f"leave it out with --ignore-variables {mask.name}"
        )
    return not extra and 0 not in mask.shape


# Deciding


def flagged(
    parts: Sequence[xr.Dataset], masking: Masking, source: str
) -> tuple[list[xr.Dataset], dict[str, tuple[Any, ...]]]:
    """Files with flags in the place of masks, and the attributes "masks" and "ignored" that say what became of them.

    Args:
        parts: canonical; attrs["claims"]: of :func:`claims_of`; attrs["ignored"], attrs["refused"]: names of what the
            user leaves out, and of what cannot be used.
        masking: what is known or wanted.
        source: the name of all files, for messages.

    Raises:
        DataError: where nothing says which values of a mask mean observed.
    """
    try:
        masks, marks = _decide(parts, masking, source)
    except DataError as error:
        raise DataError(f"{source}: {error}") from error
    ignored = dict.fromkeys(name for part in parts for name in part.attrs["ignored"])
    of_variables = {mark.mask for mark in marks}
    made = []
    for part in parts:
        claims = part.attrs["claims"]
        idle = [name for name in claims if name not in of_variables and (name in masks or not claims[name].is_field)]
        bare = part.drop_vars(idle)
        for name in ("claims", "ignored", "refused"):
            del bare.attrs[name]
        try:
            made.append(with_flags(bare, marks))
        except DataError as error:
            raise DataError(f"{part.attrs['source']}: {error}") from error
    read = {"masks": tuple(marks), "ignored": tuple(ignored)}
    return made, {name: what for name, what in read.items() if what}


def _decide(parts: Sequence[xr.Dataset], masking: Masking, source: str) -> tuple[list[str], list[Mark]]:
    """Which variables of files are masks, and how those that matter mark others; says so in one line of the log."""
    timed = {str(name) for part in parts for name, values in part.data_vars.items() if "time" in values.dims}
    wanted = timed.intersection(masking.wanted or timed)
    masks = list(_masks_in(parts, masking))
    found: dict[_Mask, tuple[tuple[float, ...], int | None]] = {}
    said: dict[tuple[tuple[float, ...], str], list[str]] = {}
    for pattern in dict.fromkeys(mask.pattern for mask in masks):
        group = [mask for mask in masks if mask.pattern == pattern and wanted.intersection(mask.variables)]
        for mask, (observed, bits, why) in _observed(group, masking).items():
            found[mask] = observed, bits
            if why:
                said.setdefault((observed, why), []).append(mask.name)
    if said:
        log.info("%s: masks: %s; --mask-values to overrule", source, ", ".join(_told(*each) for each in said.items()))
    marks = [
        Mark(mask.name, name, *found[mask])
        for mask in masks
        if mask in found
        for name in mask.variables
        if name in wanted
    ]
    return [mask.name for mask in masks], marks


def _observed(masks: Sequence[_Mask], masking: Masking) -> dict[_Mask, tuple[tuple[float, ...], int | None, str]]:
    """For masks of one kind: the values that mean observed, the bits that count, and why ("": known already)."""
    known = {mark.mask: mark for mark in masking.marks}
    made: dict[_Mask, tuple[tuple[float, ...], int | None, str]] = {}
    for mask in masks:
        told = masking.values.get(mask.name, masking.values.get(""))
        meaning = meaning_of(mask.attrs)
        if told is not None:
            made[mask] = told, None, "--mask-values"
        elif mask.name in known:
            made[mask] = known[mask.name].observed, known[mask.name].bits, ""
        elif meaning is not None and meaning.observed:
            made[mask] = meaning.observed, meaning.bits, "by attributes"
        elif meaning is not None:  # only what is missing is named
            made[mask] = tuple(sorted({0.0, 1.0, *mask.look.counts}.difference(meaning.missing))), None, "by attributes"
    rest = [mask for mask in masks if mask not in made]
    alike = {observed: why for observed, bits, why in made.values() if bits is None and why != "--mask-values"}
    if len(alike) == 1:
        ((observed, why),) = alike.items()
        return made | dict.fromkeys(rest, (observed, None, why))
    if rest:
        hints = {hint_of(rest[0].pattern)} - {None} or {hint_of(mask.attrs) for mask in rest} - {None}
        found = polarity.decide([mask.look for mask in rest], hints.pop() if len(hints) == 1 else None)
        if found is None:
            raise _undecided([mask.look for mask in rest])
        rest.sort(key=lambda mask: -len(mask.look.counts))  # those that say something come first
        made |= dict.fromkeys(rest, (found[0], None, found[1]))
    return made


def _told(what: tuple[tuple[float, ...], str], masks: Sequence[str]) -> str:
    """ "1 is observed in tp_mask, t2m_mask and 4 more (0 repeats a constant)"."""
    observed, why = what
    values = " and ".join(f"{value:g}" for value in observed)
    return f"{values} {'is' if len(observed) == 1 else 'are'} observed in {_named(masks)} ({why})"


def _named(masks: Sequence[str]) -> str:
    more = len(masks) - _MOST_NAMED
    return ", ".join(masks) if more <= 0 else f"{', '.join(masks[:_MOST_NAMED])} and {more} more"


def _undecided(looks: Sequence[Look]) -> DataError:
    counts: Counter[float] = Counter()
    for look in looks:
        counts.update(look.counts)
    names = [look.mask for look in looks]
    there = ", ".join(f"{value:g}: {100 * counts[value] / counts.total():.3g} %" for value in sorted(counts))
    often = counts.most_common(1)[0][0] if counts else 1
    return DataError(
        f"nothing says which value of {_named(names)} means observed ({there or 'no values'}). Say it with "
        f"--mask-values {often:g} or leave masks out with --ignore-variables {names[0]}: options of train, inspect "
        "and prepare, which writes a file that the other commands understand"
    )
