"""What a container wrote becomes an unpacked layer as it stands, so that who builds on it need not unpack it again.

An overlay's upper directory and an unpacked layer say whiteouts and opaque directories by the same marks. Where the two could
differ all the same (attributes that a layer does not carry, names that only a layer gives a meaning) the answer is no.
"""

import os
import shutil
import stat
from collections.abc import Collection

from wherry.content.unpack import WHITEOUT

_ROOT_MODE = 0o755
_OWN = "trusted.overlay."
_FOREIGN = (f"{_OWN}redirect", f"{_OWN}metacopy")


def settle(upper: str, exclude: Collection[str]) -> bool:
    """Make an upper directory what its packed layer would unpack to; False where it cannot be, and nothing is changed.

    Nothing may be mounted on it any more. `exclude` are the mount points that the layer was packed without.
    """
    going: list[str] = []
    if not _is_plain(upper, "", frozenset(path.strip("/") for path in exclude), going):
        return False
    for path in going:
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)
    for name in os.listxattr(upper):
        os.removexattr(upper, name)
    os.chown(upper, 0, 0)
    os.chmod(upper, _ROOT_MODE)  # a layer says nothing of the root itself
    return True


def _is_plain(folder: str, below: str, exclude: Collection[str], going: list[str]) -> bool:
    """Say whether all in it is as a layer would give it, but for `going`: what the layer leaves out."""
    with os.scandir(folder) as found:
        entries = list(found)
    for entry in entries:
        path = f"{below}{entry.name}"
        mode = entry.stat(follow_symlinks=False).st_mode
        if path in exclude or stat.S_ISSOCK(mode):
            going.append(entry.path)
            continue
        if entry.name.startswith(WHITEOUT):
            return False
        carries = stat.S_ISREG(mode) or stat.S_ISDIR(mode)
        for name in os.listxattr(entry.path, follow_symlinks=False):
            if name.startswith(_OWN):
                if name in _FOREIGN:
                    return False
            elif not carries or not _is_carried(name):
                return False
        if stat.S_ISDIR(mode) and not _is_plain(entry.path, f"{path}/", exclude, going):
            return False
    return True


def _is_carried(name: str) -> bool:
    """Say whether a layer carries an attribute of a file: as content/pack does."""
    return name == "security.capability" or (name.startswith("user.") and not name.startswith("user.overlay."))
