"""Every command of the stock docker, by each client of this machine: how it ends, and what it prints that is stable.

The expectations are dockerd's, seen with the same clients (docs/reference/clients.md says which).
"""

import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from tests.walks.clients import DOCKERS, Engine

pytestmark = pytest.mark.root
ID = r"[0-9a-f]{64}\n"
SHA = r"sha256:[0-9a-f]{64}\n"
NO_MANAGER = r"This node is not a swarm manager"
Steps = Sequence[tuple[str, int, str]]
"""Words after `docker`, the exit code, and a pattern of the whole of stdout, or of stderr when the code is not 0."""

CONTAINER: Steps = (
    ("container create --name one -l walk=cli -v cli-data:/data -e A=b -p 127.0.0.1::80 busybox sleep 600", 0, ID),
    ("container inspect --format '{{.State.Status}} {{.Path}} {{.Args}} {{.Config.Env}}' one",
     0, r"created sleep \[600\] \[A=b PATH=/bin\]\n"),
    ("container ls -a --filter name=one --format '{{.Names}} {{.Status}} {{.Image}} {{.Command}} {{.Labels}} {{.Mounts}}'", 0,
     'one Created busybox "sleep 600" walk=cli cli-data\n'),
    ("container start one", 0, "one\n"),
    ("container start one", 0, "one\n"),
    ("container port one 80", 0, r"127\.0\.0\.1:\d+\n"),
    ("container port one 81", 1, "(?i)error: no public port '81(/tcp)?' published for one"),
    ("container exec one sh -c 'echo $A; touch /made; exit 9'", 9, ""),
    ("container exec -u 1000:2000 -w /tmp -e X=y one sh -c 'id -u; id -g; pwd; echo $X'", 0, "1000\n2000\n/tmp\ny\n"),
    ("container exec -d one sh -c 'echo in the background > /later'", 0, ""),
    ("container exec one nothing-here", 127, "executable file.*not found in"),
    ("container diff one", 0, r"(?s)(.*\n)?A /made\n.*"),
    ("container cp one:/etc/passwd -", 0, r"(?s)passwd\0.*root:x:0:0.*"),
    ("container cp one:/nowhere .", 1, "(?i)could not find the file /nowhere|no such container:path: one:/nowhere"),
    ("container cp nobody:/x .", 1, "(?i)no such container(:path)?: nobody"),
    ("container logs one", 0, ""),
    ("container logs nobody", 1, "(?i)no such container: nobody"),
    ("container pause one", 0, "one\n"),
    ("container pause one", 1, "already paused"),
    ("container ls --filter name=one --format '{{.Status}}'", 0, r"Up .*\(Paused\)\n"),
    ("container exec one true", 1, "is paused, unpause the container before exec"),
    ("container unpause one", 0, "one\n"),
    ("container unpause one", 1, "is not paused"),
    ("container rename one two", 0, ""),
    ("container rename nobody three", 1, "(?i)no such container: nobody"),
    ("container stats --no-stream --format '{{.Name}} {{.PIDs}}' two", 0, r"two \d+\n"),
    ("container top two -o pid,args", 0, r"PID +COMMAND\n\d+ +sleep 600\n"),
    ("container update --memory 64m --memory-swap 64m --restart on-failure:3 two", 0, "two\n"),
    ("container inspect --format '{{.HostConfig.Memory}} {{.HostConfig.RestartPolicy}}' two",
     0, r"67108864 \{on-failure 3\}\n"),
    ("container rm two", 1, "(?i)container is running|cannot remove a running container"),
    ("container restart -t 0 two", 0, "two\n"),
    ("container commit -m message -a author -c 'CMD [\"cat\", \"/later\"]' two cli:committed", 0, SHA),
    ("container run --rm cli:committed", 0, "in the background\n"),
    ("container export two", 0, r"(?s).*bin/busybox.*"),
    ("container kill -s USR2 two", 0, "two\n"),
    ("container kill -s NOPE two", 1, "(?i)signal"),
    ("container stop -t 0 two", 0, "two\n"),
    ("container stop -t 0 two", 0, "two\n"),
    ("container kill two", 1, "is not running"),
    ("container wait two", 0, "137\n"),
    ("container attach two", 1, "(?i)cannot attach to a stopped container"),
    ("container start -a nobody", 1, "(?i)no such container: nobody"),
    ("container run --name three -l walk=cli busybox sh -c 'echo out; exit 3'", 3, ""),
    ("container start -a three", 3, ""),
    ("container logs --tail 1 three", 0, "out\n"),
    ("container run --rm --name two busybox true", 125, r'(?i)the container name "/two" is already in use'),
    ("container run --rm busybox /etc/passwd", 126, "permission denied"),
    ("container run --rm busybox nothing-here", 127, "executable file not found in \\$PATH"),
    ("container run --rm --network nowhere busybox true", 125, "network nowhere not found"),
    ("container run --rm -m 1m busybox true", 125, "(?i)minimum memory limit allowed is 6MB"),
    ("container run --rm --init --hostname there --add-host a.b:1.2.3.4 busybox sh -c 'hostname; grep -c 1.2.3.4 /etc/hosts'",
     0, "there\n1\n"),
    ("container run --rm -w /data -v cli-data:/data:ro busybox sh -c 'pwd; touch x'", 1, "Read-only file system"),
    ("container prune -f --filter label=walk=cli", 0, r"(?s)Deleted Containers:\n.*Total reclaimed space: .*\n"),
    ("container rm two", 1, "(?i)no such container: two"),
    ("container rm -f two", 0, ""),
)  # fmt: skip
IMAGE: Steps = (
    ("image build -q -t cli:built .", 0, SHA),
    ("image build -t cli:again .", 0, r"(?s).*Successfully built [0-9a-f]{12}\nSuccessfully tagged cli:again\n"),
    ("image build -t cli:none nowhere", 1, 'path "nowhere" not found'),
    ("run --rm cli:built", 0, "built\n"),
    ("image history -q --no-trunc cli:built", 0, rf"(?s){SHA}.*"),
    ("image inspect --format '{{.RepoTags}} {{.Os}} {{.Config.Cmd}}' cli:built", 0, r"\[.*cli:built.*\] linux \[cat /x\]\n"),
    ("image inspect nobody", 1, "(?i)no such image: nobody"),
    ("image ls --filter reference=cli --format '{{.Repository}}:{{.Tag}}'", 0, "(cli:(built|again|committed)\n){3}"),
    ("image tag cli:built cli:tagged", 0, ""),
    ("image tag nobody cli:x", 1, "(?i)no such image: nobody"),
    ("image save -o saved.tar cli:tagged", 0, ""),
    ("image rm cli:tagged", 0, r"Untagged: cli:tagged\n"),
    ("image load -q -i saved.tar", 0, "Loaded image: cli:tagged\n"),
    ("image load -i Dockerfile", 1, ""),
    ("image import --change 'CMD [\"true\"]' --message brought rootfs.tar cli:imported", 0, SHA),
    ("image push {registry}/cli/pushed:1", 1, "(?i)(tag|image|no such image).*"),
    ("image tag cli:built {registry}/cli/pushed:1", 0, ""),
    ("login -u wherry -p {token} {registry}", 0, "(?s).*Login Succeeded\n"),
    ("login -u wherry -p wrong {registry}", 1, "(?i)unauthorized"),
    ("image push {registry}/cli/pushed:1",
     0, r"(?s)The push refers to repository \[.*/cli/pushed\]\n.*1: digest: sha256:[0-9a-f]{64}.*\n"),
    ("image pull {registry}/cli/pushed:1",
     0, r"(?s)1: Pulling from cli/pushed\n.*Status: Image is up to date for .*/cli/pushed:1\n.*"),
    ("image rm {registry}/cli/pushed:1", 0, r"(?s)Untagged: .*"),
    ("image pull {registry}/cli/pushed:1", 0, r"(?s)1: Pulling from cli/pushed\n.*Status: Downloaded newer image for .*\n"),
    ("image pull {registry}/cli/nothing:1", 1, "(?i)not found|unknown"),
    ("logout {registry}", 0, "Removing login credentials for .*\n"),
    ("image rm {registry}/cli/pushed:1 cli:imported cli:tagged cli:again cli:committed", 0, r"(?s)(Untagged|Deleted): .*"),
    ("image rm nobody", 1, "(?i)no such image: nobody"),
    ("image prune -f", 0, r"(?s).*Total reclaimed space: .*\n"),
    ("builder prune -f", 0, r"(?s).*Total.*"),
)  # fmt: skip
NETWORK: Steps = (
    ("network create --label walk=cli --subnet 10.123.45.0/24 --gateway 10.123.45.1 cli", 0, ID),
    ("network create --subnet 10.123.45.0/25 cli-other", 1, "(?i)pool overlaps with other one on this address space"),
    ("network ls --filter label=walk=cli --format '{{.Name}} {{.Driver}} {{.Scope}}'", 0, "cli bridge local\n"),
    ("network inspect --format '{{.Name}} {{.Internal}} {{.IPAM.Config}}' cli",
     0, r"cli false \[\{10\.123\.45\.0/24 +10\.123\.45\.1 map\[\]\}\]\n"),
    ("network inspect nobody", 1, "(?i)(no such network: nobody|network nobody not found)"),
    ("run -d --name plug -l walk=cli busybox sleep 600", 0, ID),
    ("network connect --alias socket --ip 10.123.45.67 cli plug", 0, ""),
    ("network connect cli plug", 1, "(?i)already exists in network cli"),
    ("exec plug nslookup socket", 0, r"(?s).*10\.123\.45\.67.*"),
    ("network rm cli", 1, "(?i)has active endpoints"),
    ("network disconnect cli plug", 0, ""),
    ("network disconnect cli plug", 1, "(?i)is not connected to"),
    ("rm -f plug", 0, "plug\n"),
    ("network rm cli", 0, "cli\n"),
    ("network rm bridge", 1, "(?i)pre-defined network"),
    ("network create --label walk=cli cli", 0, ID),
    ("network prune -f --filter label=walk=cli", 0, "Deleted Networks:\ncli\n\n"),
)  # fmt: skip
VOLUME: Steps = (
    ("volume create --label walk=cli cli-made", 0, "cli-made\n"),
    ("volume create cli-made", 0, "cli-made\n"),
    ("volume create 'bad name'", 1, "(?i)bad name"),
    ("volume ls --filter label=walk=cli", 0, r"DRIVER +VOLUME NAME\nlocal +cli-made\n"),
    ("volume inspect --format '{{.Name}} {{.Driver}} {{.Scope}} {{.Labels}}' cli-made",
     0, r"cli-made local local map\[walk:cli\]\n"),
    ("volume inspect nobody", 1, "(?i)no such volume"),
    ("run --name holder -v cli-made:/v busybox sh -c 'echo x > /v/x'", 0, ""),
    ("volume rm cli-made", 1, "volume is in use"),
    ("rm holder", 0, "holder\n"),
    ("volume rm cli-made cli-data", 0, "cli-made\ncli-data\n"),
    ("volume rm nobody", 1, "(?i)no such volume"),
    ("volume prune -f --filter label=walk=cli", 0, "Total reclaimed space: 0B\n"),
)  # fmt: skip
SYSTEM: Steps = (
    ("version --format '{{.Server.Os}}'", 0, "linux\n"),
    ("system info --format '{{.OSType}} {{.LoggingDriver}} {{.Swarm.LocalNodeState}}'", 0, "linux json-file inactive\n"),
    ("system df",
     0, r"TYPE +TOTAL +ACTIVE +SIZE +RECLAIMABLE\nImages (.*\n)Containers (.*\n)Local Volumes (.*\n)Build Cache (.*\n)"),
    ("system df -v", 0, r"(?s)Images space usage:\n.*Containers space usage:\n.*"),
    ("system events --since 1 --until 1", 0, ""),
    ("ps --filter status=nothing", 1, "(?i)invalid filter"),
    ("system prune -f --filter label=walk=cli-nothing", 0, r"(?s).*Total reclaimed space: .*\n"),
    ("context create cli --docker host={host}", 0, "(?s).*cli\n.*"),
    ("context ls --format '{{.Name}}'", 0, "cli\ndefault\n"),
    ("--context cli ps -q --filter label=walk=cli", 0, ""),
    ("context inspect --format '{{.Name}}' cli", 0, "cli\n"),
    ("context rm cli", 0, "cli\n"),
    ("inspect nobody", 1, "(?i)no such object: nobody"),
    ("swarm leave", 1, "(?i)not part of a swarm|not a swarm manager"),
    ("node ls", 1, NO_MANAGER),
    ("service ls", 1, NO_MANAGER),
    ("secret ls", 1, NO_MANAGER),
    ("config ls", 1, NO_MANAGER),
)  # fmt: skip
GROUPS = {"container": CONTAINER, "image": IMAGE, "network": NETWORK, "volume": VOLUME, "system": SYSTEM}
ELSEWHERE = {"dial-stdio"}
"""Commands of the groups that are no requests of their own."""


@pytest.fixture(
    scope="module", params=[pytest.param(path, id=name) for name, path in DOCKERS.items() if Path(path).exists()]
)
def program(request: pytest.FixtureRequest, engine: Engine) -> Iterator[str]:
    yield request.param
    if left := engine.docker("ps", "-aq", "--filter", "label=walk=cli").split():
        engine.docker("rm", "-f", *left)
    engine.docker("rmi", "-f", "cli:built")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, engine: Engine) -> Path:
    """A directory with a Dockerfile and an archive of a root directory."""
    made = tmp_path_factory.mktemp("cli")
    (made / "Dockerfile").write_text('FROM busybox\nRUN echo built > /x\nCMD ["cat", "/x"]\n')
    (made / ".dockerignore").write_text("*.tar\n")
    (made / "rootfs.tar").write_bytes(Path(engine.home, "rootfs.tar").read_bytes())
    return made


@pytest.mark.parametrize("group", GROUPS)
def test_every_command_ends_and_answers_as_dockers_own(program: str, group: str, engine: Engine, place: Path) -> None:
    registry = engine.cluster.environment["WHERRY_REGISTRY"]
    token = Path(engine.cluster.root, "server", "registry-token").read_text().strip()
    wrong: list[str] = []
    for text, code, pattern in GROUPS[group]:
        words = shlex.split(
            text.replace("{registry}", registry).replace("{token}", token).replace("{host}", engine.host)
        )
        done = engine.run(program, *words, code=None, cwd=place)
        found = re.fullmatch(pattern, done.out) if code == 0 else re.search(pattern, done.err)
        if done.code != code or found is None:
            wrong.append(f"docker {text}: {done.code} {done.out[:300]!r} {done.err[-300:]!r}, not {code} {pattern!r}")
    assert wrong == []


@pytest.mark.parametrize("group", ["container", "image", "network", "volume", "system"])
def test_no_command_of_a_group_is_forgotten(program: str, group: str, engine: Engine) -> None:
    shown = engine.run(program, group, "--help").out.partition("\nCommands:\n")[2].partition("\n\n")[0]
    commands = {line.split()[0] for line in shown.splitlines()} - ELSEWHERE
    walked = {words[1] for text, _, _ in GROUPS[group] if (words := text.split())[0] == group}
    assert commands
    assert commands <= walked
