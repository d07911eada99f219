"""What the next start makes of a row and what is there: the whole table of README.md. No root is needed."""

import msgspec
import pytest

from wherry.engine.adoption import Seen, Verdict, judge
from wherry.engine.records import ContainerRecord, Records, Stage
from wherry.engine.types import ContainerSpec, Exit, Limits, Mount, SandboxSpec
from wherry.errors import AlreadyExists
from wherry.host.processes import Identity

NOTHING, MONITOR, EXIT, BOTH = Seen(False, False), Seen(True, False), Seen(False, True), Seen(True, True)


def record(stage: Stage, *, acknowledged: bool = True, monitor: bool = True) -> ContainerRecord:
    return ContainerRecord(
        id="a" * 64,
        name="c",
        spec=ContainerSpec(
            "c", "i", limits=Limits(pids=3), mounts=[Mount("/x", "/y")], sandbox_spec=SandboxSpec("s", "h")
        ),
        stage=stage,
        sandbox="s",
        owns_sandbox=True,
        image_digest="sha256:1",
        image_id="sha256:2",
        layers=["sha256:3"],
        argv=["x"],
        created=1.5,
        log_path="/l",
        acknowledged=acknowledged,
        monitor=Identity("boot", 5, 6) if monitor else None,
        exit=Exit(3, 2.5, True, "e"),
    )


@pytest.mark.parametrize(
    ("stage", "acknowledged", "seen", "verdict"),
    [
        *[
            (stage, False, seen, Verdict.DISCARD)
            for stage in (Stage.INTENT, Stage.SPAWNED, Stage.CREATED)
            for seen in (NOTHING, MONITOR, EXIT)
        ],
        *[
            (stage, True, seen, Verdict.RESET)
            for stage in (Stage.INTENT, Stage.SPAWNED)
            for seen in (NOTHING, MONITOR, EXIT)
        ],
        *[
            (Stage.REMOVING, known, seen, Verdict.REMOVE)
            for known in (False, True)
            for seen in (NOTHING, MONITOR, EXIT)
        ],
        (Stage.CREATED, True, MONITOR, Verdict.WAITING),
        (Stage.CREATED, True, BOTH, Verdict.RESET),
        (Stage.CREATED, True, EXIT, Verdict.RESET),
        (Stage.CREATED, True, NOTHING, Verdict.RESET),
        (Stage.STARTING, True, Seen(True, False, "created"), Verdict.WAITING),
        (Stage.STARTING, True, Seen(True, False, "running"), Verdict.RUNNING),
        (Stage.STARTING, True, Seen(True, False, "stopped"), Verdict.RUNNING),
        (Stage.STARTING, True, BOTH, Verdict.ENDED),
        (Stage.STARTING, True, NOTHING, Verdict.LOST),
        (Stage.STARTED, True, MONITOR, Verdict.RUNNING),
        (Stage.STARTED, True, BOTH, Verdict.ENDED),
        (Stage.STARTED, True, EXIT, Verdict.ENDED),
        (Stage.STARTED, True, NOTHING, Verdict.LOST),
        (Stage.EXITED, True, NOTHING, Verdict.KEEP),
        (Stage.EXITED, True, BOTH, Verdict.KEEP),
    ],
)
def test_judgement(stage: Stage, acknowledged: bool, seen: Seen, verdict: Verdict) -> None:
    assert judge(record(stage, acknowledged=acknowledged), seen) is verdict


def test_created_without_a_run_is_kept() -> None:
    assert judge(record(Stage.CREATED, monitor=False), NOTHING) is Verdict.KEEP


def test_rows_come_back_as_they_went(tmp_path) -> None:  # type: ignore[no-untyped-def]
    records = Records(tmp_path / "engine.db")
    made = record(Stage.STARTED)
    records.put_container(made)
    with pytest.raises(AlreadyExists, match="'c'"):
        records.put_container(
            ContainerRecord(**{name: getattr(made, name) for name in made.__slots__} | {"id": "b" * 64})
        )
    records.close()
    again = Records(tmp_path / "engine.db")
    (found,) = again.containers()
    assert msgspec.json.encode(found) == msgspec.json.encode(made)
    again.drop_container(made.id)
    assert again.containers() == []
    again.close()
