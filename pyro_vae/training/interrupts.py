"""Signals: Ctrl-C and SIGTERM are handled after a step, so that no step is left half done."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Interrupts:
    """Signals that came during a step.

    Arguments:
        received: The first one, if any.
    """

    received: int | None = None
    _before: dict[int, Any] = field(default_factory=dict)

    @contextmanager
    def deferred(self, *, also_sigterm: bool) -> Iterator[None]:
        """Inside the block a first Ctrl-C is recorded, and a second one raises at once.

        Only if Python's own handlers are in place, and only in the main thread, which receives
        signals.

        Arguments:
            also_sigterm: Whether SIGTERM is recorded too; it is sent again at the end.
        """
        if threading.current_thread() is threading.main_thread():
            self._take(signal.SIGINT, signal.default_int_handler)
            if also_sigterm:
                self._take(signal.SIGTERM, signal.SIG_DFL)
        try:
            yield
        finally:
            for number, handler in self._before.items():
                signal.signal(number, handler)
            self._before.clear()
            if self.received == signal.SIGTERM:
                signal.raise_signal(signal.SIGTERM)

    def _take(self, number: int, usual: Any) -> None:
        handler = signal.getsignal(number)
        if handler is usual:
            self._before[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: Any) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
