"""An upper directory that is kept as a layer is what its packed layer unpacks to; where it would not be, it is left alone."""

import os
import socket
import stat
from pathlib import Path

import pytest

from wherry.clock import RealClock
from wherry.content.local import LocalContent
from wherry.content.pack import pack_upper
from wherry.content.unpack import OPAQUE, unpack_here
from wherry.engine.uppers import settle

pytestmark = pytest.mark.root


def filled(upper: Path) -> Path:
    """What a container may leave, all of it that a layer can say."""
    (upper / "d/opaque/in").mkdir(parents=True)
    os.setxattr(upper / "d/opaque", OPAQUE, b"y")
    os.setxattr(upper / "d", "trusted.overlay.impure", b"y")
    os.mknod(upper / "d/gone", stat.S_IFCHR, os.makedev(0, 0))
    os.mknod(upper / "null", stat.S_IFCHR | 0o640, os.makedev(1, 3))
    os.mkfifo(upper / "pipe", 0o600)
    (upper / "file").write_text("file")
    os.chown(upper / "file", 7, 8)
    (upper / "file").chmod(0o4711)
    os.setxattr(upper / "file", "user.a", b"1")
    os.link(upper / "file", upper / "d/hard")
    (upper / "link").symlink_to("/not/there")
    os.lchown(upper / "link", 3, 4)
    upper.chmod(0o700)
    return upper


def seen(root: Path) -> dict[str, object]:
    """All of a tree that a container could see, but for times within a second."""
    found: dict[str, object] = {}
    inodes: dict[int, str] = {}
    for path in [root, *sorted(root.rglob("*"))]:
        name, now = str(path.relative_to(root)), path.lstat()
        kept = [each for each in os.listxattr(path, follow_symlinks=False) if each in (OPAQUE, "user.a")]
        text = path.read_text() if stat.S_ISREG(now.st_mode) else os.readlink(path) if path.is_symlink() else ""
        when = 0 if path == root else int(now.st_mtime)
        same = name if stat.S_ISDIR(now.st_mode) else inodes.setdefault(now.st_ino, name)
        found[name] = (now.st_mode, now.st_uid, now.st_gid, now.st_rdev, when, same, text, kept)
    return found


async def test_it_is_what_its_layer_unpacks_to(tmp_path: Path) -> None:
    upper = filled(tmp_path / "upper")
    (upper / "mounted").mkdir()
    (upper / "mounted/below").touch()
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(upper / "socket"))
    content = LocalContent.open(tmp_path / "content", clock=RealClock())
    lease = await content.lease(seconds=60)
    layer = await pack_upper(content, upper, lease=lease, exclude=["/mounted"])
    fresh = tmp_path / "fresh"
    fresh.mkdir(mode=0o755)
    assert unpack_here(content.path(layer.digest), fresh).diff_id == layer.diff_id
    assert settle(str(upper), ["/mounted"])
    assert seen(upper) == seen(fresh)
    listening.close()
    await content.close()


@pytest.mark.parametrize("kind", ["whiteout's name", "attribute", "attribute of a link", "moved directory"])
def test_what_a_layer_would_say_otherwise_is_left_alone(tmp_path: Path, kind: str) -> None:
    upper = filled(tmp_path / "upper")
    (upper / "mounted").mkdir()
    match kind:
        case "whiteout's name":
            (upper / "d/.wh.file").touch()
        case "attribute":
            os.setxattr(upper / "d/opaque/in", "trusted.other", b"1")
        case "attribute of a link":
            os.setxattr(upper / "link", "trusted.other", b"1", follow_symlinks=False)
        case _:
            os.setxattr(upper / "d", "trusted.overlay.redirect", b"/x")
    before = seen(upper)
    assert not settle(str(upper), ["mounted"])
    assert seen(upper) == before
