"""Which Dask this package works with, declared once and checked at import.

The proxy and the fleet worker stand in front of parts of ``distributed`` that are not its public
API, so a release nobody has tried is refused by name rather than met with a hang. ``pyproject.toml``
states the same window for pip; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version as installed_version

from packaging.version import Version

#: Distribution name: (first supported version, first version that is too new).
SUPPORT_WINDOW: dict[str, tuple[str, str]] = {
    "dask": ("2026.8.0", "2027"),
    "distributed": ("2026.8.0", "2027"),
}


def check_support_window(version: Callable[[str], str] = installed_version) -> None:
    """Raise `ImportError` if dask or distributed are older or newer than what is supported.

    Parameters
    ----------
    version
        Returns the installed version of a distribution.

    Examples
    --------
    >>> check_support_window()
    >>> check_support_window(lambda name: "2024.1.0")
    Traceback (most recent call last):
    ...
    ImportError: dask-serverless needs dask>=2026.8.0,<2027, but 2024.1.0 is installed: \
pip install "dask>=2026.8.0,<2027"
    """
    for name, (first, too_new) in SUPPORT_WINDOW.items():
        found = version(name)
        if not Version(first) <= Version(found) < Version(too_new):
            wanted = f"{name}>={first},<{too_new}"
            raise ImportError(f'dask-serverless needs {wanted}, but {found} is installed: pip install "{wanted}"')
