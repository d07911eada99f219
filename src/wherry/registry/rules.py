"""The life of an image, as rules of its repository. Pure: settings and images in, a verdict with its reason out.

Immutability forbids that a tag comes to mean another image; protection forbids that a tag, or its image, is deleted;
lifecycle rules say which images have had their time. A rule never takes an image of which a tag is outside the rule,
nor one that something kept refers to.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache

import msgspec

from wherry.content.protocol import Digest
from wherry.errors import Cause, Invalid

DAY_S = 86400.0
PATTERNS_MAX = 100


class TagPatterns(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel", forbid_unknown_fields=True):
    """Tags by shell pattern (`v*`), less the exceptions (`latest`)."""

    match: tuple[str, ...] = ()
    exceptions: tuple[str, ...] = ()

    def covers(self, tag: str) -> bool:
        """Say whether a tag is meant."""
        return any(fnmatchcase(tag, one) for one in self.match) and not any(
            fnmatchcase(tag, one) for one in self.exceptions
        )


class LifecycleRule(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel", forbid_unknown_fields=True):
    """Which images go. All conditions that are given must hold; at least one must be given unless `keep`.

    `tags` selects images all of whose tags match; `untagged` selects those without a tag. `keep` turns the rule round:
    an image with a matching tag always stays. `newest` images of the selection (by push) stay, those pushed within
    `pushed_days` stay, those pulled, tagged or pushed within `used_days` stay.
    """

    name: str
    tags: TagPatterns = TagPatterns()
    untagged: bool = False
    keep: bool = False
    newest: int | None = None
    pushed_days: float | None = None
    used_days: float | None = None


class RepositorySettings(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel", forbid_unknown_fields=True):
    """What a repository, or a template for new ones, says. `sparse` takes images whose blobs have not all been pushed."""

    immutable: TagPatterns = TagPatterns()
    protected: TagPatterns = TagPatterns()
    lifecycle: tuple[LifecycleRule, ...] = ()
    sparse: bool = False
    visibility: str = ""


@dataclass(frozen=True, slots=True)
class Image:
    """A manifest of a repository as the rules see it. Times in unix seconds, 0 for never."""

    digest: Digest
    tags: Sequence[str] = ()
    pushed: float = 0.0
    pulled: float = 0.0
    tagged: float = 0.0
    children: Sequence[Digest] = ()
    subject: str = ""
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Expiry:
    """An image that goes, and why. `rule` is "" for what goes with another image: its platforms and its referrers."""

    digest: Digest
    tags: Sequence[str]
    rule: str
    reason: str


def read_settings(data: bytes | str) -> RepositorySettings:
    """Read settings. Raises Invalid with the field."""
    try:
        settings = msgspec.json.decode(data, type=RepositorySettings)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _invalid("settings", f"settings: {error}") from None
    if settings.visibility not in ("", "public", "private"):
        raise _invalid("visibility", f"visibility {settings.visibility!r}: public or private")
    patterns = [*settings.immutable.match, *settings.protected.match, *settings.immutable.exceptions]
    if len(patterns) > PATTERNS_MAX or len(settings.lifecycle) > PATTERNS_MAX:
        raise _invalid("settings", f"settings: at most {PATTERNS_MAX} patterns and rules")
    for index, rule in enumerate(settings.lifecycle):
        where = f"lifecycle[{index}]"
        if not rule.tags.match and not rule.untagged:
            raise _invalid(f"{where}.tags", f"{where}: say which images: tags.match or untagged")
        if rule.keep and rule.untagged:
            raise _invalid(f"{where}.untagged", f"{where}: keep is for tags")
        if not rule.keep and rule.newest is None and rule.pushed_days is None and rule.used_days is None:
            raise _invalid(where, f"{where}: say what stays: newest, pushedDays or usedDays")
        if any(value is not None and value < 0 for value in (rule.newest, rule.pushed_days, rule.used_days)):
            raise _invalid(where, f"{where}: counts and days are not negative")
    return settings


@lru_cache(maxsize=1024)
def stored_settings(data: bytes | str) -> RepositorySettings:
    """Read settings that were checked when they were stored."""
    return msgspec.json.decode(data, type=RepositorySettings)


def expiring(images: Sequence[Image], settings: RepositorySettings, now: float) -> Sequence[Expiry]:
    """Say which images the lifecycle rules take, in order of digest."""
    chosen: dict[Digest, tuple[str, str]] = {}
    safe = {image.digest for image in images if _kept_always(image, settings)}
    for rule in settings.lifecycle:
        if not rule.keep:
            selected = [image for image in images if _selects(rule, image)]
            for digest, reason in _over(rule, selected, now):
                if digest not in safe:
                    chosen.setdefault(digest, (rule.name, reason))
    return going(images, chosen)


def going(images: Sequence[Image], chosen: Mapping[Digest, tuple[str, str]]) -> Sequence[Expiry]:
    """Say what really goes when `chosen` images (digest -> rule, reason) have had their time, in order of digest.

    What stays reaches its children, and the untagged referrers attached to it; all that is not reached goes.
    """
    known = {image.digest: image for image in images}
    parents = {child for image in images for child in image.children}
    attached: dict[str, list[Image]] = {}
    for image in images:
        if image.subject:
            attached.setdefault(image.subject, []).append(image)

    def stands(image: Image) -> bool:
        return bool(image.tags) or (image.digest not in parents and image.subject not in known)

    live: set[Digest] = set()
    pending = [image for image in images if stands(image) and image.digest not in chosen]
    while pending:
        image = pending.pop()
        if image.digest in live:
            continue
        live.add(image.digest)
        pending += [known[child] for child in image.children if child in known]
        pending += [one for one in attached.get(image.digest, ()) if not (one.tags and one.digest in chosen)]
    gone = sorted((image for image in images if image.digest not in live), key=lambda image: image.digest)
    return [Expiry(image.digest, image.tags, *chosen.get(image.digest, ("", "goes with its image"))) for image in gone]


def _kept_always(image: Image, settings: RepositorySettings) -> bool:
    keep = [rule.tags for rule in settings.lifecycle if rule.keep]
    return any(patterns.covers(tag) for patterns in (settings.protected, *keep) for tag in image.tags)


def _selects(rule: LifecycleRule, image: Image) -> bool:
    if not image.tags:
        return rule.untagged
    return all(rule.tags.covers(tag) for tag in image.tags)


def _over(rule: LifecycleRule, selected: Iterable[Image], now: float) -> Iterable[tuple[Digest, str]]:
    newest_first = sorted(selected, key=lambda image: (-image.pushed, image.digest))
    for rank, image in enumerate(newest_first):
        used = max(image.pulled, image.tagged, image.pushed)
        reasons: list[str] = []
        if rule.newest is not None:
            if rank < rule.newest:
                continue
            reasons.append(f"not among the newest {rule.newest}")
        if rule.pushed_days is not None:
            if now - image.pushed < rule.pushed_days * DAY_S:
                continue
            reasons.append(f"pushed {(now - image.pushed) / DAY_S:.1f} days ago")
        if rule.used_days is not None:
            if now - used < rule.used_days * DAY_S:
                continue
            reasons.append(f"last used {(now - used) / DAY_S:.1f} days ago")
        yield image.digest, "; ".join(reasons)


def _invalid(field: str, message: str) -> Invalid:
    return Invalid(message, causes=[Cause(field, "Invalid", message)])
