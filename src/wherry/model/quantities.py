"""Amounts of CPU, memory and other resources, exactly as the Kubernetes API reads and writes them.

Source: Kubernetes, "Quantity" in the API reference, and the behaviour of its apimachinery (1.37).
"""

from dataclasses import dataclass
from decimal import Decimal
from enum import Enum

from wherry.errors import Invalid

PATTERN = "^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$"
WRONG_FORM = f"quantities must match the regular expression '{PATTERN}'"
WRONG_NUMBER = "unable to parse numeric part of quantity"
WRONG_SUFFIX = "unable to parse quantity's suffix"

_NANO = 10**9
_LARGEST_BINARY = 2**63 - 1
_EXPONENT_BOUND = 400  # upstream takes any 32-bit exponent; nobody means 1e400, and the digits would fill our memory
_DECIMAL_SUFFIXES = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY_SUFFIXES = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}
_DECIMAL_NAMES = {exponent: suffix for suffix, exponent in _DECIMAL_SUFFIXES.items()}
_BINARY_NAMES = {exponent: suffix for suffix, exponent in _BINARY_SUFFIXES.items()}
_DIGITS = "0123456789"
_SUFFIX_LETTERS = "eEinumkKMGTP"


class Form(Enum):
    """How a quantity was written, and so how it is written again."""

    DECIMAL = "DecimalSI"
    BINARY = "BinarySI"
    EXPONENT = "DecimalExponent"


@dataclass(frozen=True, slots=True)
class Quantity:
    """An exact amount: `nano` thousand-millionths of one unit.

    `written` is the text it came from where the API keeps that as it is ("1.500"); "" asks for the canonical form.
    """

    nano: int
    form: Form = Form.DECIMAL
    written: str = ""

    @classmethod
    def parse(cls, text: str | int | float | Decimal) -> "Quantity":
        """Read "1.5Gi", "500m", "12e6" or a JSON number.

        Finer than a nano rounds away from zero; binary amounts are capped at 2^63-1. Raises Invalid with upstream's
        words.
        """
        text = text if isinstance(text, str) else str(text)
        if not text:
            raise Invalid(WRONG_FORM)
        if text == "0":
            return ZERO
        positive, whole, fraction, suffix = _split(text)
        base, exponent, form = _read_suffix(suffix)
        unscaled = int(whole + fraction)
        if base == 2:
            nano = _divide_up((unscaled << exponent) * _NANO, 10 ** len(fraction))
            if nano > _LARGEST_BINARY * _NANO:
                nano = _LARGEST_BINARY * _NANO
            if 0 < nano < _NANO:
                form = Form.DECIMAL
            written = text if not fraction and unscaled & 7 else ""
        else:
            scale = exponent - len(fraction)
            power = scale + 9
            nano = unscaled * 10**power if power >= 0 else _divide_up(unscaled, 10**-power)
            digits = whole + fraction
            canonical = scale % 3 == 0 and power >= 0 and not digits.endswith("000") and digits[0] != "0"
            written = text if canonical and len(digits) <= 18 else ""
        return cls(nano if positive else -nano, form, written)

    def round_up(self, exponent: int) -> "Quantity":
        """Round away from zero to a multiple of 10^`exponent` (-3: milli, 0: whole units)."""
        step = 10 ** (exponent + 9)
        if self.nano % step == 0:
            return self
        nano = _divide_up(abs(self.nano), step) * step
        return Quantity(nano if self.nano > 0 else -nano, self.form)

    @property
    def value(self) -> int:
        """Whole units, rounded up."""
        return -(-self.nano // _NANO)

    @property
    def milli(self) -> int:
        """Thousandths, rounded up."""
        return -(-self.nano // 10**6)

    def __str__(self) -> str:
        return self.written or self.canonical()

    def canonical(self) -> str:
        """The form that the API writes: no fraction, the largest suffix that loses nothing."""
        if self.nano == 0:
            return "0"
        sign, nano = ("-" if self.nano < 0 else ""), abs(self.nano)
        if self.form is Form.BINARY and nano >= 1024 * _NANO and nano % _NANO == 0:
            amount, exponent = nano // _NANO, 0
            while amount % 1024 == 0 and exponent < 60:
                amount, exponent = amount // 1024, exponent + 10
            return f"{sign}{amount}{_BINARY_NAMES.get(exponent, '')}"
        amount, exponent = nano, -9
        while amount % 1000 == 0:
            amount, exponent = amount // 1000, exponent + 3
        if self.form is Form.EXPONENT or exponent not in _DECIMAL_NAMES:
            return f"{sign}{amount}" + (f"e{exponent}" if exponent else "")
        return f"{sign}{amount}{_DECIMAL_NAMES[exponent]}"

    def __lt__(self, other: "Quantity") -> bool:
        return self.nano < other.nano

    def __le__(self, other: "Quantity") -> bool:
        return self.nano <= other.nano

    def __add__(self, other: "Quantity") -> "Quantity":
        """The sum, in the form of the first that is not zero."""
        return Quantity(self.nano + other.nano, self.form if self.nano else other.form)

    def __sub__(self, other: "Quantity") -> "Quantity":
        return Quantity(self.nano - other.nano, self.form if self.nano else other.form)


ZERO = Quantity(0, Form.DECIMAL, "0")


def parse_cpu(text: str | int | float) -> int:
    """Read CPU as millicores: "2" is 2000, "0.5" and "500m" are 500; finer rounds up. Raises Invalid."""
    return Quantity.parse(text).milli


def parse_bytes(text: str | int | float) -> int:
    """Read memory or disk as bytes: "128Mi", "1G", "1.5Gi"; fractions of a byte round up. Raises Invalid."""
    return Quantity.parse(text).value


def format_cpu(millicores: int) -> str:
    """Write millicores: 500 is "500m", 2000 is "2"."""
    return Quantity(millicores * 10**6).canonical()


def format_bytes(size_bytes: int) -> str:
    """Write bytes with binary suffixes: 134217728 is "128Mi"."""
    return Quantity(size_bytes * _NANO, Form.BINARY).canonical()


def _divide_up(amount: int, by: int) -> int:
    return -(-amount // by)


def _split(text: str) -> tuple[bool, str, str, str]:
    """Cut into sign, whole digits, fraction digits and suffix; as lenient as upstream ("." is 0, "5." is 5)."""
    start = 1 if text[0] in "+-" else 0
    rest = text[start:]
    whole_end = _span(rest, 0, _DIGITS)
    whole, fraction, end = rest[:whole_end].lstrip("0"), "", whole_end
    if end < len(rest) and rest[end] == ".":
        fraction_end = _span(rest, end + 1, _DIGITS)
        fraction, end = rest[end + 1 : fraction_end], fraction_end
    suffix = rest[end:]
    letters = _span(suffix, 0, _SUFFIX_LETTERS)
    sign = letters + 1 if letters < len(suffix) and suffix[letters] in "+-" else letters
    if _span(suffix, sign, _DIGITS) != len(suffix):
        raise Invalid(WRONG_FORM)
    return text[0] != "-", whole or "0", fraction, suffix


def _span(text: str, start: int, letters: str) -> int:
    end = start
    while end < len(text) and text[end] in letters:
        end += 1
    return end


def _read_suffix(suffix: str) -> tuple[int, int, Form]:
    if suffix in _DECIMAL_SUFFIXES:
        return 10, _DECIMAL_SUFFIXES[suffix], Form.DECIMAL
    if suffix in _BINARY_SUFFIXES:
        return 2, _BINARY_SUFFIXES[suffix], Form.BINARY
    if len(suffix) > 1 and suffix[0] in "eE":
        digits = suffix[1:].lstrip("+-")
        if digits.isdecimal() and len(digits) <= 4 and int(digits) <= _EXPONENT_BOUND:
            return 10, int(suffix[1:]), Form.EXPONENT
    raise Invalid(WRONG_SUFFIX)
