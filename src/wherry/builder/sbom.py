"""What packages are in an image, as an SPDX 2.3 document: those of dpkg, apk and Python that the files themselves tell of.

Nothing else is looked for: programs copied in, and packages of other languages, are not in the list, and the document says so.
Source: SPDX 2.3; deb-control(5), "status"; Alpine, "apk spec"; Python packaging, "Core metadata".
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wherry.builder.config import Json
from wherry.builder.layers import Listings, fetch
from wherry.builder.selection import Source
from wherry.clock import rfc3339
from wherry.content.protocol import Content, Digest

PREDICATE_TYPE = "https://spdx.dev/Document"
COMMENT = (
    "Packages that dpkg, apk and Python (dist-info, egg-info) have recorded in the image. Nothing else was looked for."
)
_DPKG = re.compile(r"var/lib/dpkg/status(?:\.d/[^/]+(?<!\.md5sums))?")
_APK = "lib/apk/db/installed"
_PYTHON = re.compile(r"(?:.*/)?[^/]+\.(?:dist-info/METADATA|egg-info/PKG-INFO)")
_FILE_MAX_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True, order=True)
class Package:
    """A package: `kind` deb, apk or pypi; `file` is the record that tells of it."""

    kind: str
    name: str
    version: str
    architecture: str = ""
    license: str = ""
    distribution: str = ""
    file: str = ""

    @property
    def purl(self) -> str:
        """Its package URL. Source: package-url/purl-spec."""
        name = re.sub(r"[-_.]+", "-", self.name).lower() if self.kind == "pypi" else self.name
        space = f"{self.distribution or ('debian' if self.kind == 'deb' else 'alpine')}/" if self.kind != "pypi" else ""
        more = f"?arch={self.architecture}" if self.architecture else ""
        return f"pkg:{self.kind}/{space}{_quoted(name)}@{_quoted(self.version)}{more}"


async def packages(content: Content, listings: Listings, layers: Sequence[str], scratch: Path) -> Sequence[Package]:
    """Read the records of an image's files. Raises Damaged, NotFound."""
    tree = await listings.tree([Digest(layer) for layer in layers])
    wanted: dict[str, Source] = {}
    for path, node in tree.walk(""):
        is_record = _DPKG.fullmatch(path) or path == _APK or _PYTHON.fullmatch(path)
        if node.kind == "file" and node.size <= _FILE_MAX_BYTES and (is_record or path in _RELEASES):
            wanted[path] = Source(path, node, ())
    texts: dict[str, str] = {}
    for source in await fetch(content, list(wanted.values()), scratch):
        if isinstance(source.node.origin, Path):
            texts[source.name] = source.node.origin.read_text(errors="replace")
    return read(texts)


def read(texts: Mapping[str, str]) -> Sequence[Package]:
    """The packages that records (text by path) tell of. Pure."""
    distribution = ""
    for path in _RELEASES:
        found = re.search(r'^ID="?([a-z0-9._-]+)', texts.get(path, ""), re.MULTILINE)
        distribution = distribution or (found[1] if found else "")
    made: set[Package] = set()
    for path, text in texts.items():
        if _DPKG.fullmatch(path):
            for row in _stanzas(text):
                if "installed" in row.get("Status", "installed").split() and row.get("Package"):
                    made.add(_package("deb", row, ("Package", "Version", "Architecture", ""), distribution, path))
        elif path == _APK:
            for row in _stanzas(text):
                if row.get("P"):
                    made.add(_package("apk", row, ("P", "V", "A", "L"), distribution, path))
        elif _PYTHON.fullmatch(path):
            row = next(_stanzas(text), {})
            if row.get("Name"):
                made.add(_package("pypi", row, ("Name", "Version", "", "License-Expression"), "", path))
    return sorted(made)


def document(found: Sequence[Package], name: str, digest: str, created: float) -> Json:
    """The SPDX document of an image. `created` in unix seconds."""
    rows: list[Json] = []
    links: list[Json] = [_link("SPDXRef-DOCUMENT", "DESCRIBES", "SPDXRef-Image")]
    rows.append(
        {"SPDXID": "SPDXRef-Image", "name": name, "versionInfo": digest, "downloadLocation": "NOASSERTION",
         "filesAnalyzed": False, "primaryPackagePurpose": "CONTAINER", "licenseConcluded": "NOASSERTION",
         "licenseDeclared": "NOASSERTION", "copyrightText": "NOASSERTION"}
    )  # fmt: skip
    for number, each in enumerate(found):
        id = f"SPDXRef-Package-{each.kind}-{re.sub(r'[^A-Za-z0-9.-]', '-', each.name)}-{number}"
        rows.append(
            {"SPDXID": id, "name": each.name, "versionInfo": each.version, "downloadLocation": "NOASSERTION",
             "filesAnalyzed": False, "licenseConcluded": "NOASSERTION",
             "licenseDeclared": "NOASSERTION", "copyrightText": "NOASSERTION", "sourceInfo": f"recorded in /{each.file}",
             **({"licenseComments": f"declared as: {each.license}"} if each.license else {}),
             "externalRefs": [{"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": each.purl}]}
        )  # fmt: skip
        links.append(_link("SPDXRef-Image", "CONTAINS", id))
    return {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": name,
        "documentNamespace": f"https://wherry.invalid/spdx/{digest.replace(':', '-')}",
        "comment": COMMENT,
        "creationInfo": {"created": rfc3339(created), "creators": ["Tool: wherry"]},
        "packages": rows,
        "relationships": links,
    }


_RELEASES = ("etc/os-release", "usr/lib/os-release")


def _package(kind: str, row: Mapping[str, str], keys: Sequence[str], distribution: str, path: str) -> Package:
    name, version, architecture, license = (row.get(key, "") for key in keys)
    return Package(kind, name, version, architecture, license, distribution, path)


def _stanzas(text: str) -> Iterator[dict[str, str]]:
    """Blocks of `Key: value` rows; continued rows are left out."""
    row: dict[str, str] = {}
    for line in text.splitlines():
        if not line.strip():
            if row:
                yield row
            row = {}
        elif line[0] not in " \t":
            key, _, value = line.partition(":")
            row.setdefault(key, value.strip())
    if row:
        yield row


def _quoted(text: str) -> str:
    from urllib.parse import quote

    return quote(text, safe="~.-_:")


def _link(one: str, kind: str, other: str) -> Json:
    return {"spdxElementId": one, "relationshipType": kind, "relatedSpdxElement": other}
