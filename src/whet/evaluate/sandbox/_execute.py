"""The script that runs a program and says that it came to its end. Run by `_enclose`, alone.

Standard input holds a ticket and then the program. The ticket goes out on the control pipe after
the program's last statement, and only then. While the program runs, the ticket is in no variable,
frame, function or module: the only reference is inside the iterator that the C code of `deque` is
consuming. What could look there (`gc`, tracing, hand-made bytecode) ends the run, and ctypes and
/proc are not there. An exception leaves `deque` before the next step, so nothing the program does
to the functions here makes a pass.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable
from functools import partial
from types import ModuleType

TICKET = 32
CONTROL = 3


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
    module = ModuleType("__main__")
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
    """The program, then the ticket. Nothing else keeps the ticket."""
    given = b"".join(iter(partial(os.read, 0, 1 << 16), b""))
    return partial(execute, given[TICKET:]), partial(os.write, CONTROL, given[:TICKET])


def call(step: Callable[[], object]) -> None:
    """Take one step."""
    step()


def flush() -> None:
    """What was printed goes out. The streams may be the program's own: nothing depends on them."""
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        try:
            stream.flush()  # type: ignore[union-attr]  # may be None
        except Exception:  # noqa: BLE001  # a closed or replaced stream raises anything
            continue


def main() -> None:
    """Read, run, end without exit handlers or finalisers."""
    watch()
    try:
        deque(map(call, steps()), maxlen=0)
    except BaseException:  # noqa: BLE001  # reported where it was raised
        flush()
        os._exit(1)
    flush()
    os._exit(0)


if __name__ == "__main__":
    main()
