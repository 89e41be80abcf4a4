"""The steps that are atomic at the store, as Lua scripts beside this file; see each file's head for its arguments.

Scripts name keys from a prefix instead of declaring each: the metadata lives on one server, not in a Redis Cluster.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import msgpack

from fargate_storage.client.endpoint import Argument, Endpoint
from fargate_storage.client.keys import LUA
from lambda_worker.core.wire import PACK_BYTES


class Script(NamedTuple):
    """A script and the digest by which servers know it."""

    source: str
    sha: str

    def run(self, endpoint: Endpoint, prefix: str, *arguments: Argument) -> Any:
        """Run at a server, on the keys that begin with `prefix`: one round trip once the server knows the script."""
        return endpoint.script(self.sha, self.source, prefix, *arguments)

    def begin(self, endpoint: Endpoint, prefix: str, *arguments: Argument) -> Callable[[], Any]:
        """Do as `run`, in two parts: see `Endpoint.begin`."""
        return endpoint.begin_script(self.sha, self.source, prefix, *arguments)


def header(*parts: Any) -> bytes:
    """Encode what a script unpacks with ``cmsgpack``, which knows the old msgpack only (no type for bytes)."""
    return cast(bytes, msgpack.packb(parts, use_bin_type=False, buf_size=PACK_BYTES))


def _load(name: str) -> Script:
    here = Path(__file__).parent
    source = LUA + (here / "common.lua").read_text() + (here / f"{name}.lua").read_text()
    # SHA-1 is what Redis calls scripts by; nothing is protected by it.
    return Script(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


ARRIVE = _load("arrive")
BEAT = _load("beat")
CANCEL = _load("cancel")
CLOSE = _load("close")
CREATE = _load("create")
LAPSED = _load("lapsed")
LEAVE = _load("leave")
SEND_HOME = _load("send_home")
RECALL = _load("recall")
