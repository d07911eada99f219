"""The pages say what is so: links lead somewhere, commands exist, what is made from the code is up to date."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.docs.pages import PAGES, ROOT, anchors, commands, links, script
from wherry.cli.main import COMMANDS
from wherry.config import SETTINGS
from wherry.errors import Unsupported


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("wherry_docs_generate", ROOT / "docs/generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def names(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if target == ROOT / "benchmarks/RESULTS.md":
            continue  # written by `make bench`
        assert target.exists(), f"{names(page)}: {link}"
        assert not anchor or anchor in anchors(target), f"{names(page)}: {link}"


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_commands_exist(page: Path) -> None:
    assert commands(page) <= set(COMMANDS), f"{names(page)} names commands that there are not"


def test_parts_made_from_the_code_are_up_to_date(generate: ModuleType) -> None:
    found = [names(path) for path in generate.stale()]
    assert not found, f"run .venv/bin/python docs/generate.py: out of date are {', '.join(found)}"


def test_what_scope_lists_as_refused_by_docker_is_refused(generate: ModuleType) -> None:
    from wherry.doors.docker.requests import container_spec

    _, config, _, host = generate.docker_fields()
    page = (ROOT / "SCOPE.md").read_text()
    for field in config:
        assert f"`{field}`" in page
        with pytest.raises(Unsupported, match=field):
            container_spec({"Image": "web:1", field: "asked for"}, "one")
    for field in host:
        assert f"`{field}`" in page
        with pytest.raises(Unsupported, match=f"HostConfig.{field}"):
            container_spec({"Image": "web:1", "HostConfig": {field: "asked for"}}, "one")


async def test_what_scope_lists_as_refused_paths_of_docker_is_refused(generate: ModuleType) -> None:
    from typing import Any, cast

    from wherry.clock import RealClock
    from wherry.doors.docker.door import DockerDoor
    from wherry.wire.http import Request

    door = DockerDoor(cast("Any", None), cast("Any", None), clock=RealClock(), node="node-1")
    seen: dict[str, int] = {}
    for each in generate.docker_paths():
        method, path = each.split()
        answer = await door.handle(Request.local(method, path.replace("{id}", "a").replace("{name}", "a")))
        seen[each] = answer.status
    assert {each: status for each, status in seen.items() if status != 501} == {}


def test_every_page_is_in_the_index() -> None:
    index = ROOT / "docs/README.md"
    told = {(index.parent / link.partition("#")[0]).resolve() for link in links(index)}
    missing = [names(page) for page in PAGES if page.is_relative_to(ROOT / "docs") and page != index]
    assert [page for page in missing if (ROOT / page) not in told] == []


def test_variables_exist() -> None:
    sources = "\n".join(path.read_text() for path in (ROOT / "src").glob("**/*.py"))
    sources += (ROOT / "examples/01-web/demo.py").read_text() + (ROOT / "tests/conftest.py").read_text()
    made = {f"WHERRY_{each.name.upper()}" for each in SETTINGS} | set(re.findall(r"WHERRY_[A-Z_]+", sources))
    page = (ROOT / "docs/reference/configuration.md").read_text()
    assert set(re.findall(r"WHERRY_[A-Z_]+[A-Z]", page)) <= made


def test_the_tables_of_times_are_the_codes() -> None:
    from wherry.daemon.profiles import TIMES

    page = (ROOT / "docs/reference/configuration.md").read_text()
    for name, times in TIMES.items():
        fence = f"{times.fence_s:g} s" if times.fence_s else "none"
        row = f"| `{name}` | {times.lease_s} s | {times.renew_s:g} s | {times.toleration_s} s | {fence} |"
        assert row in page


def test_numbers_in_the_pages_are_the_codes() -> None:
    from wherry.api.settings import Settings
    from wherry.daemon import simulated, up
    from wherry.engine.types import ContainerSpec
    from wherry.history.archive import Budget
    from wherry.model.kinds import KINDS
    from wherry.registry.access import TOKEN_S
    from wherry.store.compaction import Keep

    spec = ContainerSpec("one", "web:1")
    budgets = {kind.history_budget for kind in KINDS if kind.history_budget}
    said = {
        "SCOPE.md": [
            f"{min(budgets)} to {max(budgets)} revisions", f"{Budget().age_s / 86400:g} days",
            f"{Budget().value_bytes >> 20} MiB", f"{Keep().most:,} writes", f"{Settings().event_window:,} changes",
            f"{spec.log_max_bytes >> 20} MiB and {spec.log_max_files} files",
        ],
        "docs/how-to/look-back-in-time.md": [f"{Keep().most:,} writes", f"{Budget().value_bytes >> 20} MiB"],
        "docs/reference/configuration.md": [
            f"port from {up.API_PORT}", f"port from {up.REGISTRY_PORT}",
            " to ".join(str(port) for port in Settings().node_ports),
        ],
        "docs/reference/registry-api.md": [f"for {TOKEN_S // 60} minutes"],
        "docs/reference/simulated-pods.md": [f"{simulated.CAPACITY['cpu']} CPUs", f"{simulated.CAPACITY['pods']} pods"],
    }  # fmt: skip
    assert Keep().age_s == 300  # "the last five minutes"
    missing = [(page, each) for page, words in said.items() for each in words if each not in (ROOT / page).read_text()]
    assert missing == []


def test_every_field_of_a_simulated_pods_script_is_told() -> None:
    from wherry.node.simulated import ANNOTATION, Script

    page = (ROOT / "docs/reference/simulated-pods.md").read_text()
    assert f"`{ANNOTATION}`" in page
    assert [name for name in Script.__struct_fields__ if f"| `{name}` |" not in page] == []


def test_pages_name_no_place_of_ours() -> None:
    for page in PAGES:
        assert not re.search(r"/work/|/home/[a-z]|localhost:\d+/v2|fc-v\d", page.read_text()), names(page)


def test_the_pages_that_teach_are_run() -> None:
    teaching = [
        page for page in PAGES if page.parent.name in ("tutorial", "how-to") or page.parent.parent.name == "examples"
    ]
    # A page that shows an example's file whole is run with the example.
    silent = [page for page in teaching if not script(page)[0] and "<!-- made: file examples/" not in page.read_text()]
    assert [names(page) for page in silent] == []
