"""What names, labels and keys may look like; each check gives upstream's sentences, or none when the text is right.

Source: Kubernetes, "Object Names and IDs", "Labels and Selectors"; RFC 1035 and RFC 1123.
"""

import ipaddress
import re

_LABEL_1123 = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN_1123 = rf"{_LABEL_1123}(\.{_LABEL_1123})*"
_LABEL_1035 = "[a-z]([-a-z0-9]*[a-z0-9])?"
_QUALIFIED = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"
_LABEL_VALUE = f"({_QUALIFIED})?"
_ENV = "[-._a-zA-Z][-._a-zA-Z0-9]*"
_KEY = "[-._a-zA-Z0-9]+"
_WILDCARD = rf"\*\.{_SUBDOMAIN_1123}"
_HTTP_PATH = r"[A-Za-z0-9/\-._~%!$&'()*+,;=:]+"

_label_1123 = re.compile(_LABEL_1123).fullmatch
_subdomain_1123 = re.compile(_SUBDOMAIN_1123).fullmatch
_label_1035 = re.compile(_LABEL_1035).fullmatch
_qualified = re.compile(_QUALIFIED).fullmatch
_label_value = re.compile(_LABEL_VALUE).fullmatch
_key = re.compile(_KEY).fullmatch
_wildcard = re.compile(_WILDCARD).fullmatch
_port_letters = re.compile("[-a-z0-9]+").fullmatch


_LABEL_1123_SENTENCE = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with "
    f"an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '{_LABEL_1123}')"
)
_SUBDOMAIN_SENTENCE = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', "
    f"and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is "
    f"'{_SUBDOMAIN_1123}')"
)
_LABEL_1035_SENTENCE = (
    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, "
    f"and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is "
    f"'{_LABEL_1035}')"
)
_QUALIFIED_SENTENCE = (
    "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character "
    f"(e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '{_QUALIFIED}')"
)
_LABEL_VALUE_SENTENCE = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', "
    "and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', "
    f"regex used for validation is '{_LABEL_VALUE}')"
)
_KEY_SENTENCE = (
    "a valid config key must consist of alphanumeric characters, '-', '_' or '.' "
    f"(e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '{_KEY}')"
)
_WILDCARD_SENTENCE = (
    "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of "
    "lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character "
    f"(e.g. '*.example.com', regex used for validation is '{_WILDCARD}')"
)


def _too_long(most: int) -> str:
    return f"must be no more than {most} bytes"


def dns_label(text: str) -> list[str]:
    """Check an RFC 1123 label: the name of a namespace, a service, a container, a volume."""
    wrong: list[str] = []
    if len(text) > 63:
        wrong.append(_too_long(63))
    if not _label_1123(text):
        wrong.append("must not contain dots" if _subdomain_1123(text) else _LABEL_1123_SENTENCE)
    return wrong


def dns_subdomain(text: str) -> list[str]:
    """Check an RFC 1123 subdomain: the name of most objects."""
    wrong: list[str] = []
    if len(text) > 253:
        wrong.append(_too_long(253))
    if not _subdomain_1123(text):
        wrong.append(_SUBDOMAIN_SENTENCE)
    return wrong


def dns_1035_label(text: str) -> list[str]:
    """Check an RFC 1035 label: the names and versions of custom resources."""
    wrong: list[str] = []
    if len(text) > 63:
        wrong.append(_too_long(63))
    if not _label_1035(text):
        wrong.append(_LABEL_1035_SENTENCE)
    return wrong


def wildcard_subdomain(text: str) -> list[str]:
    """Check `*.` and a subdomain: a host of an ingress."""
    wrong: list[str] = []
    if len(text) > 253:
        wrong.append(_too_long(253))
    if not _wildcard(text):
        wrong.append(_WILDCARD_SENTENCE)
    return wrong


def qualified_name(text: str) -> list[str]:
    """Check a label or annotation key: a name, or a subdomain, a slash and a name."""
    wrong: list[str] = []
    parts = text.split("/")
    name = parts[-1]
    if len(parts) == 2:
        if not parts[0]:
            wrong.append("prefix part must be non-empty")
        else:
            wrong += ["prefix part " + sentence for sentence in dns_subdomain(parts[0])]
    elif len(parts) > 2:
        return [
            f"a qualified name {_QUALIFIED_SENTENCE} with an optional DNS subdomain prefix and '/' "
            "(e.g. 'example.com/MyName')"
        ]
    if not name:
        wrong.append("name part must be non-empty")
    elif len(name) > 63:
        wrong.append("name part " + _too_long(63))
    if not _qualified(name):
        wrong.append("name part " + _QUALIFIED_SENTENCE)
    return wrong


def label_value(text: str) -> list[str]:
    """Check a label's value; it may be empty."""
    wrong: list[str] = []
    if len(text) > 63:
        wrong.append(_too_long(63))
    if not _label_value(text):
        wrong.append(_LABEL_VALUE_SENTENCE)
    return wrong


def config_key(text: str) -> list[str]:
    """Check a key of a ConfigMap's or Secret's data."""
    wrong: list[str] = []
    if len(text) > 253:
        wrong.append(_too_long(253))
    if not _key(text):
        wrong.append(_KEY_SENTENCE)
    return wrong + _dots(text)


def env_name(text: str) -> list[str]:
    """Check an environment variable's name, by the relaxed rule: printable ASCII without `=`."""
    if not text:
        return ["environment variable name must be at least 1 character"]
    if any(not " " <= letter <= "~" or letter == "=" for letter in text):
        return ["a valid environment variable name must consist only of printable ASCII characters other than '='"]
    return []


def port_name(text: str) -> list[str]:
    """Check the name of a container's port (an IANA service name)."""
    wrong: list[str] = []
    if len(text) > 15:
        wrong.append(_too_long(15))
    if not _port_letters(text):
        wrong.append("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)")
    if not any("a" <= letter <= "z" for letter in text):
        wrong.append("must contain at least one letter (a-z)")
    if "--" in text:
        wrong.append("must not contain consecutive hyphens")
    if text and (text[0] == "-" or text[-1] == "-"):
        wrong.append("must not begin or end with a hyphen")
    return wrong


def port_number(number: int) -> list[str]:
    """Check a port: 1-65535."""
    return [] if 1 <= number <= 65535 else ["must be between 1 and 65535, inclusive"]


def address(text: str) -> list[str]:
    """Check an IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return ["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"]
    return []


def cidr(text: str) -> list[str]:
    """Check an address block: `10.0.0.0/8`."""
    try:
        if "/" not in text:
            raise ValueError
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return ["must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"]
    return []


def path_segment(text: str) -> list[str]:
    """Check a name that need only fit into a URL: that of an RBAC object."""
    if text in (".", ".."):
        return [f"may not be '{text}'"]
    return [f"may not contain '{sign}'" for sign in ("/", "%") if sign in text]


def percent(text: str) -> list[str]:
    """Check a percentage: `25%`."""
    if re.fullmatch("[0-9]+%", text):
        return []
    return [
        "a valid percent string must be a numeric string followed by an ending '%' "
        "(e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')"
    ]


def _dots(text: str) -> list[str]:
    if text == ".":
        return ["must not be '.'"]
    if text == "..":
        return ["must not be '..'"]
    if text.startswith(".."):
        return ["must not start with '..'"]
    return []
