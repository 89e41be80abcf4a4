"""The function that `test_local_lambda` runs: does what the event says."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy

_state = {"served": 0}


class Unhappy(Exception):
    """Raised on demand."""


def handler(event: Any, context: Any) -> Any:
    """Do ``event["do"]`` and return what there is to know."""
    _state["served"] += 1
    what = event.get("do", "echo")
    if what == "echo":
        return {"event": event, "request_id": context.aws_request_id, "arn": context.invoked_function_arn}
    if what == "about":
        return {
            "pid": os.getpid(),
            "parent": os.getppid(),
            "group": os.getpgid(0),
            "served": _state["served"],
            "environment": dict(os.environ),
            "remaining": context.get_remaining_time_in_millis(),
            "temporary": tempfile.gettempdir(),
            "directory": os.getcwd(),
            "loaded": sorted(name for name in sys.modules if name.startswith(("dask_serverless", "distributed."))),
        }
    if what == "draw":
        time.sleep(event["seconds"])
        return {"pid": os.getpid(), "random": random.random(), "numpy": numpy.random.random()}
    if what == "print":
        print(event["text"])
        return None
    if what == "raise":
        raise Unhappy("on demand")
    if what == "exit":
        sys.exit(event["status"])
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "segfault":
        ctypes.string_at(0)
    if what == "sleep":
        time.sleep(event["seconds"])
        return {"pid": os.getpid()}
    if what == "hold":  # until the file appears; says that it has begun by making another
        Path(event["begun"]).touch()
        while not os.path.exists(event["until"]):
            time.sleep(0.005)
        return {"pid": os.getpid()}
    if what == "grow":
        kept = []
        while True:  # 16 MB at a time, touched
            kept.append(bytearray(os.urandom(4096)) * 4096)
            time.sleep(0.005)
    if what == "huge":
        return len(bytearray(event["bytes"]))
    if what == "large":
        return "x" * event["bytes"]
    if what == "child":
        apart = event.get("apart", False)
        return {"pid": os.getpid(), "child": subprocess.Popen(["sleep", "100"], start_new_session=apart).pid}
    raise ValueError(what)
