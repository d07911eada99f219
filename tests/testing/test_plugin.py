"""The pytest plugin, as another project's tests use it: each run is a pytest of its own."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from tests.traces import processes, traces

from wherry.clock import machine


def write(place: Path, text: str) -> Path:
    (place / "pytest.ini").write_text("[pytest]\n")
    path = place / "test_theirs.py"
    path.write_text(textwrap.dedent(text))
    return path


def words(place: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(place), *more, str(place)]


def run(place: Path, *more: str, user: int | None = None) -> subprocess.CompletedProcess[str]:
    drop: list[str] = []
    if user is not None:
        read = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
        drop = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", *read]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "", "TMPDIR": "/var/tmp"}
    return subprocess.run(
        [*drop, *words(place, *more)],
        capture_output=True,
        text=True,
        cwd=place,
        timeout=100,
        check=False,
        env=environment,
    )


def test_importing_it_loads_nothing_but_itself() -> None:
    """The plugin is loaded in every run of pytest of everybody who has wherry installed: it must cost nothing."""
    code = (
        "import pytest, sys; before = set(sys.modules); import wherry.testing.plugin; print(*set(sys.modules) - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert set(done.stdout.split()) == {"wherry", "wherry.testing", "wherry.testing.plugin", "wherry.testing.cluster"}


def test_importing_cluster_loads_no_client_and_no_server() -> None:
    code = "import sys; from wherry.testing import Cluster; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    ours = {name for name in done.stdout.split() if name.startswith("wherry")}
    assert ours == {"wherry", "wherry.testing", "wherry.testing.cluster"}
    assert not {"asyncio", "msgspec", "ssl", "subprocess"} & set(done.stdout.split())


def test_a_namespace_for_each_test_and_one_cluster_for_all(tmp_path: Path) -> None:
    write(
        tmp_path,
        f"""
        seen = set()

        def make(cluster, namespace):
            body = {{"metadata": {{"name": "only"}}, "data": {{"a": "1"}}}}
            cluster.request("POST", f"/api/v1/namespaces/{{namespace}}/configmaps", body)
            seen.add((cluster.root, namespace))

        def test_one(cluster, namespace):
            make(cluster, namespace)

        def test_two(cluster, namespace):
            make(cluster, namespace)
            assert len(seen) == 2
            assert len({{root for root, _ in seen}}) == 1
            assert not cluster.is_real
            assert "2 simulated nodes" in repr(cluster)
            open({str(tmp_path / "root")!r}, "w").write(cluster.root)
        """,
    )
    done = run(tmp_path, "--wherry-simulated")
    assert "2 passed" in done.stdout, done.stdout + done.stderr
    root = (tmp_path / "root").read_text()
    assert not Path(root).exists()
    assert traces(root) == []


def test_a_cluster_that_does_not_come_up_says_why(tmp_path: Path) -> None:
    write(
        tmp_path,
        """
        import pytest
        from wherry.testing import Cluster, ClusterError

        def test_it(tmp_path):
            (tmp_path / "instance.json").write_text("{}")
            with pytest.raises(ClusterError, match="instance.json"):
                Cluster(simulated=1, root=tmp_path).start()

        def test_apply_and_wait_and_what_went_wrong():
            with Cluster(simulated=1) as cluster:
                cluster.apply([{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"x": "1"}}])
                cluster.apply("apiVersion: v1\\nkind: ConfigMap\\nmetadata: {name: b}\\n")
                cluster.kubectl("create", "deployment", "web", "--image=web:1", "--replicas=2")
                cluster.wait("deployment/web", "Available")
                assert len(cluster.request("GET", "/api/v1/namespaces/default/pods")["items"]) == 2
                with pytest.raises(ClusterError, match='configmaps "none" not found'):
                    cluster.request("GET", "/api/v1/namespaces/default/configmaps/none")
                with pytest.raises(ClusterError, match="exit code 1"):
                    cluster.kubectl("get", "configmap", "none")
                with pytest.raises(ClusterError, match="not within 0.1 s: a miracle"):
                    cluster.until(lambda: False, "a miracle", timeout_s=0.1)
        """,
    )
    done = run(tmp_path)
    assert "2 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.root
def test_with_root_the_cluster_is_real(tmp_path: Path) -> None:
    write(
        tmp_path,
        f"""
        def test_it(cluster):
            assert cluster.is_real
            assert cluster.docker_host.startswith("unix:///run/wherry/")
            open({str(tmp_path / "root")!r}, "w").write(cluster.root)
        """,
    )
    done = run(tmp_path)
    assert "1 passed" in done.stdout, done.stdout + done.stderr
    assert traces((tmp_path / "root").read_text()) == []


@pytest.mark.root
def test_without_root_it_is_simulated_and_says_so(tmp_path: Path) -> None:
    place = Path("/var/tmp") / f"wherry-theirs-{os.getpid()}"
    place.mkdir()
    try:
        write(
            place,
            "def test_it(cluster, namespace):\n    assert not cluster.is_real\n    assert cluster.simulated == 2\n",
        )
        os.chown(place, 65534, 65534)
        done = run(place, "-s", "-W", "ignore", user=65534)
        assert "1 passed" in done.stdout, done.stdout + done.stderr
        assert "simulated pods" in done.stderr
    finally:
        for path in place.rglob("*"):
            path.unlink()
        place.rmdir()


KILLED = """
    import pathlib, sys, time

    def test_it(cluster, namespace):
        if cluster.is_real:
            cluster.wherry("node", "add", "node-2")
            sys.path.insert(0, {here!r})
            from tests import images
            place = images.layout(pathlib.Path({place!r}, "image"), "1")
            image = images.publish(cluster.root, cluster.environment["WHERRY_REGISTRY"], place, "box:1")
            cluster.kubectl("create", "deployment", "box", "--image=" + image, "--replicas=3", "--", "sleep", "10000")
            cluster.wait("deployment/box", "Available")
        pathlib.Path({place!r}, "root.new").write_text(cluster.root)
        pathlib.Path({place!r}, "root.new").rename(pathlib.Path({place!r}, "root"))
        time.sleep(1000)
"""


def killed(place: Path, *more: str) -> None:
    """Kill a run of pytest in the middle of a test; wait until nothing is left of its cluster."""
    here = str(Path(__file__).parents[2])
    write(place, KILLED.format(place=str(place), here=here))
    with (place / "output").open("w") as output:
        process = subprocess.Popen(words(place, *more), stdout=output, stderr=output, cwd=place)
    note = place / "root"
    deadline = machine.monotonic() + 60
    while not note.exists():
        assert process.poll() is None, (place / "output").read_text()
        assert machine.monotonic() < deadline, (place / "output").read_text()
        machine.pause(0.05)
    root = note.read_text()
    assert traces(root)
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = machine.monotonic() + 30
    while traces(root) or Path(root).exists():
        left = [*traces(root), *([root] if Path(root).exists() else [])]
        assert machine.monotonic() < deadline, left
        machine.pause(0.1)
    assert not processes(root)


def test_a_killed_run_leaves_no_simulated_cluster(tmp_path: Path) -> None:
    killed(tmp_path, "--wherry-simulated")


@pytest.mark.root
def test_a_killed_run_leaves_no_container_no_link_no_mount_no_table(tmp_path: Path) -> None:
    killed(tmp_path)
