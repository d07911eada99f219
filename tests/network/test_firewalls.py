"""Other tools' firewalls: what is added to them, once; again after they reload; and taken away. Their tools are stand-ins.

firewalld 1.3, ufw 0.36 and iptables 1.8.9 (legacy) themselves were tried by hand against the same code; the rule sets and
files here are as they wrote them.
"""

import os
from pathlib import Path

import pytest

from wherry.host.nftables import Nft
from wherry.network import firewalls, iptables_legacy, ufw
from wherry.network.firewalls import Firewalls, Place
from wherry.network.guard import Guard

ID = "12345678"
PLACES = [Place("10.64.1.0/24", "10.64.1.1"), Place("fd00:9::/64", "fd00:9::1"), Place("10.9.0.0/24", "10.9.0.1", True)]


class Tools:
    """Stand-ins on the PATH that write down how they were called, and do what `script` says."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.log = directory, directory / "called"

    def make(self, name: str, script: str = "") -> None:
        path = self.directory / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >> {self.log}\n{script}\n')
        path.chmod(0o755)

    def called(self) -> list[str]:
        """List the calls since the last time."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return lines


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tools:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return Tools(tmp_path)


FIREWALLD = """
add table inet firewalld
add chain inet firewalld filter_IN_trusted
add chain inet firewalld filter_INPUT_ZONES
flush chain inet firewalld filter_INPUT_ZONES
"""


@pytest.mark.root
async def test_firewalld_is_told_of_our_addresses(host: str, tools: Tools) -> None:
    tools.make("firewall-cmd", f"""
        for word; do case $word in
            --add-source=fd*) echo "add rule inet firewalld filter_INPUT_ZONES ip6 saddr ${{word#*=}} goto filter_IN_trusted" ;;
            --add-source=*) echo "add rule inet firewalld filter_INPUT_ZONES ip saddr ${{word#*=}} goto filter_IN_trusted" ;;
            --list-sources) echo "10.64.1.0/24 192.0.2.0/24 fd00:9::/64 0a:00:00:00:00:01" ;;
        esac; done >> {tools.directory}/rules""")  # fmt: skip
    with Nft() as nft:
        made = Firewalls(nft, ID)
        assert await made.ensure(PLACES) is False
        await nft.run(FIREWALLD)
        assert [each.name for each in await firewalls.neighbours(nft, ID, PLACES) if not each.lets_through] == [
            "firewalld"
        ]
        assert await made.ensure(PLACES)
        sources = " ".join(f"--add-source={each.subnet}" for each in PLACES)
        assert tools.called() == [f"firewall-cmd --zone=trusted {sources}"]
        await nft.run((tools.directory / "rules").read_text())
        assert await made.ensure(PLACES) is False
        assert tools.called() == []
        async with Guard(nft, period_s=0.02) as guard:
            guard.add("firewalls", lambda: made.ensure(PLACES))
            await guard.look()
            await nft.run(FIREWALLD)  # a reload
            await guard.look()
        assert f"firewall-cmd --zone=trusted {sources}" in tools.called()
        tools.make(
            "firewall-cmd",
            'case "$*" in *--list-sources*) echo 10.64.1.0/24 192.0.2.0/24 fd00:9::/64 0a:00:00:00:00:01;; esac',
        )
        await firewalls.remove(nft, ID, ["10.64.0.0/16", "fd00:9::/64"])
        removed = "firewall-cmd --zone=trusted --remove-source=10.64.1.0/24 --remove-source=fd00:9::/64"
        assert tools.called() == ["firewall-cmd --zone=trusted --list-sources", removed]
        tools.make("firewall-cmd", "echo 'dbus is gone' >&2; exit 252")
        assert await made.ensure(PLACES) is False  # said in the log, and tried again when something changes


UFW = """
verb=allow; case "$*" in *delete*) verb=delete ;; esac
file=user.rules; any=0.0.0.0/0; case "$*" in *fd00*) file=user6.rules; any=::/0 ;; esac
comment=$(printf wherry-%s 12345678 | od -An -tx1 | tr -d ' \\n')
for word; do case $last in from) from=$word ;; to) to=$word ;; port) port=$word ;; esac; last=$word; done
line="### tuple ### allow any $port ${to:-$any} any $from in comment=$comment"
case "$1" in route) line="### tuple ### route:allow any any $any any $from in comment=$comment" ;; esac
if [ $verb = allow ]; then echo "$line" >> RULES/$file
else grep -vF "$line" RULES/$file > RULES/new; mv RULES/new RULES/$file; fi
"""


@pytest.mark.root
async def test_ufw_gets_route_rules_that_carry_our_name(
    host: str, tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ufw, "RULES", tools.directory)
    tools.make("ufw", UFW.replace("RULES", str(tools.directory)))
    others = "### tuple ### allow tcp 22 0.0.0.0/0 any 0.0.0.0/0 in comment=7768657272792d3837363534333231\n"
    for name in ufw.FILES:
        (tools.directory / name).write_text(others)
    with Nft() as nft:
        made = Firewalls(nft, ID)
        assert await made.ensure(PLACES) is False
        await nft.run("add table ip filter\nadd chain ip filter ufw-user-forward")
        assert await made.ensure(PLACES)
        tail = f"comment wherry-{ID}"
        assert tools.called() == [
            f"ufw route allow from 10.64.1.0/24 {tail}",
            f"ufw allow in from 10.64.1.0/24 to 10.64.1.1 port 53 {tail}",
            f"ufw route allow from fd00:9::/64 {tail}",
            f"ufw allow in from fd00:9::/64 to fd00:9::1 port 53 {tail}",
            f"ufw allow in from 10.9.0.0/24 to 10.9.0.1 port 53 {tail}",
        ]
        assert await made.ensure(PLACES) is False
        (seen,) = await firewalls.neighbours(nft, ID, PLACES)
        assert (seen.name, seen.seen, seen.fix) == ("ufw", "on; 5 rules of this instance", "")
        await made.drop(PLACES[2:])
        (seen,) = await firewalls.neighbours(nft, ID, PLACES)
        assert seen.fix == "ufw allow in from 10.9.0.0/24 to 10.9.0.1 port 53"
        await firewalls.remove(nft, ID)
        assert tools.called()[-1] == "ufw delete allow in from fd00:9::/64 to fd00:9::1 port 53"
    assert [(tools.directory / name).read_text() for name in ufw.FILES] == [others, others]


@pytest.mark.root
async def test_a_dockerd_of_the_old_iptables(host: str, tools: Tools, monkeypatch: pytest.MonkeyPatch) -> None:
    tools.make("iptables-legacy", f"""
        shift 2
        case $1 in
            -S) printf -- '-N DOCKER-USER\\n'; cat {tools.directory}/rules; echo '-A DOCKER-USER -j RETURN' ;;
            -I) shift; test $2 = 2 && shift 2; echo "-A DOCKER-USER $*" >> {tools.directory}/rules ;;
            -D) shift; grep -vxFe "-A $*" {tools.directory}/rules > {tools.directory}/new
                mv {tools.directory}/new {tools.directory}/rules
            ;;
        esac""")  # fmt: skip
    (tools.directory / "rules").write_text(
        '-A DOCKER-USER -i wh0000ffff+ -m comment --comment "wherry-0000ffff" -j ACCEPT\n'
    )
    with Nft() as nft:
        made = Firewalls(nft, ID)
        assert await made.ensure(PLACES) is False
        assert tools.called() == []  # no table of the old ones is there
        monkeypatch.setattr(iptables_legacy, "has_tables", lambda: ["filter"])
        assert await made.ensure(PLACES, ["br-red"])
        assert await made.ensure(PLACES, ["br-red"]) is False
        assert (tools.directory / "rules").read_text().count(f"wherry-{ID}") == 4
        await made.drop((), "br-red")
        assert "br-red" not in (tools.directory / "rules").read_text()
        await firewalls.remove(nft, ID)
    assert (tools.directory / "rules").read_text().count("wherry-") == 1


async def test_a_table_of_the_old_iptables_that_does_nothing_is_no_news(tools: Tools) -> None:
    """Anybody who has listed its rules once has left it there, with the policy ACCEPT and no rule."""
    tools.make("iptables-legacy", """
        case $4 in
            filter) printf -- '-P INPUT ACCEPT\\n-P FORWARD ACCEPT\\n' ;;
            mangle) printf -- '-P INPUT ACCEPT\\n-P FORWARD DROP\\n' ;;
            nat) printf -- '-P INPUT ACCEPT\\n-A INPUT -j LOG\\n' ;;
            *) exit 1 ;;
        esac""")  # fmt: skip
    assert await iptables_legacy.acting(["filter", "mangle", "nat", "raw"]) == ["mangle", "nat", "raw"]


@pytest.mark.root
async def test_peoples_own_refusals_come_first(host: str) -> None:
    assert iptables_legacy.place_in("-N DOCKER-USER\n-A DOCKER-USER -i eth0 -j DROP\n-A DOCKER-USER -j RETURN\n") == "2"
    with Nft() as nft:
        for end in ("counter return", ""):
            await nft.run(
                "add table ip filter\ndelete table ip filter\nadd table ip filter\nadd chain ip filter DOCKER-USER\n"
                'add rule ip filter DOCKER-USER iifname "eth0" tcp dport 80 drop'
            )
            await nft.run(f"add rule ip filter DOCKER-USER {end}" if end else "")
            await Firewalls(nft, ID).ensure(PLACES)
            rules = [item["rule"] for item in await nft.read("list chain ip filter DOCKER-USER") if "rule" in item]
            kinds = ["ours" if rule.get("comment") else next(iter(rule["expr"][-1])) for rule in rules]
            assert kinds == ["drop", "ours", "ours", *(["return"] if end else [])]


@pytest.mark.root
async def test_somebody_unknown_that_drops_is_shown(host: str) -> None:
    with Nft() as nft:
        await nft.run(
            "add table inet own\nadd chain inet own passing { type filter hook forward priority 0; policy drop; }"
        )
        (seen,) = await firewalls.neighbours(nft, ID, PLACES)
        assert "chain inet own passing drops" in seen.seen
        for command in seen.fix.replace("'", "").split("; "):
            await nft.run(command.removeprefix("nft "))
        await nft.run("add table ip filter\nadd chain ip filter DOCKER-USER")
        seen = (await firewalls.neighbours(nft, ID, PLACES))[0]
        assert (seen.name, seen.lets_through) == ("dockerd", False)
        await Firewalls(nft, ID).ensure(PLACES)
        seen = (await firewalls.neighbours(nft, ID, PLACES))[0]
        assert (seen.seen, seen.fix) == ("chain ip filter DOCKER-USER, 2 rules of this instance", "")


def test_files_of_ufw_are_read() -> None:
    text = """### RULES ###

### tuple ### route:allow any any 0.0.0.0/0 any 10.64.1.0/24 in comment=7768657272792d3132333435363738
-A ufw-user-forward -s 10.64.1.0/24 -j ACCEPT

### tuple ### allow any 53 10.64.1.1 any 10.64.1.0/24 in comment=7768657272792d3132333435363738
-A ufw-user-input -p udp -d 10.64.1.1 --dport 53 -s 10.64.1.0/24 -j ACCEPT
### tuple ### allow any 80 0.0.0.0/0 any 0.0.0.0/0 in
### END RULES ###
"""
    assert ufw.ours(text, ID) == ufw.wanted("10.64.1.0/24", "10.64.1.1")
    assert ufw.ours(text, "87654321") == []
