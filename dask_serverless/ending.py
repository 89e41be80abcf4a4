"""While executors are being ended, nothing is launched: it would be ended with them."""

from __future__ import annotations

from collections.abc import Callable


class Ending:
    """Tells whether executors are being ended, and has others wait for the end of that.

    Examples
    --------
    >>> ending, begun = Ending(), []
    >>> with ending, ending:
    ...     ending.afterwards(lambda: begun.append(1))
    ...     print(begun)
    []
    >>> begun
    [1]
    """

    def __init__(self) -> None:
        self._times = 0  # as often as it has been begun and has not ended
        self._later: list[Callable[[], None]] = []

    def begin(self) -> None:
        """Note that executors are about to be ended."""
        self._times += 1

    def end(self) -> None:
        """Note that they have ended; once nobody ends any more, what has waited begins."""
        self._times -= 1
        if not self._times:
            later, self._later = self._later, []
            for call in later:
                call()

    def __enter__(self) -> None:
        self.begin()

    def __exit__(self, *error: object) -> None:
        self.end()

    def afterwards(self, call: Callable[[], None]) -> None:
        """Call this as soon as no executors are being ended."""
        if self._times:
            self._later.append(call)
        else:
            call()
