"""Being asked to stop: Ctrl-C (SIGINT) and SIGTERM wait for the running step and its checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """The signal that asked the run to stop, None while nobody has."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def leave(self) -> None:
        """End the process's work the way the signal asks for, once all is saved.

        Errors: KeyboardInterrupt after SIGINT, SystemExit (128 + number) after another signal.
        """
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signal is not None:
            raise SystemExit(128 + self.signal)


@contextmanager
def stop_on_signal(*, patient: bool = False) -> Iterator[StopRequest]:
    """Note the first SIGINT or SIGTERM instead of obeying it at once; a second one is obeyed.

    patient: a second one is not either. torchrun passes a Ctrl-C on that its processes have
    already got from the terminal.

    Signals that the process ignores stay ignored. Outside the main thread, where Python takes no
    handlers, nothing changes.
    """
    request = StopRequest()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if threading.current_thread() is not threading.main_thread():
        before = {}
    # A handler that was not set from Python (None) cannot be put back: it is left in place.
    before = {n: h for n, h in before.items() if h not in (None, signal.SIG_IGN)}

    def put_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        request.signal = number
        if not patient:
            put_back()

    for number in before:
        signal.signal(number, note)
    try:
        yield request
    finally:
        put_back()
