"""What a file says about the values of a mask: which of them mean observed, by its attributes.

CF names the values with `flag_values`, or bits with `flag_masks`, and says in `flag_meanings` what they are
(https://cfconventions.org, section 3.5 "Flags"). Other files say it in words: "1 = observed, 0 = filled".
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

FLAG_VALUES, FLAG_MASKS = "flag_values", "flag_masks"
_GOOD = re.compile(
    "good|valid|validity|observed|observations?|ok|okay|present|original|measured|measurements?|real|reliable|correct|"
    "true|available|raw|accept(ed|able)|pass(ed)?|trusted|usable|unfilled|unmasked"
)
_BAD = re.compile(
    "missing|fill|filled|infilled|gapfilled|interpolated|extrapolated|bad|suspect|suspicious|invalid|estimated?|imputed|"
    "unreliable|erroneous|errors?|wrong|masked|absent|unobserved|unavailable|nodata|gaps?|replaced|substituted|synthetic|"
    "modell?ed|reconstructed|reject(ed)?|fail(ed)?|questionable|doubtful|corrupt(ed)?|outliers?|unusable|incorrect|"
    "artificial|nan|fillvalue"
)
_NOT = re.compile("no|not|non|none|never|without")
_NEGATED_ONLY = re.compile("data|values?")  # "no data" is bad, but "data" says nothing
_MOST_BITS = 12

_NUMBER = r"(?P<number>(?<![\w./])-?\d+(?:\.0*)?(?![\w./])|\b(?:true|false|zero|one|non-?zero)\b)"
_WORDS = r"(?P<words>[a-z][a-z_ -]*)"
_IS = r"(?:\s*(?:=+|:|->|\b(?:if|is|are|where|when|for|means?|indicates?|denotes?|marks?)\b)\s*|\s+[-\u2013]\s+)"
# From the plainest to the vaguest: "1 = observed", "1 if missing"; "observed = 1", "observed (1)"; "1 observed".
_PAIRS = (
    re.compile(rf"{_NUMBER}{_IS}{_WORDS}"),
    re.compile(rf"{_WORDS}(?:=+|:|->|\()\s*{_NUMBER}"),
    re.compile(rf"{_NUMBER}\s+{_WORDS}"),
)
_NUMBERS = {"true": 1.0, "one": 1.0, "nonzero": 1.0, "non-zero": 1.0, "false": 0.0, "zero": 0.0}


@dataclass(frozen=True)
class Meaning:
    """Values of a mask by their meaning.

    Attributes:
        observed: values that mean observed; empty where only others are known.
        missing: values that do not.
        bits: of the values, those that count; None: all.
    """

    observed: tuple[float, ...]
    missing: tuple[float, ...] = ()
    bits: int | None = None


def meaning_of(attrs: Mapping[str, Any]) -> Meaning | None:
    """The meaning of a mask's values by its attributes, None where they do not say."""
    return _by_flags(attrs) or _by_text(_texts(attrs))


def hint_of(words: str | Mapping[str, Any]) -> bool | None:
    """Whether words, or the texts of a mask, speak of what is observed, or of what is not; None: of neither or both."""
    found = _spoken_of(words if isinstance(words, str) else _texts(words))
    return found.pop() if len(found) == 1 else None


def _verdict(words: str) -> bool | None:
    """Whether a meaning such as "probably_good" or "not observed" means observed; None where it says neither."""
    found = _spoken_of(words)
    return None if not found else found == {True}


def _spoken_of(text: str) -> set[bool]:
    """True where a text speaks of what is observed, False where of what is not."""
    found, negated = set(), False
    for word in re.findall("[a-z]+", text.lower()):
        if _NOT.fullmatch(word):
            negated = True
        elif _GOOD.fullmatch(word) or _BAD.fullmatch(word):
            found.add(bool(_GOOD.fullmatch(word)) != negated)
            negated = False
        elif negated and _NEGATED_ONLY.fullmatch(word):
            found.add(False)
    return found


def _texts(attrs: Mapping[str, Any]) -> str:
    apart = ("standard_name", "flag_meanings", FLAG_VALUES, FLAG_MASKS)
    return " ; ".join(text for name, text in attrs.items() if isinstance(text, str) and name not in apart)


def _by_flags(attrs: Mapping[str, Any]) -> Meaning | None:
    """By CF's attributes."""
    values, masks = _numbers(attrs.get(FLAG_VALUES)), _numbers(attrs.get(FLAG_MASKS))
    words = [_verdict(text) for text in re.split(r"[\s,;]+", str(attrs.get("flag_meanings", "")).strip())]
    if not any(word is not None for word in words) or {len(values), len(masks)} - {0} != {len(words)}:
        return None
    has_good = True in words
    if not masks:
        observed = [value for value, word in zip(values, words) if (word if has_good else word is None)]
        return Meaning(tuple(observed), tuple(value for value in values if value not in observed))
    conditions = [
        (_as_bits(int(mask)), _as_bits(int(value)), word)
        for mask, value, word in zip(masks, values or masks, words)
        if word is not None
    ]
    bits = int(np.bitwise_or.reduce([mask for mask, _, _ in conditions]))
    if bits.bit_count() > _MOST_BITS:
        return None

    def is_observed(number: int) -> bool:
        """Whether one of the good meanings holds, if there are any, and none of the others."""
        held = {word for mask, value, word in conditions if (number & mask) == value}
        return False not in held and (True in held or not has_good)

    return Meaning(tuple(float(number) for number in _submasks(bits) if is_observed(number)), bits=bits)


def _as_bits(number: int) -> int:
    """Without a sign: of signed bytes -128 is the highest bit."""
    width = next((width for width in (8, 16, 32) if number >= -(2 ** (width - 1))), 64)
    return number % 2**width if number < 0 else number


def _submasks(bits: int) -> Iterator[int]:
    """All numbers that have no other bits."""
    number = bits
    while number:
        yield number
        number = (number - 1) & bits
    yield 0


def _numbers(given: Any) -> list[float]:
    """Of an attribute: numbers, or a text of them ("0b, 1b")."""
    if given is None:
        return []
    if isinstance(given, str):
        return [float(text) for text in re.findall(r"-?\d+(?:\.\d+)?", given)]
    array = np.atleast_1d(np.asarray(given))
    return array.astype(float).tolist() if array.dtype.kind in "fiub" else []


def _by_text(text: str) -> Meaning | None:
    for form in _PAIRS:
        found = [(match["number"], _verdict(match["words"])) for match in form.finditer(text.lower())]
        pairs = [(_NUMBERS[given] if given in _NUMBERS else float(given), word) for given, word in found]
        good, bad = ({value for value, word in pairs if word is kind} for kind in (True, False))
        is_plain = form is not _PAIRS[-1] or (good and bad)
        if (good or bad) and is_plain and not good & bad:
            return Meaning(tuple(sorted(good)), tuple(sorted(bad)))
    return None
