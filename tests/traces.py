"""What an instance has on this machine, found without asking wherry: links, tables, rules, mounts, cgroups, processes."""

import hashlib
import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path


def identity(root: str | Path) -> str:
    """The eight hex digits of an instance's root."""
    return hashlib.sha256(os.path.realpath(root).encode()).hexdigest()[:8]


def processes(root: str | Path) -> dict[int, str]:
    """Living processes that name the instance's root or run directory in their command line, or are in its cgroup."""
    mine, found = identity(root), {}
    marks = (f"/{mine}", os.path.realpath(root))
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        with suppress(OSError):
            words = Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            groups = Path(f"/proc/{entry}/cgroup").read_text()
            if Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                continue  # it has ended; its parent has not looked yet
            is_ours = words.startswith(("/", "python")) and ("wherry" in words or "conmon" in words or "crun" in words)
            if f"wherry/{mine}" in groups or (
                is_ours and any(mark in words for mark in marks) and "pytest" not in words
            ):
                found[int(entry)] = words
    return found


def of_kernel(root: str | Path) -> list[str]:
    """Everything but processes and directories."""
    mine = identity(root)
    found = [f"link {name}" for name in os.listdir("/sys/class/net") if name.startswith(f"wh{mine}")]
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        target = line.split()[4]
        if f"/{mine}" in target or target.startswith(os.path.realpath(root)):
            found.append(f"mount {target}")
    for place in ("/sys/fs/cgroup", *(str(path) for path in Path("/sys/fs/cgroup").glob("*"))):
        if os.path.isdir(f"{place}/wherry/{mine}"):
            found.append(f"cgroup {place}/wherry/{mine}")
    if os.geteuid() == 0 and shutil.which("nft"):
        done = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, timeout=20, check=False)
        found += [f"nft {line.strip()}" for line in done.stdout.splitlines() if mine in line]
    with suppress(OSError):
        kept = (Path(root) / "instance.json").exists()  # whose state stays keeps its ranges: that is no trace
        for path in [] if kept else Path("/run/wherry/claims").rglob("*"):
            with suppress(OSError, UnicodeDecodeError):
                if path.is_file() and (mine in path.name or mine in path.read_text()):
                    found.append(f"claim {path}")
    return found


def traces(root: str | Path) -> list[str]:
    """Everything: nothing of it may be left after `down`; its root may, unless purged."""
    mine = identity(root)
    found = of_kernel(root) + [f"process {pid}: {words[:150]}" for pid, words in processes(root).items()]
    found += [
        f"directory {run / mine}"
        for run in (Path("/run/wherry"), Path(f"/tmp/wherry-{os.geteuid()}/wherry"))
        if (run / mine).exists()
    ]
    return found
