"""Quantities: every text reads and writes as upstream's does."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.errors import Invalid
from wherry.model.quantities import Form, Quantity, format_bytes, format_cpu, parse_bytes, parse_cpu

CANONICAL = [
    ("0", "0"), ("0n", "0"), ("0Mi", "0"), ("-0", "0"), ("1", "1"), ("1.5", "1500m"), ("0.5", "500m"), (".5", "500m"),
    ("5.", "5"), ("1000m", "1"), ("1100m", "1100m"), ("100m", "100m"), ("1k", "1k"), ("1000", "1k"), ("1024", "1024"),
    ("1Ki", "1Ki"), ("1024Ki", "1Mi"), ("1024Mi", "1Gi"), ("1.5Gi", "1536Mi"), ("0.5Mi", "512Ki"), ("1023Mi", "1023Mi"),
    ("0.3Ki", "307200m"), ("512", "512"), ("1e3", "1e3"), ("1E3", "1e3"), ("12e6", "12e6"), ("1e2", "100"),
    ("1e-3", "1e-3"), ("12E", "12E"), ("1E", "1E"), ("8Ei", "9223372036854775807"), ("0.1n", "1n"), ("0.9n", "1n"),
    ("1000E", "1e21"), ("18446744073709551616", "18446744073709551616"), ("1.2345", "1234500u"), ("-1.5", "-1500m"),
    ("+2", "2"), ("100u", "100u"), ("1000000n", "1m"), ("64Gi", "64Gi"), ("1P", "1P"), ("1Ei", "1Ei"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "canonical"), CANONICAL)
def test_the_canonical_form(text: str, canonical: str) -> None:
    assert Quantity.parse(text).canonical() == canonical


@pytest.mark.parametrize("text", ["1.500", "100Ki", "1e3", "1E3", "250m", "128Mi"])
def test_what_upstream_keeps_as_it_was_written(text: str) -> None:
    assert str(Quantity.parse(text)) == text


@pytest.mark.parametrize("text", ["", "abc", "1 Gi", "1Gb", "1KI", "1.2.3", "0x1"])
def test_texts_of_the_wrong_form(text: str) -> None:
    with pytest.raises(Invalid, match="quantities must match the regular expression"):
        Quantity.parse(text)


@pytest.mark.parametrize("text", ["1K", "1mm", "1e", "1e9999", "1i", "--1", "1kk", "1Gi2"])
def test_suffixes_that_are_none(text: str) -> None:
    with pytest.raises(Invalid, match="unable to parse quantity's suffix"):
        Quantity.parse(text)


def test_rounding_is_up_away_from_zero() -> None:
    assert str(Quantity.parse("1.2345").round_up(-3)) == "1235m"
    assert str(Quantity.parse("0.1m").round_up(-3)) == "1m"
    assert str(Quantity.parse("-1.2345").round_up(-3)) == "-1235m"
    assert Quantity.parse("0.3Ki").value == 308


def test_cpu_and_bytes() -> None:
    assert [parse_cpu(text) for text in ("2", "0.5", "500m", "1.0001", 0.1)] == [2000, 500, 500, 1001, 100]
    assert [parse_bytes(text) for text in ("128Mi", "1G", "1.5Ki", "100", "1e3")] == [134217728, 10**9, 1536, 100, 1000]
    assert (format_cpu(500), format_cpu(2000), format_cpu(0)) == ("500m", "2", "0")
    assert (format_bytes(134217728), format_bytes(1000), format_bytes(1536)) == ("128Mi", "1k", "1536")


@given(st.integers(0, 2**62), st.sampled_from(["", "m", "k", "M", "Ki", "Mi", "u", "n", "e3", "E"]))
def test_the_canonical_form_means_the_same(number: int, suffix: str) -> None:
    read = Quantity.parse(f"{number}{suffix}")
    again = Quantity.parse(read.canonical())
    assert again.nano == read.nano
    assert again.canonical() == read.canonical()


@given(st.decimals(0, 10**9, places=6))
def test_decimals_are_exact(number: Decimal) -> None:
    assert Quantity.parse(format(number, "f")).nano == int(number * 10**9)


def test_sums_keep_the_form_of_the_first() -> None:
    total = Quantity.parse("1Gi") + Quantity.parse("512Mi")
    assert (str(total), total.form) == ("1536Mi", Form.BINARY)
    assert str(Quantity.parse("0") + Quantity.parse("1Mi")) == "1Mi"
    assert str(Quantity.parse("2") - Quantity.parse("500m")) == "1500m"
    assert Quantity.parse("1") < Quantity.parse("1001m") <= Quantity.parse("1001m")
