"""Every escape that the sandbox says it stops, tried; limits; callers of other kinds."""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.evaluate.sandboxes import enclosed, go, program, without_walls
from whet.errors import OptionError
from whet.evaluate.sandbox import Limits, run, run_code, run_many

__all__ = ["without_walls"]  # a fixture


def sandboxes(wall):
    """Ids of processes of runs with this wall time (no other run uses it)."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                command = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if b"_enclose.py" in command and b'"wall": %r' % wall in command:
                found.append(int(folder.name))
    return found


def in_namespace(kind, inode):
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if os.stat(folder / "ns" / kind).st_ino == inode:
                    found.append(int(folder.name))
            except OSError:
                continue
    return found


# --- walls ----------------------------------------------------------------------------------------


@enclosed
def test_files_of_the_caller_are_neither_seen_nor_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret").write_text("x")
    places = ["/etc/passwd", "/etc/shadow", str(tmp_path / "secret"), __file__, "/proc/self/maps"]
    result = go(
        f"""
        import os
        for place in {places!r}:
            assert not os.path.exists(place), place
        assert os.getcwd() == '/tmp' and os.listdir() == []
        open('mine', 'w').write('x')
        assert os.path.abspath('mine') == '/tmp/mine'
        for place in ('/new', '/etc/new', os.__file__, {str(tmp_path / "new")!r}, '/_execute.py'):
            try: open(place, 'w')
            except OSError: continue
            assert False, place
        for path in ('..', '../..'):
            assert sorted(os.listdir(path)) == sorted(os.listdir('/'))
        """
    )
    assert result.verdict == "pass", result.stderr
    assert sorted(os.listdir(tmp_path)) == ["secret"]
    assert not Path("/tmp/mine").exists()


@enclosed
def test_no_local_socket_and_no_address_can_be_reached(tmp_path):
    name = "\0whet-test-" + tmp_path.name
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as unix:
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        unix.bind(name)
        unix.listen()
        result = go(
            f"""
            import socket
            for kind, place in (
                (socket.AF_INET, {tcp.getsockname()!r}),
                (socket.AF_INET, ('192.0.2.1', 80)),
                (socket.AF_UNIX, {name!r}),
            ):
                with socket.socket(kind) as s:
                    try: s.connect(place)
                    except OSError: continue
                    assert False, place
            """
        )
    assert result.verdict == "pass", result.stderr


@enclosed
def test_environment_arguments_and_input_are_empty(monkeypatch):
    monkeypatch.setenv("WHET_SECRET", "x")
    result = go(
        """
        import os, sys
        assert sorted(os.environ) == ['OMP_NUM_THREADS', 'PATH'], os.environ
        assert sys.argv == [''] and sys.stdin.read() == ''
        try: input()
        except EOFError: pass
        else: assert False
        def is_open(fd):
            try: return bool(os.fstat(fd))
            except OSError: return False
        assert [fd for fd in range(256) if is_open(fd)] == [0, 1, 2, 3]
        assert os.uname().nodename == 'sandbox'
        """
    )
    assert result.verdict == "pass", result.stderr


@enclosed
def test_a_program_has_no_privilege_and_gets_none():
    result = go(
        """
        import os, resource, socket
        assert os.getuid() == os.geteuid() == os.getgid() == 1000
        def refused(call, *args):
            try: call(*args)
            except (OSError, ValueError): return True
        assert refused(os.setuid, 0) and refused(os.setgid, 0) and refused(os.chroot, '/')
        assert refused(os.setgroups, [0]) and refused(socket.sethostname, 'x')
        assert refused(os.nice, -5)
        assert refused(os.mknod, '/tmp/disk', 0o60600, os.makedev(254, 0))
        for name in ('NPROC', 'AS', 'CPU', 'FSIZE', 'NOFILE', 'CORE'):
            limit = getattr(resource, f'RLIMIT_{name}')
            soft, hard = resource.getrlimit(limit)
            assert hard != resource.RLIM_INFINITY
            assert refused(resource.setrlimit, limit, (hard + 1, hard + 1)), name
        for module in ('ctypes', '_ctypes', '_testcapi', '_xxsubinterpreters', 'numpy', 'pip'):
            try: __import__(module)
            except ImportError: continue
            assert False, module
        """
    )
    assert result.verdict == "pass", result.stderr


@enclosed
@pytest.mark.skipif(not Path("/proc/sys/vm/memfd_noexec").exists(), reason="kernel before 6.3")
def test_no_file_of_the_program_can_be_executed():
    result = go(
        """
        import os, shutil, sys
        fd = os.memfd_create('x')
        os.write(fd, open(sys.executable, 'rb').read(1 << 20))
        shutil.copyfile('/_execute.py', '/tmp/x')
        os.chmod('/tmp/x', 0o755)
        for what in (fd, '/tmp/x'):
            try: os.execve(what, ['x'], {})
            except PermissionError: continue
            assert False, what
        """,
        file_size=1 << 21,
    )
    assert result.verdict == "pass", result.stderr


@enclosed
def test_killing_everything_in_sight_harms_nobody_else():
    result = go(
        """
        import os, signal
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
            for target in (os.getppid(), 1, *range(3, 3000)):
                try: os.kill(target, number)
                except OSError: pass
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getppid(), signal.SIGKILL)
        assert os.getppid() == 1
        """
    )
    assert result.verdict == "pass", result.stderr
    groups = go("import os; os.kill(0, 9)")
    assert groups.verdict == "error"
    assert go("import os; os.kill(-1, 9)").verdict in ("pass", "error")


# --- bounds ---------------------------------------------------------------------------------------


@enclosed
def test_processes_and_threads_are_bounded():
    counting = """
        import os, time
        made = 0
        try:
            while made < 100:
                if os.fork() == 0: time.sleep(60); os._exit(0)
                made += 1
        except OSError: pass
        print(made)
        """
    assert 5 <= int(go(counting, processes=12).stdout) <= 10
    assert 15 <= int(go(counting, processes=24).stdout) <= 22
    threads = """
        import threading, time
        try:
            for i in range(200):
                threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        except RuntimeError: print('refused', i < 20)
        """
    assert go(threads, memory=4 << 30).stdout == "refused True\n"


@enclosed
def test_a_fork_bomb_ends_with_its_wall_time():
    result = go("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", wall=1.03)
    assert result.verdict == "timeout"
    assert gone(1.03)


@enclosed
@pytest.mark.parametrize(
    "ending",
    ["print('parent ends')", "import time; time.sleep(60)"],
)
def test_a_detached_grandchild_dies_with_the_run(ending):
    wall = 1.07
    bomb = """
        import os, time, signal
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                for n in range(1, 32):
                    try: signal.signal(n, signal.SIG_IGN)
                    except OSError: pass
                time.sleep(600)
            os._exit(0)
        os.wait()
        time.sleep(0.4)
        """
    inodes, started = set(), time.monotonic()
    done = threading.Thread(
        target=lambda: run_code(program(bomb) + ending, limits=Limits(wall=wall))
    )
    done.start()
    own = os.stat("/proc/self/ns/pid").st_ino
    while done.is_alive() and time.monotonic() - started < 30:
        for pid in sandboxes(wall):
            try:
                inodes.add(os.stat(f"/proc/{pid}/ns/pid").st_ino)
            except OSError:
                continue
        time.sleep(0.02)
    done.join()
    inodes.discard(own)
    assert inodes, "the run was seen"
    assert gone(wall)
    assert within_ten_seconds(lambda: not any(in_namespace("pid", i) for i in inodes))


def within_ten_seconds(condition):
    until = time.monotonic() + 10
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def gone(wall):
    """Whether every process of the runs with this wall time is dead."""
    return within_ten_seconds(lambda: not sandboxes(wall))


@enclosed
def test_the_sandbox_dies_with_a_caller_that_is_killed(tmp_path):
    wall = 59.01
    caller = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from whet.evaluate.sandbox import Limits, run_code\n"
            f"run_code('import time; time.sleep(50)', limits=Limits(wall={wall}))",
        ],
        env={**os.environ, "TMPDIR": str(tmp_path)},  # nobody is left to remove its folder
    )
    until = time.monotonic() + 60
    while len(sandboxes(wall)) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    assert sandboxes(wall)
    caller.kill()
    caller.wait()
    assert gone(wall)


BOUNDS = {
    "while True: pass": "timeout",
    "import time; time.sleep(60)": "timeout",
    "import signal\nfor n in (24, 15): signal.signal(n, 1)\nwhile True: pass": "timeout",
    "x = bytearray(10 ** 10)": "memory",
    "x = []\nwhile True: x.append(bytearray(1 << 20))": "memory",
    "import mmap; mmap.mmap(-1, 10 ** 10)": "error",
    "open('a', 'wb').write(bytes(1 << 22))": "error",
    "for i in range(100):\n    with open(str(i), 'wb') as f: f.write(bytes(1 << 20))": "error",
    "files = [open('/dev/null') for _ in range(100)]": "error",
    "for i in range(5000): open(str(i), 'w').close()": "error",
    "import os; os.abort()": "error",
}


@enclosed
def test_bounds_of_time_memory_and_files():
    results = run_many(list(BOUNDS), limits=Limits(wall=6.0, cpu=1, memory=128 << 20), workers=4)
    assert {t: r.verdict for t, r in zip(BOUNDS, results, strict=True)} == BOUNDS
    assert all(r.seconds < 30 for r in results)


@enclosed
def test_endless_output_is_cut_and_does_not_block():
    result = go("while True: print('x' * 1000)", wall=1.0, output=5000)
    assert result.verdict == "timeout"
    assert len(result.stdout) == 5000
    both = go(
        "import sys\nfor _ in range(1000):\n  print('o' * 999)\n  print('e' * 999, file=sys.stderr)"
    )
    assert both.verdict == "pass"
    assert (len(both.stdout), len(both.stderr)) == (64 << 10, 64 << 10)
    assert go("import os; os.write(3, b'x' * (1 << 20)); os._exit(0)").verdict == "error"


@enclosed
def test_a_program_larger_than_a_pipe_arrives_whole():
    text = "x = 0\n" + "x += 1\n" * 30000 + "assert x == 30000\n"
    assert len(text) > 3 * (64 << 10)
    assert go(text, cpu=9).verdict == "pass"


@enclosed
def test_what_is_printed_at_the_end_arrives_and_odd_text_is_an_error_or_runs():
    assert go("print('é', end='')").stdout == "é"
    assert go("x = '\ud800'").verdict in ("pass", "error")
    assert go("x = '\0'").verdict == "error"
    assert go("").verdict == "pass"
    assert go("import time\nprint(1)\nimport sys\nsys.stdout = None").stdout == "1\n"


@enclosed
def test_a_program_is_the_main_module_of_a_fresh_python():
    result = go(
        """
        import sys, pickle, dataclasses, typing
        assert __name__ == '__main__'
        class A: pass
        assert sys.modules['__main__'].A is A
        assert isinstance(pickle.loads(pickle.dumps(A())), A)
        assert sys.flags.isolated and sys.flags.no_site
        assert 'whet' not in sys.modules and 'traceback' not in sys.modules
        """
    )
    assert result.verdict == "pass", result.stderr


@enclosed
def test_an_exception_shows_the_program_and_not_the_sandbox():
    result = go("def f():\n    return 1 / 0\nf()")
    assert (result.verdict, result.reason) == ("error", "ZeroDivisionError")
    assert 'File "<program>", line 3, in <module>' in result.stderr
    assert "_execute" not in result.stderr


# --- without walls, and callers of other kinds ----------------------------------------------------


def test_missing_namespaces_are_refused_unless_waived(without_walls):
    with pytest.raises(OptionError, match="this test says so: --allow-unsandboxed-code runs them"):
        run_code("print(1)")
    with pytest.raises(OptionError, match="--allow-unsandboxed-code"):
        run_many(["print(1)"], workers=2)
    result = run_code("print(1)", allow_unsandboxed=True)
    assert (result.verdict, result.stdout) == ("pass", "1\n")


def test_without_walls_the_limits_still_hold(without_walls, monkeypatch):
    monkeypatch.setenv("WHET_SECRET", "x")
    texts = {
        "import os; assert 'WHET_SECRET' not in os.environ; open('a', 'w')": "pass",
        "assert False": "fail",
        "while True: pass": "timeout",
        "x = bytearray(10 ** 10)": "memory",
        "open('a', 'wb').write(bytes(1 << 22))": "error",
        "import os, time\nif os.fork(): pass\ntime.sleep(60)": "timeout",
    }
    before = set(Path("/tmp").glob("whet-run-*"))
    limits = Limits(wall=1.5, cpu=1)
    results = run_many(list(texts), limits=limits, allow_unsandboxed=True, workers=2)
    assert [r.verdict for r in results] == list(texts.values())
    assert set(Path("/tmp").glob("whet-run-*")) <= before


def test_without_walls_a_child_that_keeps_the_pipes_does_not_hold_the_run(without_walls):
    text = "import os, time\nif os.fork() == 0:\n    os.setsid(); time.sleep(8); os._exit(0)"
    result = run_code(text, limits=Limits(wall=6.0), allow_unsandboxed=True)
    assert result.verdict == "pass"
    assert result.seconds < 5


UNPRIVILEGED = """
import os, sys
from whet.evaluate.sandbox import Limits, _python, run
run.run_code('pass', allow_unsandboxed=True)  # imports all that is needed, while it can be read
_python.executable = run.executable = lambda: sys.argv[1]
_python.needs.cache_clear(); run.namespaces_available.cache_clear()
os.setgroups([]); os.setresgid(4321, 4321, 4321); os.setresuid(4321, 4321, 4321)
print(run.namespaces_available() or 'available')
texts = ['assert True', 'import os\\nassert os.getuid() == 1000\\nos.setuid(0)', 'while 1: pass',
         'import os\\nwhile True:\\n    os.fork()', 'open("/etc/passwd")']
for text in texts:
    print(run.run_code(text, limits=Limits(wall=3.0, cpu=1)).verdict)
"""


@enclosed
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_an_unprivileged_caller_gets_the_same_walls():
    python = os.path.realpath("/usr/bin/python3")
    sources = Path(run.__file__)
    if not os.path.exists(python) or any(not p.stat().st_mode & 1 for p in sources.parents):
        pytest.skip("no Python or no sources that another user may read")
    done = subprocess.run(
        [sys.executable, "-c", UNPRIVILEGED, python], capture_output=True, text=True, check=False
    )
    found = done.stdout.split()
    if found[:1] != ["available"]:
        pytest.skip(f"unprivileged users have no namespaces here: {done.stdout}")
    # The fork bomb is refused more processes (error) in some of its processes or runs on in all.
    assert found[1:4] == ["pass", "error", "timeout"], done.stderr
    assert found[4] in ("error", "timeout")
    assert found[5] == "error"


@enclosed
@pytest.mark.skipif(os.geteuid() != 0, reason="needs a caller that could make namespaces")
@pytest.mark.skipif(shutil.which("unshare") is None, reason="no unshare")
def test_a_system_without_namespaces_is_recognised_with_the_reason():
    asked = "from whet.evaluate.sandbox import namespaces_available as f; print(f())"
    without = 'echo 0 >/proc/sys/user/max_user_namespaces; exec "$@"'
    done = subprocess.run(
        ["unshare", "-Ur", "sh", "-c", without, "-", sys.executable, "-c", asked],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "making namespaces (user, mount, pid, network" in done.stdout


@pytest.mark.parametrize(
    "setting",
    [{"wall": 0}, {"wall": float("nan")}, {"cpu": 0}, {"memory": 1}, {"processes": 1}],
)
def test_limits_that_let_nothing_run_are_refused_by_name(setting):
    name = next(iter(setting))
    with pytest.raises(OptionError, match=f"^{name} is .*; a program needs at least "):
        Limits(**setting)


def test_limits_but_for_the_wall_time_are_whole_numbers():
    with pytest.raises(OptionError, match=r"^cpu is 1\.5; it must be a whole number"):
        Limits(cpu=1.5)
    assert Limits(wall=1.5).wall == 1.5


def test_workers_are_positive():
    with pytest.raises(OptionError, match="workers is 0; allowed is 1 or more"):
        run_many([], workers=0)
