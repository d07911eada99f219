"""Keys: the same inputs give the same keys; what changes, changes exactly the keys from there on."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.builder.corpus import BASE

from wherry.builder import keys
from wherry.builder.graph import images, plan
from wherry.builder.ignore import Ignore
from wherry.builder.instructions import parse
from wherry.builder.operations import Copy
from wherry.builder.selection import digest, select
from wherry.builder.source import read
from wherry.builder.sourcing import digests
from wherry.builder.tree import Tree, tree_of
from wherry.content.oci import Platform

TEXT = """
FROM base
ARG FIRST=1
COPY a /a
RUN one
ENV E=$FIRST
COPY --chown={owner} d /d/
WORKDIR /w
LABEL l=1
COPY --from=other /bin/x /x
RUN two
"""
# keys after:   0 ARG 1 COPY a 2 RUN 3 ENV 4 COPY d 5 WORKDIR 6 LABEL 7 COPY --from 8 RUN
SIZE = 9


@dataclass(frozen=True)
class Inputs:
    """All that a build depends on."""

    base: str = "sha256:1"
    a: bytes = b"a"
    a_mode: int = 0o644
    d: Mapping[str, bytes] | None = None
    owner: str = "1:1"
    first: str = "1"
    other: str = "x"
    time: int = 1_000_000
    label: str = "1"


def keys_of(inputs: Inputs) -> list[str]:
    with TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "a").write_bytes(inputs.a)
        (root / "a").chmod(inputs.a_mode)
        (root / "d").mkdir()
        for name, data in (inputs.d or {"f": b"1"}).items():
            (root / "d" / name).write_bytes(data)
        for path in (root / "a", *(root / "d").iterdir(), root / "d"):
            os.utime(path, (inputs.time, inputs.time))
        tree: Tree = tree_of(root, Ignore())
        text = TEXT.format(owner=inputs.owner).replace("l=1", f"l={inputs.label}")
        dockerfile = parse(read(text))
        platform = Platform("amd64", "linux")
        args = {"FIRST": inputs.first}
        names = images(dockerfile, args=args, target="", platform=platform)
        stage = plan(dockerfile, args=args, target="", platform=platform, bases=dict.fromkeys(names, BASE)).stages[0]

        def content(operation: Copy) -> str:
            if operation.origin.image:
                return inputs.other
            sources = select(tree, operation.sources, lambda _: "")
            nodes = [node for source in sources for node in (source.node, *(each for _, each in source.below))]
            found, _ = digests([node.origin for node in nodes if isinstance(node.origin, Path)], {})
            return digest(sources, lambda node: found[node.origin], owners=False)  # type: ignore[index]

        return list(keys.keys(keys.base_key([inputs.base]), stage.operations, content))


def first_change(one: list[str], two: list[str]) -> int:
    """The first step whose key differs; all later ones must differ too."""
    differ = [a != b for a, b in zip(one, two, strict=True)]
    first = differ.index(True) if True in differ else SIZE
    assert all(differ[first:])
    return first


data = st.binary(max_size=20)
inputs = st.builds(
    Inputs,
    base=st.sampled_from(["sha256:1", "sha256:2"]),
    a=data,
    a_mode=st.sampled_from([0o644, 0o600, 0o755]),
    d=st.dictionaries(st.sampled_from(["f", "g", "h i"]), data, min_size=1, max_size=3),
    owner=st.sampled_from(["1:1", "1:2", "2"]),
    first=st.sampled_from(["1", "2"]),
    other=st.sampled_from(["x", "y"]),
)


@given(inputs, st.integers(0, 2_000_000_000), st.sampled_from(["1", "2"]))
@settings(max_examples=40, deadline=None)
def test_times_and_labels_are_in_no_key(given_inputs: Inputs, time: int, label: str) -> None:
    assert keys_of(given_inputs) == keys_of(replace(given_inputs, time=time, label=label))


@given(inputs, inputs)
@settings(max_examples=80, deadline=None)
def test_what_changes_changes_the_keys_from_there_on(one: Inputs, two: Inputs) -> None:
    expected = SIZE
    if one.other != two.other:
        expected = 7
    if one.owner != two.owner or one.d != two.d:
        expected = 4
    if one.first != two.first:
        expected = 2  # RUN sees the ARG; the COPY before it does not
    if one.a != two.a or one.a_mode != two.a_mode:
        expected = 1
    if one.base != two.base:
        expected = 0
    assert first_change(keys_of(one), keys_of(two)) == expected
