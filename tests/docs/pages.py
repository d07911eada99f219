"""The pages of the documentation as tests read them: fenced blocks, links, commands."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")])

_FENCE = re.compile(r"^```(.*?)\n(.*?)^```$", re.S | re.M)
_LINK = re.compile(r"(?<!\!)\[[^\]]*\]\(([^)\s]+)\)")
_COMMAND = re.compile(r"(?:^|[`(|;&$]|\bbin/)\s*wherry ([a-z]+)", re.M)


@dataclass(frozen=True)
class Block:
    """A fenced block. `info` is what follows the backquotes: `sh`, `sh run`, `sh run root`, `python`, `text` ..."""

    info: str
    text: str


def blocks(page: Path) -> Sequence[Block]:
    """All fenced blocks, in order."""
    return [Block(match[1].strip(), match[2]) for match in _FENCE.finditer(page.read_text())]


def script(page: Path) -> tuple[str, bool]:
    """What a reader of the page types, as one script, and whether it needs root; "" when nothing of it is run.

    Blocks are marked `sh run` (a cluster of simulated nodes is enough) or `sh run root` (real containers).
    """
    found = [each for each in blocks(page) if each.info.split()[:2] == ["sh", "run"]]
    return "\n".join(each.text for each in found), any("root" in each.info.split() for each in found)


def links(page: Path) -> Sequence[str]:
    """The targets of all links outside of fenced blocks."""
    return _LINK.findall(_FENCE.sub("", page.read_text()))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as forges make them."""
    heads = re.findall(r"^#+ (.+)$", _FENCE.sub("", page.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", head.strip().lower()).replace(" ", "-") for head in heads}


def commands(page: Path) -> set[str]:
    """The commands of wherry that a page tells people to type: in fenced shell blocks and in code within lines."""
    text = page.read_text()
    shell = "\n".join(each.text for each in blocks(page) if each.info.split()[:1] == ["sh"])
    inline = "\n".join(re.findall(r"`([^`\n]+)`", _FENCE.sub("", text)))
    found: set[str] = set()
    for line in (shell + "\n" + inline).splitlines():
        found |= set(_COMMAND.findall(line.split("#")[0]))
    return found
