"""Who may be a client: one whose pickles executors can read.

The stock scheduler only warns of versions that differ. Of most it is right to: but a function pickled
by another minor version of Python, or another major version of cloudpickle, fails in an executor in
ways that name neither (a segmentation fault among them). Such a client is refused when it connects.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distributed import Scheduler
from distributed.comm import Comm
from distributed.versions import get_versions


def refusal(client: Mapping[str, Any] | None, cluster: Mapping[str, Any]) -> str:
    """Say why a client with these package versions must be refused, and what to do ("": it is welcome).

    Examples
    --------
    >>> print(refusal({"python": "3.12.1.final.0", "cloudpickle": "3.1.1"},
    ...               {"python": "3.11.7.final.0", "cloudpickle": "3.0.0"}))
    The client has Python 3.12, this cluster and its executors have Python 3.11: they cannot read each other's \
pickled functions. Run the client with Python 3.11, or start the cluster with Python 3.12.
    """
    for package, name, parts in (("python", "Python", 2), ("cloudpickle", "cloudpickle", 1)):
        theirs, ours = ((each or {}).get(package) for each in (client, cluster))
        if not theirs or not ours:  # a client that does not say: the stock scheduler warns of that
            continue
        theirs, ours = (".".join(str(each).split(".")[:2]) for each in (theirs, ours))
        if theirs.split(".")[:parts] != ours.split(".")[:parts]:
            remedy = (
                f"Run the client with Python {ours}, or start the cluster with Python {theirs}."
                if package == "python"
                else f"In the client's environment: pip install 'cloudpickle=={ours}.*'"
            )
            return (
                f"The client has {name} {theirs}, this cluster and its executors have {name} {ours}: "
                f"they cannot read each other's pickled functions. {remedy}"
            )
    return ""


class Handshake:
    """Stands before the scheduler's handler of new clients.

    Parameters
    ----------
    scheduler
        The scheduler.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._stock = scheduler.handlers["register-client"]

    def install(self) -> None:
        """Answer in the scheduler's place."""
        self._scheduler.handlers["register-client"] = self.register

    def uninstall(self) -> None:
        """Give the handler back."""
        self._scheduler.handlers["register-client"] = self._stock

    async def register(self, comm: Comm, client: str, versions: dict[str, Any] | None = None) -> None:
        """Refuse a client, which raises `ImportError` there, or let the scheduler go on."""
        error = refusal((versions or {}).get("packages"), get_versions()["packages"])
        if error:
            await comm.write([{"op": "stream-start", "error": error}])
            await comm.close()
        else:
            await self._stock(comm=comm, client=client, versions=versions)
