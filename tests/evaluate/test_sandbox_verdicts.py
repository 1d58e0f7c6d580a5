"""Right verdicts for twenty programs, and no pass for any program that cheats."""

import pytest

from tests.evaluate.sandboxes import SHORT, enclosed, go, program, without_walls
from whet.evaluate.sandbox import run_many

__all__ = ["without_walls"]  # a fixture

# --- twenty small programs, each judged rightly --------------------------------------------------

CHECK_ABS = "\ndef check(f):\n    assert f(-3) == 3\n    assert f(2) == 2\ncheck(absolute)\n"
CHECK_SORT = (
    "\ndef check(f):\n    assert f([3, 1, 2]) == [1, 2, 3]\n    assert f([]) == []\ncheck(s)\n"
)
TWENTY = [
    ("def absolute(x):\n    return x if x > 0 else -x", CHECK_ABS, "pass"),
    ("def absolute(x):\n    return max(x, -x)", CHECK_ABS, "pass"),
    ("import math\ndef absolute(x):\n    return math.isqrt(x * x)", CHECK_ABS, "pass"),
    ("def s(a):\n    print('sorting', a)\n    return sorted(a)", CHECK_SORT, "pass"),
    (
        "def s(a):\n    if len(a) < 2:\n        return list(a)\n    p, *r = a\n"
        "    return s([x for x in r if x < p]) + [p] + s([x for x in r if x >= p])",
        CHECK_SORT,
        "pass",
    ),
    (
        "from dataclasses import dataclass\nfrom collections import namedtuple\n"
        "@dataclass\nclass P:\n    x: int\nQ = namedtuple('Q', 'y')\n"
        "def absolute(x):\n    return abs(P(x).x) + Q(0).y",
        CHECK_ABS,
        "pass",
    ),
    (
        "import threading\ndef absolute(x):\n    out = []\n"
        "    t = threading.Thread(target=lambda: out.append(abs(x)))\n"
        "    t.start(); t.join()\n    return out[0]",
        CHECK_ABS,
        "pass",
    ),
    ("def absolute(x):\n    return x", CHECK_ABS, "fail"),
    ("def s(a):\n    a.sort()", CHECK_SORT, "fail"),
    ("def s(a):\n    return sorted(a, reverse=True)", CHECK_SORT, "fail"),
    ("def absolute(x):\n    return y", CHECK_ABS, "error"),
    ("def absolute(x)\n    return x", CHECK_ABS, "error"),
    ("def absolute(x):\n    return absolute(x)", CHECK_ABS, "error"),
    ("def wrong_name(x):\n    return abs(x)", CHECK_ABS, "error"),
    ("def absolute(x):\n    while True: pass", CHECK_ABS, "timeout"),
    ("def s(a):\n    return [0] * 10 ** 10", CHECK_SORT, "memory"),
    ("import sys\ndef absolute(x):\n    sys.exit(0)", CHECK_ABS, "fail"),
    ("import os\ndef absolute(x):\n    os._exit(0)", CHECK_ABS, "fail"),
    ("def absolute(x):\n    print('pass')\n    raise SystemExit", CHECK_ABS, "fail"),
    ("import gc\ndef absolute(x):\n    return gc.get_objects()", CHECK_ABS, "blocked"),
]


@enclosed
@pytest.mark.parametrize("workers", [1, 4])
def test_twenty_programs_get_the_right_verdicts_whatever_the_workers(workers):
    programs = [f"{code}\n{tests}" for code, tests, _ in TWENTY]
    results = run_many(programs, workers=workers, limits=SHORT)
    assert [r.verdict for r in results] == [verdict for *_, verdict in TWENTY]
    assert results[3].stdout == "sorting [3, 1, 2]\nsorting []\n"


# --- a pass that is not earned -------------------------------------------------------------------

CHEATS = {
    "exit": "import sys; sys.exit(0)",
    "exit at once": "import os; os._exit(0)",
    "quit": "raise SystemExit(0)",
    "killed": "import os; os.kill(os.getpid(), 9)",
    "replaced by another image": (
        "import os, sys; os.execv(sys.executable, [sys.executable, '-c', 'print(1)'])"
    ),
    "markers": (
        "import os\n"
        "for word in (b'pass\\n', b'ready\\n', b'0' * 32 + b' ready\\n', b'end 0 0.000\\n'):\n"
        "    for fd in range(1, 64):\n"
        "        try: os.write(fd, word)\n"
        "        except OSError: pass\n"
        "os._exit(0)"
    ),
    "exit handler": (
        "import atexit, os\natexit.register(os._exit, 0)\n"
        "atexit.register(os.write, 3, b'pass\\n')\nraise SystemExit"
    ),
    "finaliser": (
        "import os\nclass A:\n    def __del__(self): os.write(3, b'pass\\n'); os._exit(0)\n"
        "a = A()\ndel a"
    ),
    "hooks": (
        "import os, sys\nsys.excepthook = sys.unraisablehook = lambda *a: os._exit(0)\nassert False"
    ),
    "builtins replaced": (
        "import builtins\n"
        "for name in ('BaseException', 'AssertionError', 'SystemExit', 'MemoryError', 'map'):\n"
        "    setattr(builtins, name, int)\n"
        "assert False"
    ),
    "builtins gone": "import builtins\nvars(builtins).clear()\nassert False",
    "print replaced": (
        "import builtins, sys\nbuiltins.print = lambda *a, **k: None\n"
        "builtins.exec = builtins.compile = print\nassert False"
    ),
    "stdout closed": "import os, sys\nsys.stdout.close()\nos.close(1)\nassert False",
    "control closed": "import os\nos.closerange(3, 64)\nassert False",
    "everything caught": ("import sys\nsys.modules.clear()\nclass E(BaseException): pass\nraise E"),
    "end of iteration": "raise StopIteration",
    "end of a generator": "raise GeneratorExit",
    "script's functions replaced": """
        import sys
        frame = sys._getframe()
        while frame:
            names = frame.f_globals
            for name in ('execute', 'call', 'own', 'flush'):
                if hasattr(names.get(name), '__code__'):
                    names[name].__code__ = (lambda *a: None).__code__
            for name in ('os', 'deque', 'map', 'partial'):
                names[name] = lambda *a, **k: None
            if 'show' in frame.f_locals:
                frame.f_locals['show'] = lambda *a: None
            frame = frame.f_back
        assert False
        """,
    "a second start": """
        import os, sys
        frame = sys._getframe()
        while frame.f_back:
            frame = frame.f_back
        try: frame.f_globals['main']()
        finally: os._exit(0)
        """,
    "a signal between the steps": """
        import signal, time
        signal.signal(signal.SIGALRM, lambda *a: None)
        signal.setitimer(signal.ITIMER_REAL, 0.0001, 0.0001)
        time.sleep(0.01)
        assert False
        """,
    "a child that goes on": """
        import os
        if os.fork() == 0:
            raise SystemExit
        os.wait()
        assert False
        """,
    "tracing": """
        import sys
        def jump(frame, event, arg):
            frame.f_trace = jump
            return jump
        sys._getframe().f_trace = jump
        sys.settrace(jump)
        assert False
        """,
    "another interpreter's sys": """
        import sys
        del sys.modules['sys']
        import sys
        sys._current_frames()
        assert False
        """,
    "hand-made bytecode": """
        def f(): return 1
        f.__code__ = f.__code__.replace(co_consts=())
        assert False
        """,
}


@enclosed
def test_no_cheat_passes():
    results = run_many([program(text) for text in CHEATS.values()], limits=SHORT, workers=2)
    assert {n: r.verdict for n, r in zip(CHEATS, results, strict=True) if r} == {}
    verdicts = {n: r.verdict for n, r in zip(CHEATS, results, strict=True)}
    assert {verdicts[n] for n in ("exit", "quit", "exit at once", "stdout closed")} == {"fail"}
    assert {verdicts[n] for n in ("tracing", "hand-made bytecode")} == {"blocked"}
    assert verdicts["another interpreter's sys"] == "blocked"


# Code that reads behind its own variables: the first value on the stack of the script's `main` is
# the iterator that holds the ticket. Made for CPython 3.11; each way to load it must be stopped.
BEHIND = """
import importlib.util, io, marshal, opcode, os, sys
def template(): return None
def text():
    words, frame = 0, sys._getframe(1)
    while True:
        code = frame.f_code
        names = len(code.co_varnames) + len(code.co_cellvars) + len(code.co_freevars)
        words += 9 + names + code.co_stacksize
        if code.co_name == 'main': break
        frame = frame.f_back
    digits = ((code.co_nlocals + 2 - words) % 2 ** 32).to_bytes(4, 'big')
    op = opcode.opmap
    steps = [op['RESUME'], *[op['EXTENDED_ARG']] * 3, op['LOAD_FAST'], op['RETURN_VALUE']]
    new = bytes(sum(zip(steps, (0, *digits, 0)), ()))
    old = template.__code__.co_code
    old, new = (len(t).to_bytes(4, 'little') + t for t in (old, new))
    made = marshal.dumps(template.__code__)
    assert made.count(old) == 1
    return made.replace(old, new)
def header(time=0): return importlib.util.MAGIC_NUMBER + bytes(4) + time.to_bytes(4, 'little')
"""
LOADS = {
    "marshal.loads": "made = marshal.loads(text())",
    "marshal.load": "made = marshal.load(io.BytesIO(text()))",
    "a frozen module": "import _imp\nmade = _imp.get_frozen_object('m', text())",
    "a module without source": """
open('m.pyc', 'wb').write(header() + bytes(4) + text())
from importlib.machinery import SourcelessFileLoader
made = SourcelessFileLoader('m', 'm.pyc').get_code('m')
""",
    "a cache of modules": """
from importlib.machinery import SourceFileLoader
sys.pycache_prefix = '/tmp/cache'
open('m.py', 'w').close()
place = importlib.util.cache_from_source('/tmp/m.py')
os.makedirs(os.path.dirname(place))
open(place, 'wb').write(header(int(os.stat('m.py').st_mtime)) + bytes(4) + text())
made = SourceFileLoader('m', '/tmp/m.py').get_code('m')
""",
    "code.replace": "made = template.__code__.replace(co_code=template.__code__.co_code)",
    "CodeType": """
new = type(template.__code__)
made = new(*[0] * 5, 67, b'', *[()] * 3, *[''] * 3, 1, b'', b'')
""",
}
FORGE = """
type(template)(made, {})().__reduce__()[1][1].__reduce__()[1][0][1]()
os._exit(0)
"""


@enclosed
def test_no_way_to_load_bytecode_that_reads_behind_its_variables_passes():
    texts = [f"{BEHIND}{way}{FORGE}" for way in LOADS.values()]
    results = run_many(texts, limits=SHORT, workers=2)
    assert {n: r.verdict for n, r in zip(LOADS, results, strict=True)} == dict.fromkeys(
        LOADS, "blocked"
    )


@enclosed
def test_nothing_of_a_program_that_failed_runs_once_the_secret_is_freed():
    result = go(
        """
        import atexit, builtins, os, sys
        def late(*args): os.write(2, b'LATE'); os._exit(1)
        class Late:
            _exit = write = late
            def __del__(self): late()
        kept = Late()
        atexit.register(late)
        frame = sys._getframe()
        while frame.f_back:
            frame = frame.f_back
        frame.f_globals['os'] = kept
        builtins.BaseException = int
        os.write(2, b'EARLY')
        assert False
        """
    )
    assert result.verdict == "fail"
    assert "EARLY" in result.stderr
    assert "LATE" not in result.stderr


# --- a right program passes, whatever of the standard library it needs ----------------------------

RIGHT = {
    "usual imports": "import asyncio, dataclasses, collections, typing, re, functools, enum",
    "modules that are not loaded beforehand": (
        "import csv, logging, ntpath, pickle, runpy, site, tempfile, traceback, unittest.mock\n"
        "import concurrent.futures, importlib.util, urllib.parse, zipimport"
    ),
    "their use": """
        import collections, dataclasses, enum, functools, re, typing
        @dataclasses.dataclass(frozen=True, slots=True, order=True)
        class P:
            x: int
            y: typing.List[int] = dataclasses.field(default_factory=list)
        Q = collections.namedtuple('Q', 'a b', defaults=[2])
        class T(typing.NamedTuple):
            a: typing.Optional[int] = None
        class C(enum.Flag):
            A = enum.auto()
            B = enum.auto()
        @functools.singledispatch
        def f(x): return 'any'
        @f.register
        def _(x: int): return 'int'
        assert P(1) < P(2) and Q(1).b == 2 and T().a is None and (C.A | C.B).value == 3
        assert f(1) == 'int' and f('') == 'any' and re.sub('(a)', r'\\1b', 'a') == 'ab'
        """,
    "tasks that take turns": """
        import asyncio
        seen = []
        async def work(n):
            for i in range(2):
                seen.append((i, n))
                await asyncio.sleep(0)
            return n
        async def main(): return await asyncio.gather(work(1), work(2))
        assert asyncio.run(main()) == [1, 2]
        assert seen == [(0, 1), (0, 2), (1, 1), (1, 2)]
        """,
    "asyncio under another name": """
        a = __import__('async' 'io')
        async def main():
            await a.sleep(0)
            return await a.wait_for(a.sleep(0.01, 3), 5)
        assert a.run(main()) == 3
        """,
    "generators as coroutines": """
        import types
        @types.coroutine
        def ask(q):
            'Asks.'
            return (yield q)
        async def main(): return await ask(1) + await ask(2)
        it = main()
        assert it.send(None) == 1 and it.send(10) == 2 and ask.__name__ == 'ask'
        try: it.send(20)
        except StopIteration as end: assert end.value == 30
        """,
    "doctest": """
        import doctest
        def f():
            '''
            >>> f()
            1
            '''
            return 1
        done = doctest.testmod()
        assert (done.attempted, done.failed) == (1, 0)
        """,
    "unittest": """
        import unittest
        class T(unittest.TestCase):
            def test(self): self.assertEqual(1, 1)
        assert unittest.main(argv=['x'], exit=False).result.wasSuccessful()
        """,
}


@enclosed
def test_a_right_program_passes_whatever_of_the_standard_library_it_needs():
    results = run_many([program(text) for text in RIGHT.values()], limits=SHORT, workers=2)
    wrong = {n: (r.reason, r.stderr) for n, r in zip(RIGHT, results, strict=True) if not r}
    assert wrong == {}


def test_no_cheat_on_the_verdict_passes_without_walls(without_walls):
    names = ("exit", "markers", "exit handler", "script's functions replaced", "hooks")
    results = run_many([program(CHEATS[n]) for n in names], limits=SHORT, allow_unsandboxed=True)
    assert not any(results)


# What a program would do that looks for 32 hexadecimal digits in all it can reach.
SEARCH = """
import os, re, sys
found, seen = [], set()
def look(value, depth=0):
    if id(value) in seen or depth > 6: return
    seen.add(id(value))
    if isinstance(value, (bytes, bytearray)): value = value.decode('latin-1')
    if isinstance(value, str):
        found.extend(re.findall('(?<![0-9a-f])[0-9a-f]{32}', value))
    elif isinstance(value, dict):
        for item in list(value.items()): look(item, depth + 1)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for item in list(value): look(item, depth + 1)
    else:
        for name in ('__dict__', '__closure__', '__code__', '__defaults__', '__kwdefaults__',
                     'co_consts', 'cell_contents', 'args', 'keywords', 'func', '__self__'):
            try: look(getattr(value, name), depth + 1)
            except Exception: pass
frame = sys._getframe()
while frame:
    look(dict(frame.f_locals)); look(dict(frame.f_globals)); look(frame.f_code)
    frame = frame.f_back
look(sys.modules); look(sys.argv); look(sys.orig_argv); look(dict(os.environ))
for fd in range(3):
    try: look(os.read(fd, 1 << 16) if fd == 0 else b'')
    except OSError: pass
for folder, _, names in os.walk('/'):
    if folder.startswith(('/usr', '/root', '/lib', '/opt', '/home')): continue
    for name in names:
        if folder != '/dev':
            try: look(open(os.path.join(folder, name), 'rb').read())
            except OSError: pass
print('found', found)
"""


@enclosed
def test_a_search_of_frames_modules_arguments_files_and_stdin_finds_no_secret():
    result = go(SEARCH)
    assert result.verdict == "pass", result.stderr
    assert result.stdout == "found []\n"
    # The search does find what is to be found.
    planted = go("secret = partial = [{'a': ('0123456789abcdef' * 2).encode()}]\n" + SEARCH)
    assert "0123456789abcdef" in planted.stdout
