"""`-p` in all its forms."""

import pytest

from wherry.cli.ports import bindings


@pytest.mark.parametrize(
    ("text", "port", "host", "outer"),
    [
        ("80", "80/tcp", "", ""),
        ("8080:80", "80/tcp", "", "8080"),
        ("8080:80/udp", "80/udp", "", "8080"),
        ("127.0.0.1:8080:80", "80/tcp", "127.0.0.1", "8080"),
        ("127.0.0.1::80", "80/tcp", "127.0.0.1", ""),
        ("[::1]:8080:80", "80/tcp", "::1", "8080"),
        ("8000-8010:80", "80/tcp", "", "8000-8010"),
    ],
)
def test_a_port_is_read_as_docker_reads_it(text: str, port: str, host: str, outer: str) -> None:
    assert bindings([text]) == {port: [{"HostIp": host, "HostPort": outer}]}


def test_two_ranges_go_together() -> None:
    found = bindings(["8000-8002:80-82", "9000:80"])
    assert [each["HostPort"] for each in found["80/tcp"]] == ["8000", "9000"]
    assert found["82/tcp"] == [{"HostIp": "", "HostPort": "8002"}]


@pytest.mark.parametrize("text", ["", "web", "8080:", "0", "70000", "1:2:3:4", "80-70", "1-2:3-5", "80/icmp"])
def test_what_is_no_port_is_a_usage_error(text: str) -> None:
    with pytest.raises(SystemExit):
        bindings([text])
