"""Services as elements: pure plans, and the kernel's table always equal to them."""

import secrets

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wherry.host.nftables import Nft
from wherry.network import flat, plans
from wherry.network import services as services_module
from wherry.network.guard import Guard
from wherry.network.services import NftServices, lost_udp, slots_of
from wherry.network.types import Port, Service

from .conftest import RANGES


def service(
    key: str,
    address: str,
    *endpoints: str,
    port: int = 80,
    protocol: str = "TCP",
    node_port: int = 0,
    affinity_s: int = 0,
) -> Service:
    pairs = [(text.partition(":")[0], int(text.partition(":")[2] or 8080)) for text in endpoints]
    return Service(key, [address], [Port(protocol, port, pairs, node_port)], affinity_s)


def test_a_service_is_one_element_and_one_for_each_backend() -> None:
    plan = plans.plan([service("default/web", "10.112.0.9", "10.64.1.2", "10.64.2.3")])
    assert plan.elements["ports"] == {"10.112.0.9 . tcp . 80": "goto e2"}
    assert plan.elements["backends"] == {
        "10.112.0.9 . tcp . 80 . none": "10.64.1.2 . 8080",
        "10.112.0.9 . tcp . 80 . 0:1": "10.64.2.3 . 8080",
    }
    assert plan.chains == {"e2"}
    assert set(plan.elements["hairpin"]) == {"10.64.1.2 . 10.64.1.2", "10.64.2.3 . 10.64.2.3"}


def test_without_backends_it_is_refused_by_the_kernel_not_by_us() -> None:
    plan = plans.plan([service("default/web", "10.112.0.9", node_port=30_000)])
    assert plan.elements["empty"] == {"10.112.0.9 . tcp . 80": ""}
    assert not plan.refused
    assert not plan.chains


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (service("b", "10.112.0.9", "10.64.1.2", protocol="SCTP"), "port 80: protocol SCTP is not supported"),
        (service("b", "fd00::1", "10.64.1.2"), "IPv6 addresses"),
        (Service("b", ["10.112.0.9"], [Port("TCP", 80, [("fd00::2", 1)])]), "port 80: IPv6 endpoints"),
        (service("b", "10.112.0.1", "10.64.1.2"), "10.112.0.1 tcp 80 belongs to another service"),
        (service("b", "10.112.0.2", "10.64.1.2", port=81, node_port=30_000), "tcp 30000 belongs to another service"),
    ],
)
def test_what_cannot_be_is_named_and_the_others_are_served(wrong: Service, reason: str) -> None:
    right = service("a", "10.112.0.1", "10.64.1.2", node_port=30_000)
    plan = plans.plan([wrong, right])
    assert plan.refused["b"].startswith(reason)
    assert plan.elements["ports"]["10.112.0.1 . tcp . 80"] == "goto e1"


def test_one_backend_less_changes_two_elements_and_the_verdict() -> None:
    names = [f"10.64.1.{number}" for number in range(2, 102)]
    before = plans.plan([service("web", "10.112.0.9", *names)])
    after = plans.plan([service("web", "10.112.0.9", *names[:10], *names[11:])], before)
    old, new = before.elements["backends"], after.elements["backends"]
    assert sum(old.get(key) != new.get(key) for key in old | new) == 2
    assert flat.changes("t", after.elements, after.elements, after.chains, after.chains) == ""


BACKENDS = st.lists(st.sampled_from([f"10.64.1.{n} . 80" for n in range(2, 12)]), unique=True)


@given(BACKENDS, BACKENDS)
def test_places_are_kept_where_they_can_be(before: list[str], wanted: list[str]) -> None:
    order = plans.assign(before, wanted)
    assert sorted(order) == sorted(wanted)
    stays = [backend for place, backend in enumerate(before) if backend in wanted and place < len(wanted)]
    assert all(order.index(backend) == before.index(backend) for backend in stays)


@given(st.lists(st.integers(0, 2**32 - 1), unique=True, max_size=50))
def test_numbers_are_written_as_nftables_does(numbers: list[int]) -> None:
    assert len({flat.slot(number) for number in numbers}) == len(numbers)
    assert flat.slot(0) == "none"
    assert flat.slot(0x8001_00AB) == "8001:ab"


@pytest.mark.parametrize("text", ["none", "0:1", "1:0", "8001:0", "8001:ab", "ffff:ffff", "ffff:fffe"])
def test_numbers_are_read_in_every_form(text: str) -> None:
    number = services_module._number(text)
    assert services_module._number(flat.slot(number)) == number
    assert services_module._number(str(number)) == number


@pytest.mark.root
async def test_every_number_goes_into_the_kernel_and_back(host: str) -> None:
    with Nft() as nft:
        await nft.run(flat.frame("t", RANGES))
        wanted = {f"10.112.0.1 . tcp . 80 . {flat.slot(n)}": "8001:ab" for n in (0, 1, 0x10000, 0x80010000, 0xFFFFFFFE)}
        await nft.run(flat.changes("t", flat.no_elements(), {"pick": wanted}, frozenset(), frozenset()))
        assert services_module.elements_of(await nft.read("list map ip t pick"))["pick"] == wanted


def test_ids_do_not_depend_on_the_others() -> None:
    assert plans.ids(["a . 1", "b . 2"]) == list(reversed(plans.ids(["b . 2", "a . 1"])))
    assert plans.ids(["a . 1"])[0] in plans.ids(["c . 3", "a . 1", "b . 2"])


def test_udp_backends_that_left_are_told() -> None:
    old = plans.plan([service("dns", "10.112.0.9", "10.64.1.2", "10.64.1.3", protocol="UDP", node_port=30_053)])
    new = plans.plan([service("dns", "10.112.0.9", "10.64.1.3", protocol="UDP", node_port=30_053)], old)
    gone = "10.64.1.2 . 8080"
    assert lost_udp(old.elements, new.elements) == {("10.112.0.9:80", gone), (":30053", gone)}
    tcp = plans.plan([service("web", "10.112.0.9", "10.64.1.2")])
    assert lost_udp(tcp.elements, plans.Plan().elements) == set()


ENDPOINT = st.integers(2, 9).map(lambda n: f"10.64.1.{n}:{8000 + n % 2}")


@st.composite
def services(draw: st.DrawFn) -> list[Service]:
    found: list[Service] = []
    for number in draw(st.sets(st.integers(0, 7), max_size=6)):
        endpoints = draw(st.lists(ENDPOINT, unique=True, max_size=6))
        protocol = draw(st.sampled_from(["TCP", "UDP"]))
        node_port = 30_000 + number if draw(st.booleans()) else 0
        affinity_s = draw(st.sampled_from([0, 0, 60, 10_800]))
        address, port = f"10.112.0.{10 + number % 3}", draw(st.sampled_from([6, 17, 80 + number]))
        name = f"default/s{number}"
        made = service(
            name, address, *endpoints, port=port, protocol=protocol, node_port=node_port, affinity_s=affinity_s
        )
        found.append(made)
    return found


@given(st.lists(services(), min_size=2, max_size=5))
def test_small_steps_lead_where_a_whole_plan_does(steps: list[list[Service]]) -> None:
    plan = plans.Plan()
    for services in steps:
        step = plans.step(services, plan)
        patched = {name: dict(pairs) for name, pairs in plan.elements.items()}
        for name in patched:
            for key in step.old.get(name, {}):
                del patched[name][key]
            patched[name] |= step.new.get(name, {})
        plan = step.plan
        whole = plans._whole({service.key: service for service in services}, plan.slots)
        assert plan.elements == patched == whole.elements
        assert (plan.slots, plan.chains, plan.refused) == (whole.slots, whole.chains, whole.refused)
        assert (plan.owners, plan.uses) == (whole.owners, whole.uses)
        assert plan.chains == flat.chains_for(plan.elements)


@given(services(), services())
def test_slots_are_read_back_from_the_elements(first: list[Service], second: list[Service]) -> None:
    plan = plans.plan(second, plans.plan(first))
    assert slots_of(plan.elements) == plan.slots


@pytest.mark.root
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(services(), min_size=1, max_size=6))
async def test_the_kernel_has_what_the_plan_says_after_any_changes(host: str, steps: list[list[Service]]) -> None:
    with Nft() as nft:
        table = NftServices(secrets.token_hex(4), RANGES, nft, Guard(nft))
        for step in steps:
            await table.sync(step)
            held = await table.read()
            assert held == table._plan.elements
            assert {key: set(slots) for key, slots in slots_of(held).items()} == {
                key: set(slots) for key, slots in plans.plan(step).slots.items()
            }
            assert not await table._check()
        other = NftServices(table._table.removeprefix("wherry-"), RANGES, nft, Guard(nft))  # as after a restart
        before = await nft.generation()
        await other.sync(steps[-1])
        assert await nft.generation() == before  # all was taken up, nothing changed
        await other.close(remove=True)
