"""The script that runs a program and says that it came to its end. Run by `_enclose`, alone.

Standard input holds a ticket and then the program. The ticket goes out on the control pipe after
the program's last statement, and only then. While the program runs, the ticket is in no variable,
frame, function or module, and was copied nowhere: the only reference is inside the iterator that
the C code of `deque` is consuming. What could look there (`gc`, tracing, bytecode made by hand,
unmarshalled or read from a .pyc) ends the run, and ctypes and /proc are not there. An exception
leaves `deque` before the next step, so nothing the program does to the functions here makes a pass.

This is a hurdle and no proof: the ticket is in the memory of the process that runs the program, so
a program that turns a memory error of the interpreter into reads of its memory finds it (and from
Python 3.13 on, where the variables of a running frame can be set, one that interrupts the hook).
"""

from __future__ import annotations

import importlib
import os
import sys
import types
from collections import deque
from collections.abc import Callable
from functools import partial, wraps

TICKET = 32
CONTROL = 3
NO_FOLDER = "/dev/null/none"

COMMON = (
    "asyncio",
    "bisect",
    "collections",
    "copy",
    "dataclasses",
    "datetime",
    "decimal",
    "enum",
    "fractions",
    "functools",
    "hashlib",
    "heapq",
    "inspect",
    "itertools",
    "json",
    "math",
    "random",
    "re",
    "statistics",
    "string",
    "threading",
    "typing",
    "unittest",
)
"""Modules of many programs, loaded while Python may still take them from its cache."""


def prepare(program: bytes) -> None:
    """Make right programs work without what `watch` ends the run for.

    A cached module is marshalled code: those that the program names are loaded now, later ones are
    compiled from their source. `types.coroutine` (asyncio uses it) changes a function's code: here
    it wraps generator functions, as it does other callables. Turning tracing off (doctest does)
    does nothing.
    """
    importlib.import_module("zipimport")  # frozen, which is marshalled too
    letters = bytes(b if chr(b).isalnum() or b == ord("_") else ord(" ") for b in range(256))
    words = set(program.translate(letters).decode("latin-1").split())
    for name in COMMON:
        if name in words:
            try:
                importlib.import_module(name)
            except (ImportError, MemoryError):  # then the program meets it
                continue
    sys.pycache_prefix = NO_FOLDER
    types.coroutine = gentle_coroutine(types.coroutine)  # type: ignore[assignment]
    sys.settrace, sys.setprofile = unless_none(sys.settrace), unless_none(sys.setprofile)


def gentle_coroutine(genuine: Callable[..., object]) -> Callable[[object], object]:
    """`types.coroutine` that gives a generator function a wrapper, not changed code."""
    generator, done = 0x20, 0x180  # inspect.CO_GENERATOR; CO_COROUTINE, CO_ITERABLE_COROUTINE

    def coroutine(function: object) -> object:
        flags = getattr(getattr(function, "__code__", None), "co_flags", 0)
        if callable(function) and flags & generator and not flags & done:
            function = wraps(function)(partial(function))
        return genuine(function)

    return coroutine


def unless_none(genuine: Callable[..., None]) -> Callable[[object], None]:
    """A setter that does nothing for None, which is what is set."""

    def setter(function: object) -> None:
        if function is not None:
            genuine(function)

    return setter


def watch() -> None:
    """Install an audit hook that ends the run where a program looks for what is not its own.

    The hook is in no namespace, so that a program that walks to this module cannot reach it.
    """
    write, leave = os.write, os._exit

    def hook(event: str, args: object) -> None:
        if event in {
            "gc.get_objects",
            "gc.get_referents",
            "gc.get_referrers",
            "sys._current_frames",
            "sys._current_exceptions",
            "sys.settrace",
            "sys.setprofile",
            "code.__new__",
            "marshal.load",
            "marshal.loads",
            "ctypes.addressof",
            "ctypes.cdata",
            "ctypes.cdata/buffer",
            "ctypes.dlopen",
            "ctypes.dlsym",
            "ctypes.dlsym/handle",
            "ctypes.string_at",
            "ctypes.wstring_at",
        }:
            write(3, b"blocked " + event.encode() + b"\n")
            leave(1)

    sys.addaudithook(hook)


def execute(source: bytes) -> None:
    """Run the program as `__main__`. Whatever it raises is reported and raised on."""
    show, write = sys.__excepthook__, os.write
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    sys.argv = [""]
    try:
        exec(compile(source.decode(), "<program>", "exec", dont_inherit=True), module.__dict__)
    except AssertionError as error:
        write(CONTROL, b"fail AssertionError\n")
        show(type(error), own(error), error.__traceback__)
        raise
    except SystemExit:
        write(CONTROL, b"fail SystemExit\n")
        raise
    except MemoryError:
        write(CONTROL, b"memory MemoryError\n")
        raise
    except BaseException as error:
        write(CONTROL, b"error %a\n" % type(error).__name__[:100])
        show(type(error), own(error), error.__traceback__)
        raise


def own(error: BaseException) -> BaseException:
    """The exception without this script's own frame in its traceback."""
    trace = error.__traceback__
    return BaseException.with_traceback(error, trace and trace.tb_next)


def steps() -> tuple[Callable[[], object], ...]:
    """The program, then the ticket. Nothing else keeps the ticket.

    It is read by itself: what a longer text leaves behind in freed memory can be found from Python.
    """
    send = partial(os.write, CONTROL, os.read(0, TICKET))
    program = b"".join(iter(partial(os.read, 0, 1 << 16), b""))
    prepare(program)
    watch()
    return partial(execute, program), send


def call(step: Callable[[], object]) -> None:
    """Take one step."""
    try:
        step()
    except BaseException:  # reported where it was raised
        flush()
        raise


def flush() -> None:
    """What was printed goes out. The streams may be the program's own: nothing depends on them."""
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        try:
            stream.flush()  # type: ignore[union-attr]  # may be None
        except Exception:  # noqa: BLE001  # a closed or replaced stream raises anything
            continue


def main() -> None:
    """Read, run, end without exit handlers or finalisers.

    After a failure nothing that the program could have replaced is looked up here: the ticket has
    been freed by then, and freed memory can be read from Python.
    """
    leave = os._exit
    try:
        deque(map(call, steps()), maxlen=0)
        flush()
        leave(0)
    finally:
        leave(1)


if __name__ == "__main__":
    main()
