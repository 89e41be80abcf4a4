"""Turns: who takes them, in which order, and what becomes of one who fails.

For each workload every entrant is opened afresh, all at once. The first turn of each is not timed: it warms up, its
answer is checked, and its memory is sampled. Then they take turns, each with its own data, so that whatever else the
machine does meets all of them; the order is another one every time. Answers are compared in every turn.
"""

from __future__ import annotations

import math
import os
import random
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil

from benchmarks.memory import Memory, stalled_seconds
from benchmarks.stage import Entrant, GivenUp, Stage, Turn
from benchmarks.workloads import Size, Workload

#: The floor, whose answer is taken for right.
REFERENCE = "sync"
#: cubed makes random numbers of its own, so only what is known of the answer can be compared.
OWN_DATA = ("cubed",)
#: Of two sums of the same numbers in another order.
CLOSE = 1e-6
TURN_SECONDS_MAX = 900.0
#: After this long nobody takes further turns of a workload, but everybody has one.
BUDGET_SECONDS = 240.0
#: The machine is at rest when, for so long, it was so busy at most; it need not be, on a machine that others use.
SETTLE_LOOK_SECONDS = 0.5
AT_REST_PERCENT = 15.0
SETTLE_SECONDS_MAX = 5.0
#: A turn in which nobody could go on for longer than this, for want of memory, says nothing of anybody.
STALLED_SECONDS_MAX = 0.1


@dataclass(slots=True)
class Result:
    """What one entrant did in one workload; `reason` says why nothing, or no more."""

    seconds: list[float] = field(default_factory=list)
    counted: list[Mapping[str, float]] = field(default_factory=list)
    memory: Mapping[str, int] = field(default_factory=dict)
    blas_threads: int | None = None
    reason: str = ""

    def as_data(self) -> dict[str, Any]:
        """Return it for JSON: every time, and the median of each counter."""
        names = self.counted[0] if self.counted else {}
        return {
            "seconds": [round(each, 6) for each in self.seconds],
            "counted": {name: statistics.median(each[name] for each in self.counted) for name in names},
            "memory": dict(self.memory),
            "blas_threads": self.blas_threads,
            "reason": self.reason,
        }


def same(found: Any, expected: Any) -> bool:
    """Whether two answers are the same, but for rounding.

    Examples
    --------
    >>> same((3, 1.0), (3, 1.0 + 1e-9)), same(3, 4)
    (True, False)
    """
    if isinstance(expected, Sequence) and not isinstance(expected, str):
        return len(found) == len(expected) and all(map(same, found, expected))
    return math.isclose(found, expected, rel_tol=CLOSE)


def wrong(workload: Workload, size: Size, own_data: bool, answer: Any, reference: Any) -> str:
    """Return what is wrong with an answer, or nothing."""
    if workload.holds is not None and not workload.holds(size, answer):
        return f"wrong answer: {answer!r} contradicts what is known ({workload.known})"
    if reference is not None and not own_data and not same(answer, reference):
        return f"wrong answer: {answer!r}, but the reference has {reference!r}"
    return ""


def how_checked(workload: Workload, with_reference: bool) -> str:
    """Say in words what answers were compared with."""
    parts = ["the synchronous scheduler's answer"] if with_reference else []
    if workload.holds is not None:
        parts.append(workload.known)
    return ", and ".join(parts) or "one another"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def measure(workload: Workload, entrants: Sequence[Entrant], size: Size, repeat: int) -> dict[str, Any]:
    """Let the entrants take turns at one workload; return what is kept of it (see `results`)."""
    results = {entrant.label: Result() for entrant in entrants}
    stages: dict[str, Stage] = {}
    load = [os.getloadavg()[0]]
    say(f"\n{workload.heading(size)}")
    try:
        for entrant in entrants:
            reason = workload.refusal(entrant.contender)
            if reason is None:
                stages[entrant.label] = Stage(entrant, workload.name, size)
            else:
                results[entrant.label].reason = reason
        for label, stage in list(stages.items()):
            try:
                stage.ready()
                results[label].blas_threads = stage.blas_threads
            except GivenUp as given_up:
                _give_up(stages, results, label, str(given_up))
        for turn in range(repeat + 1):
            _take_turns(workload, size, stages, results, turn)
        load.append(os.getloadavg()[0])
    finally:
        for stage in stages.values():
            stage.close()
    for label, result in results.items():
        if not (result.seconds or result.reason):
            result.reason = "memory was short in every turn"
        if result.reason:  # a reason is printed, always: nobody is missing in silence
            say(f"  {label}: skipped or stopped: {result.reason}")
    return {
        "title": workload.heading(size),
        "size": dict(size),
        "tasks": workload.tasks(size),
        "quick": size == workload.quick,
        "load": [round(each, 2) for each in load],
        "checked": how_checked(workload, bool(results.get(REFERENCE, Result()).seconds)),
        "entrants": {label: result.as_data() for label, result in results.items()},
    }


def _give_up(stages: dict[str, Stage], results: Mapping[str, Result], label: str, reason: str) -> None:
    results[label].reason = reason
    stages.pop(label).close()


def settle() -> None:
    """Wait until the machine is at rest: whoever had the last turn may still be clearing up after it."""
    deadline = time.monotonic() + SETTLE_SECONDS_MAX
    while psutil.cpu_percent(SETTLE_LOOK_SECONDS) > AT_REST_PERCENT and time.monotonic() < deadline:
        pass


def _take_turns(
    workload: Workload, size: Size, stages: dict[str, Stage], results: Mapping[str, Result], turn: int
) -> None:
    """Let each entrant take one turn; turn 0 warms up."""
    order = list(stages)
    random.Random(f"{workload.name} {turn}").shuffle(order)  # nobody always has the same one before it
    answers: dict[str, tuple[bool, Any]] = {}
    for label in order:
        stage, result = stages[label], results[label]
        if turn > 1 and sum(result.seconds) > BUDGET_SECONDS:
            continue
        settle()
        try:
            if turn == 0:
                with Memory(stage.pid) as memory:
                    found = stage.turn(turn, TURN_SECONDS_MAX)
                result.memory = memory.peaks
            else:
                before = stalled_seconds()
                found = stage.turn(turn, TURN_SECONDS_MAX)
                stalled = stalled_seconds() - before
                if stalled > STALLED_SECONDS_MAX:
                    say(
                        f"  turn {turn}, {label}: void, memory was so short that nobody could go on for {stalled:.1f} s"
                    )
                else:
                    _record(result, found)
        except GivenUp as given_up:
            _give_up(stages, results, label, str(given_up))
            continue
        answers[label] = (stage.entrant.contender in OWN_DATA, found.answer)
        say(f"  {'warm-up' if turn == 0 else f'turn {turn}'}, {label}: {found.seconds:.3f} s")
    reference = answers.get(REFERENCE) or next((each for each in answers.values() if not each[0]), (True, None))
    for label, (own_data, answer) in answers.items():
        problem = wrong(workload, size, own_data, answer, reference[1])
        if problem:
            _give_up(stages, results, label, problem)
            results[label].seconds.clear()  # who is wrong is not fast


def _record(result: Result, found: Turn) -> None:
    result.seconds.append(found.seconds)
    result.counted.append(found.counted)
