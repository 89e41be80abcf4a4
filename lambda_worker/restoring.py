"""What the proxy has stored for executors, and can store again: segments, constants, outfits.

Who misses a part of it (its shard has died), or finds it spoiled, says so, and looks again for a while.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, TypeVar

from lambda_worker.constants import Constants
from lambda_worker.core.errors import Tampered, ValueLost
from lambda_worker.core.wire import Ref

T = TypeVar("T")

#: For how long what is missing may come back. The proxy may have to plan a large graph once more.
RESTORE_SECONDS_MAX = 60.0
PAUSE_SECONDS_MAX = 1.0
ASK_AGAIN_SECONDS = 5.0


def until_restored(
    read: Callable[[], T], ask: Callable[[], bool | None], seconds: float = RESTORE_SECONDS_MAX, pause: float = 0.02
) -> T:
    """Read; if something is missing or spoiled, ask for it to be stored again, and read until it has been.

    Raises
    ------
    ValueLost, Tampered
        When it was not restored in time, or at once when nobody hears who asks (`ask` returns False).

    Examples
    --------
    >>> store = {}
    >>> def read():
    ...     if "segment" not in store:
    ...         raise ValueLost("segment 0 is not there")
    ...     return store["segment"]
    >>> until_restored(read, ask=lambda: store.update(segment=b"restored"))
    b'restored'
    """
    try:
        return read()
    except (ValueLost, Tampered):
        if ask() is False:
            raise
    deadline = time.monotonic() + seconds
    ask_again = time.monotonic() + ASK_AGAIN_SECONDS
    while True:
        try:
            return read()
        except (ValueLost, Tampered) as error:
            if time.monotonic() > ask_again:  # what was stored may have been lost once more
                ask_again += ASK_AGAIN_SECONDS
                if ask() is False:
                    raise
            if time.monotonic() + pause > deadline:
                raise ValueLost(
                    f"{error}, and was not stored again within {seconds:.0f} s. Compute what needs it once more; "
                    "if that does not help, close this cluster and start another"
                ) from None
        time.sleep(pause)
        pause = min(2 * pause, PAUSE_SECONDS_MAX)


class Restored:
    """Constants that are waited for.

    Parameters
    ----------
    constants
        Reads them.
    ask
        Asks for what is missing to be stored again, by its name.
    """

    def __init__(self, constants: Constants, ask: Callable[[str], bool | None]) -> None:
        self._constants = constants
        self._ask = ask

    @property
    def nbytes_max(self) -> int:
        """How many bytes of constants a job may have open, at most."""
        return self._constants.nbytes_max

    def value(self, ref: Ref) -> Any:
        """Make a constant: a new object each time."""
        read = functools.partial(self._constants.value, ref)
        return until_restored(read, functools.partial(self._ask, ref.name))
