"""The outfit: what a cluster gives its executors beside tasks. Pure.

Under `LocalCluster` plugins, uploaded files and what `client.run` changes live in the processes of
the workers, which live as long as the cluster. Sandboxes come and go; so what they are to wear is
data, with a version. An assignment names a version; a sandbox that wears an older one puts on the
difference before its first task, and keeps it on while it is warm. Nothing is taken off to go back:
an assignment that names an older version than the sandbox wears changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from lambda_worker.core.wire import Location, location_from_wire, location_to_wire, pack, unpack

#: In which order the kinds are put on: configuration before code, a nanny's plugins before a worker's.
KINDS = ("config", "nanny", "worker", "run")

#: What a piece is and what it is called: no two pieces of an outfit share both.
Slot: TypeAlias = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Piece:
    """One thing to wear.

    Parameters
    ----------
    kind
        One of `KINDS`: settings of ``dask.config``, a nanny plugin, a worker plugin, or a call that
        `client.run` has made.
    name
        What it is registered as.
    serial
        Grows with every registration, so that one that was registered anew is put on anew.
    body
        Where its pickle is.
    """

    kind: str
    name: str
    serial: int
    body: Location

    @property
    def slot(self) -> Slot:
        """What this piece replaces, if something is worn there."""
        return self.kind, self.name


@dataclass(frozen=True, slots=True)
class Outfit:
    """Everything to wear, in the order of registration."""

    version: int
    pieces: tuple[Piece, ...] = ()

    def to_bytes(self) -> bytes:
        """Encode."""
        return pack(
            [self.version, [[each.kind, each.name, each.serial, location_to_wire(each.body)] for each in self.pieces]]
        )

    @classmethod
    def from_bytes(cls, blob: bytes | memoryview) -> Outfit:
        """Undo `to_bytes`.

        Examples
        --------
        >>> outfit = Outfit(1, (Piece("worker", "mine", 1, b"pickle"),))
        >>> Outfit.from_bytes(outfit.to_bytes()) == outfit
        True
        """
        version, pieces = unpack(blob)
        return cls(version, tuple(Piece(kind, name, at, location_from_wire(body)) for kind, name, at, body in pieces))


def changes(worn: Mapping[Slot, int], wanted: Outfit) -> tuple[list[Slot], list[Piece]]:
    """Tell what to take off and then what to put on.

    Parameters
    ----------
    worn
        The serial numbers of what is worn, in the order in which it was put on.
    wanted
        What shall be worn.

    Examples
    --------
    >>> old, new = Piece("worker", "mine", 1, b""), Piece("worker", "mine", 2, b"")
    >>> changes({old.slot: old.serial}, Outfit(2, (new,)))
    ([('worker', 'mine')], [Piece(kind='worker', name='mine', serial=2, body=b'')])
    """
    keep = {piece.slot: piece.serial for piece in wanted.pieces}
    off = [slot for slot, serial in worn.items() if keep.get(slot) != serial]
    on = [piece for kind in KINDS for piece in wanted.pieces if piece.kind == kind]
    return off, [piece for piece in on if worn.get(piece.slot) != piece.serial]
