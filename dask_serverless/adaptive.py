"""What `ServerlessCluster.adapt` returns."""

from __future__ import annotations

from typing import Any

from distributed.deploy import Adaptive


class CeilingAdaptive(Adaptive):
    """Adaptive scaling without a control loop.

    Lambda goes from nothing to the ceiling and back by itself, so the maximum is the ceiling, and
    there is nothing to do in between. It has what programs, widgets and JupyterLab read of Dask's.

    Parameters
    ----------
    cluster
        The cluster.
    minimum, maximum
        Resolved: whole numbers.
    **options
        As for Dask's (``interval``, ``wait_count``, ``target_duration``, ...): kept, without effect.
    """

    def __init__(self, cluster: Any, minimum: int, maximum: int, **options: Any) -> None:
        super().__init__(None, minimum=minimum, maximum=maximum, **options)  # type: ignore[arg-type]
        self.cluster: Any = cluster
        self.state = "running"
        self.periodic_callback = self  # type: ignore[assignment]  # not None: "Adaptive" in the widget

    def __repr__(self) -> str:
        return f"<CeilingAdaptive {self.minimum} .. {self.maximum}, {self.state}>"

    def stop(self, reason: str = "unknown") -> None:
        """Go back to a ceiling that only `scale` changes."""
        self.state = "stopped"
        self.periodic_callback = None

    async def target(self) -> int:
        """Return how many executors may run: Lambda does the rest."""
        return int(self.cluster.ceiling)

    async def adapt(self) -> None:
        """Do nothing: the ceiling is set."""
