"""The script around a program that is not trusted: namespaces, a private root, limits.

Run by `whet.evaluate.sandbox` as `python -I -S -B _enclose.py SETTINGS`; standard library only.
Three processes: outer (here; leaves the caller's namespaces), init (pid 1 of the new ones, builds
the root and gives up every privilege) and the program's own Python, a fresh image in which nothing
of the other two is left. When init ends, for whatever reason, the kernel kills all that is inside.

Records on the control pipe: "ready" or "setup WHY", then "end STATUS CPU", each after a mark that
the program's Python never sees, so that it cannot write one.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

# linux/sched.h, sys/mount.h, linux/prctl.h
_NAMESPACES = {
    "user": 0x10000000,
    "mount": 0x00020000,
    "pid": 0x20000000,
    "network": 0x40000000,
    "ipc": 0x08000000,
    "uts": 0x04000000,
    "cgroup": 0x02000000,
}
_NOSUID, _NODEV, _NOEXEC, _BIND, _REC, _PRIVATE = 2, 4, 8, 1 << 12, 1 << 14, 1 << 18
_READ_ONLY = 1
_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE, _DETACH = 442, -100, 0x8000, 2
_PDEATHSIG, _CAPBSET_DROP, _NO_NEW_PRIVS = 1, 24, 38
_CAPABILITIES_VERSION = 0x20080522

_INSIDE = 1000  # the program's uid and gid
_NOBODY = 65534  # what they are outside where the caller is root, whom RLIMIT_NPROC never binds
_CONTROL = 3  # the control pipe, as the program's Python finds it


class SetupError(Exception):
    """A step that did not work, in words."""


def call(what: str, function: Callable[..., int], *args: Any) -> None:
    """A C function that gives 0 or -1 with errno. Errors: SetupError naming `what`."""
    if function(*args) == -1:
        number = ctypes.get_errno()
        raise SetupError(f"{what} failed ({os.strerror(number)})")


def put(path: str, text: str) -> None:
    """Write a file of /proc in one write. Errors: SetupError."""
    try:
        fd = os.open(path, os.O_WRONLY)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise SetupError(f"writing {path} failed ({error.strerror})") from error


def try_put(path: str, text: str) -> None:
    """The same for a second line of defence, which older kernels do not have."""
    try:
        put(path, text)
    except SetupError:
        return


def leave_namespaces(libc: ctypes.CDLL) -> None:
    """Move this process to new namespaces; its children are in the new pid namespace."""
    flags = sum(_NAMESPACES.values())
    names = ", ".join(_NAMESPACES)
    uid, gid = os.geteuid(), os.getegid()
    if uid != 0:
        call(f"making namespaces ({names})", libc.unshare, flags)
        put("/proc/self/setgroups", "deny")
        put("/proc/self/uid_map", f"{_INSIDE} {uid} 1\n")
        put("/proc/self/gid_map", f"{_INSIDE} {gid} 1\n")
        return
    # To map a second uid takes a privilege outside, which this process is about to lose.
    wait, go = os.pipe()
    outer, helper = os.getpid(), os.fork()
    if helper == 0:
        os.close(go)
        try:
            if os.read(wait, 1):
                map_from_outside(outer)
        finally:
            os._exit(0)
    os.close(wait)
    try:
        call(f"making namespaces ({names})", libc.unshare, flags)
        os.write(go, b"1")
    finally:
        os.close(go)
        os.waitpid(helper, 0)
    if os.getuid() not in (0, _INSIDE):
        raise SetupError(f"mapping uid {_NOBODY} failed")


def map_from_outside(pid: int) -> None:
    """Give a process of a root caller root's own id for the set-up and nobody's for the program.

    In a container that has one uid only, its root is no root of the machine: that one will do.
    """
    for name in ("uid_map", "gid_map"):
        try:
            put(f"/proc/{pid}/{name}", f"0 0 1\n{_INSIDE} {_NOBODY} 1\n")
        except SetupError:
            try_put(f"/proc/{pid}/{name}", f"{_INSIDE} 0 1\n")


def mount(libc: ctypes.CDLL, source: str, target: str, kind: str, flags: int, data: str) -> None:
    """mount(2). Errors: SetupError."""
    words = [w.encode() or None for w in (source, target, kind)]
    call(f"mounting {target}", libc.mount, *words, ctypes.c_ulong(flags), data.encode() or None)


def restrict(libc: ctypes.CDLL, target: str, flags: int, recursive: int = _AT_RECURSIVE) -> None:
    """Set attributes of a mount and of all mounts under it (mount_setattr(2), Linux 5.12)."""
    attributes = (ctypes.c_uint64 * 4)(flags, 0, 0, 0)
    call(
        f"making {target} read-only",
        libc.syscall,
        ctypes.c_long(_MOUNT_SETATTR),
        _AT_FDCWD,
        target.encode(),
        ctypes.c_uint(recursive),
        attributes,
        ctypes.c_size_t(ctypes.sizeof(attributes)),
    )


def build_root(libc: ctypes.CDLL, settings: dict[str, Any]) -> None:
    """Make `settings["root"]` (an empty folder) the root: read-only but for a small /tmp."""
    root = settings["root"]
    mount(libc, "none", "/", "", _REC | _PRIVATE, "")
    mount(libc, "tmpfs", root, "tmpfs", _NOSUID | _NODEV, "size=1m,mode=755")
    for path, target in settings["links"]:
        os.makedirs(os.path.dirname(root + path), exist_ok=True)
        os.symlink(target, root + path)
    for path, inside in settings["binds"]:
        place = root + inside
        if os.path.isdir(path):
            os.makedirs(place, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(place), exist_ok=True)
            os.close(os.open(place, os.O_CREAT | os.O_WRONLY, 0o644))
        mount(libc, path, place, "", _BIND | _REC, "")
        device = path.startswith("/dev/")
        restrict(libc, place, _READ_ONLY | _NOSUID | (_NOEXEC if device else _NODEV))
    for path in settings["hidden"]:  # a folder becomes empty, a file becomes one without content
        if os.path.isdir(path):
            mount(libc, "tmpfs", root + path, "tmpfs", _READ_ONLY | _NOEXEC, "size=4k")
        else:
            mount(libc, "/dev/null", root + path, "", _BIND, "")
    os.mkdir(f"{root}/tmp")
    room = f"size={settings['disk']},nr_inodes=1024,mode=777"
    mount(libc, "tmpfs", f"{root}/tmp", "tmpfs", _NOSUID | _NODEV | _NOEXEC, room)
    restrict(libc, root, _READ_ONLY | _NOSUID | _NODEV, 0)
    # Nothing inside may make namespaces of its own, nor run a file that exists in memory only.
    try_put("/proc/sys/user/max_user_namespaces", "0")
    try_put("/proc/sys/vm/memfd_noexec", "2")
    os.chdir(root)
    call("changing the root", libc.pivot_root, b".", b".")
    call("leaving the old root", libc.umount2, b".", _DETACH)
    os.chdir("/tmp")


def drop_privileges(libc: ctypes.CDLL, was_root: bool) -> None:
    """No capability, none to be had again, and (for a root caller) another user."""
    for capability in range(64):
        if libc.prctl(_CAPBSET_DROP, capability, 0, 0, 0) == -1:
            if ctypes.get_errno() == errno.EINVAL:
                break  # past the last one this kernel knows
            raise SetupError("giving up capabilities failed")
    if was_root:
        with contextlib.suppress(PermissionError):  # a container of one uid may not
            os.setgroups([])
        os.setresgid(_INSIDE, _INSIDE, _INSIDE)
        os.setresuid(_INSIDE, _INSIDE, _INSIDE)
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES_VERSION, 0)
    call("giving up capabilities", libc.capset, header, (ctypes.c_uint32 * 6)())
    call("forbidding new privileges", libc.prctl, _NO_NEW_PRIVS, 1, 0, 0, 0)


def set_limits(settings: dict[str, Any], enclosed: bool) -> None:
    """Limits of the program and of each process it starts; hard limits can never be raised."""
    cpu = settings["cpu"]
    wanted = {
        "RLIMIT_CPU": (cpu, cpu + 1),
        "RLIMIT_AS": (settings["memory"], settings["memory"]),
        "RLIMIT_FSIZE": (settings["file_size"], settings["file_size"]),
        "RLIMIT_NOFILE": (settings["open_files"], settings["open_files"]),
        "RLIMIT_CORE": (0, 0),
        "RLIMIT_MEMLOCK": (0, 0),
        "RLIMIT_MSGQUEUE": (0, 0),
    }
    if enclosed:
        # Counted per user namespace since Linux 5.14. Outside one, all processes of the user
        # would count, and those of root never would.
        wanted["RLIMIT_NPROC"] = (settings["processes"], settings["processes"])
    for name, (soft, hard) in wanted.items():
        number = getattr(resource, name, None)
        if number is None:
            continue
        ceiling = resource.getrlimit(number)[1]
        if ceiling != resource.RLIM_INFINITY:
            soft, hard = min(soft, ceiling), min(hard, ceiling)
        resource.setrlimit(number, (soft, hard))


def say(settings: dict[str, Any], words: str) -> None:
    """Write a record."""
    os.write(settings["control"], f"{settings['mark']} {words}\n".encode())


def die_with_parent(libc: ctypes.CDLL) -> None:
    """Be killed when the parent is. A change of user or of namespaces clears this."""
    if sys.platform == "linux":
        libc.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def run(libc: ctypes.CDLL, settings: dict[str, Any], enclosed: bool) -> None:
    """Start the program's Python, wait for it, report how it ended."""
    program = os.fork()
    if program == 0:
        try:
            die_with_parent(libc)
            set_limits(settings, enclosed)
            os.dup2(settings["control"], _CONTROL, inheritable=True)
            environment = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
            os.execve(settings["command"][0], settings["command"], environment)
        except (OSError, ValueError) as error:
            say(settings, f"setup starting Python inside failed ({error})")
        finally:
            os._exit(1)
    os.close(0)
    while True:
        pid, status, usage = os.wait4(-1, 0)
        if pid == program:
            break
    say(settings, f"end {status} {usage.ru_utime + usage.ru_stime:.3f}")


def init(libc: ctypes.CDLL, settings: dict[str, Any], alive: int, was_root: bool) -> None:
    """What pid 1 of the namespaces does. alive: a pipe that ends when the outer process does."""
    try:
        os.setsid()
        call("naming the host", libc.sethostname, b"sandbox", 7)
        build_root(libc, settings)
        drop_privileges(libc, was_root)
        die_with_parent(libc)
        os.set_blocking(alive, False)
        try:
            os.read(alive, 1)
            return  # the outer process was killed before this one could notice
        except BlockingIOError:
            os.close(alive)
        say(settings, "ready")
        run(libc, settings, enclosed=True)
    except (SetupError, OSError) as error:
        say(settings, f"setup {error}")


def main() -> None:
    """Read the settings, enclose, run."""
    settings = json.loads(sys.argv[1])
    os.set_inheritable(settings["control"], False)
    os.umask(0o022)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # pid 1 gets no signal it has no handler for
    libc = ctypes.CDLL(None, use_errno=True)
    was_root = os.geteuid() == 0
    if not settings["enclosed"]:
        die_with_parent(libc)
        os.chdir(settings["root"])
        say(settings, "ready")
        run(libc, settings, enclosed=False)
        return
    try:
        leave_namespaces(libc)
    except SetupError as error:
        say(settings, f"setup {error}")
        return
    die_with_parent(libc)
    if os.getppid() != settings["caller"]:
        return
    alive, held = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(held)
            init(libc, settings, alive, was_root)
        finally:
            os._exit(0)
    for fd in (0, 1, 2, settings["control"]):
        os.close(fd)
    os.waitpid(child, 0)
    os._exit(0)  # the standard streams are closed


if __name__ == "__main__":
    main()
