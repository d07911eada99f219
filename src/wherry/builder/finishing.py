"""The end of a build: an image, or an index of several with what is said of them, under its names."""

import secrets as random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wherry.builder import provenance, sbom
from wherry.builder.config import Json
from wherry.builder.context import Context
from wherry.builder.documents import Statement, put_attestation, put_image, put_index
from wherry.builder.exchange import Row
from wherry.builder.graph import of_image_key
from wherry.builder.layers import Listings
from wherry.builder.operations import Copy, is_git, is_url
from wherry.builder.planning import Planned
from wherry.builder.running import BuildEngine
from wherry.builder.wanted import Wanted, epoch_of
from wherry.clock import Clock
from wherry.content.oci import Descriptor, Platform
from wherry.content.protocol import Content
from wherry.engine.types import Image


@dataclass(frozen=True, slots=True)
class Made:
    """What came out for one platform: the image, what the cache knows of its steps, and the commits that were added."""

    planned: Planned
    config: Json
    layers: Sequence[str]
    rows: Sequence[Row]
    target_rows: Sequence[Row]
    commits: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Finisher:
    """Makes the image of one build."""

    engine: BuildEngine
    content: Content
    listings: Listings
    clock: Clock
    ask: Wanted
    files: Context
    lease: str
    scratch: Path
    began: float

    async def image(self, made: Sequence[Made], names: Sequence[str]) -> Image:
        """Make an image of what came out, or an index: of several platforms, or with what is said of them beside."""
        ask, attest = self.ask, self.ask.attest
        if len(made) == 1 and not (attest.sbom or attest.provenance):
            return await self.engine.commit_image(
                made[0].config, made[0].layers, names, annotations=ask.annotations or None
            )
        found: list[Descriptor] = []
        beside: list[Descriptor] = []
        for number, each in enumerate(made):
            platform = each.planned.plan.stages[-1].platform
            image = await put_image(self.content, each.config, each.layers, ask.annotations, platform, self.lease)
            found.append(image)
            said = await self._said(each, image, platform, self.scratch / f"said-{number}")
            if said:
                subjects = [f"pkg:docker/{tag}?platform={str(platform).replace('/', '%2F')}" for tag in ask.tags]
                beside.append(await put_attestation(self.content, image, subjects, said, self.lease))
        root = await put_index(self.content, [*found, *beside], ask.annotations, self.lease)
        return await self.engine.name_root(root, names)

    async def _said(self, made: Made, image: Descriptor, platform: Platform, scratch: Path) -> list[Statement]:
        ask, attest = self.ask, self.ask.attest
        said: list[Statement] = []
        if attest.sbom:
            scratch.mkdir()
            packages = await sbom.packages(self.content, self.listings, made.layers, scratch)
            when = epoch_of(ask.args)
            name = ask.tags[0] if ask.tags else "image"
            text = sbom.document(packages, name, image.digest, self.began if when is None else when)
            said.append(Statement(sbom.PREDICATE_TYPE, text))
        if attest.provenance:
            text = provenance.predicate(
                self._facts(made, platform), whole=attest.provenance == "max", version=attest.version
            )
            said.append(Statement(provenance.TYPES[attest.version], text))
        return said

    def _facts(self, made: Made, platform: Platform) -> provenance.Facts:
        ask, files, began = self.ask, self.files, self.began
        epoch = epoch_of(ask.args)
        target = made.planned.platform
        bases: dict[tuple[str, str], str] = {}
        for key, image in made.planned.images.items():
            name, of = of_image_key(key, target)
            bases[name, str(of)] = image.root or image.digest
        adds = [
            (one, text)
            for stage in made.planned.plan.stages
            for one in stage.operations
            if isinstance(one, Copy) and one.is_add
            for text in one.sources
        ]
        commits = {text: made.commits[text] for _, text in adds if text in made.commits}
        return provenance.Facts(
            images=bases,
            commits={**commits, **{each.url: each.commit for each in made.planned.contexts.values() if each.commit}},
            context=files.url,
            commit=files.commit,
            entry=files.name,
            target=ask.target,
            platform=str(platform),
            args=ask.args,
            labels=ask.labels,
            dockerfile=files.dockerfile,
            started=began if epoch is None else epoch,
            finished=self.clock.now() if epoch is None else epoch,
            urls={text: one.checksum for one, text in adds if is_url(text) and not is_git(text)},
            secrets=list(ask.secrets),
            agents=list(ask.agents),
            builder=ask.attest.builder_id,
            invocation=random.token_hex(16) if epoch is None else "",
        )
