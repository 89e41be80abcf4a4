"""The one place that weighs time, bytes and money. Pure: plain numbers in, a decision out."""

from __future__ import annotations

import math
from dataclasses import dataclass

#: What starting another executor costs before it does useful work, until something better is known.
INVOKE_SECONDS = 0.01
#: What an executor spends on a task beside running it.
TASK_SECONDS = 1e-5
#: The request that starts an executor may cost such a share of the seconds for which it is started.
REQUEST_SHARE_MAX = 0.1
#: A step at the store, there and back.
ROUND_TRIP_SECONDS = 1e-3


@dataclass(frozen=True, slots=True)
class Policy:
    """The numbers that decisions are made from.

    Parameters
    ----------
    ceiling
        Live executors in the whole cluster, at most.
    inline_bytes_max
        Serialised values up to this size travel inside messages instead of through a shard.
    fan_in_bytes_max
        Values that meet at one fan-in travel inside messages only up to this size together.
    invoke_seconds
        What starting another executor costs before it does useful work.
    request_seconds
        For how many seconds of an executor one could pay what a request costs: more for small ones, which are cheap.
    invoke_here_min
        Who has no AWS client yet makes one only to invoke at least so many at once.
    branches_max
        Nobody starts more executors than this at once: who is started so starts further ones, and a thousand
        invocations are two times 32, one after the other, rather than a thousand.
    share_seconds_min
        Work worth less than this is never given away: starting many executors for a last few tasks
        each costs every one of them more than it saves.
    publish_seconds_min
        While tasks are running, publish at most this often: one round trip then carries many
        arrivals and results, and costs a small share of the time between two.
    publications_per_second_max
        What the proxy hears from all executors together while they run tasks, at most.
    full_seconds, full_executors
        Who begins while the fleet is full does not ask for more executors before this long: the work
        was shared evenly when it began, and asking costs.
    refused_seconds
        After the store granted no executor, do not ask again for this long (doubled each time).
    fetch_ahead
        Ready tasks whose inputs may be on their way while another task runs.
    reserve_seconds_max
        Who has no more time left than this (or than a fifth of it) begins no task.
    kept_bytes_max
        With more than this in values of its own, an executor publishes what waits before it runs another task: else
        who makes values faster than they can be written keeps all of them.
    hold
        Whether large values are held back for fan-ins that are at home here (delayed I/O).
    hold_bytes_min
        Who would save less than this holds nothing back.
    hold_seconds_min, hold_seconds_max
        How long an executor with nothing else to do waits for what it holds, within these bounds.
    ask_seconds_min, ask_seconds_max
        The time between two looks at what is held: doubled each time, within these bounds.
    threads
        Tasks that an executor runs at the same time.
    group
        Whether ready tasks stay with their large inputs (task clustering).
    split
        Whether ready tasks are shared with other executors.
    split_claims
        Whether tasks that an executor wins at fan-ins are shared at once, and not only when it has run the next one.
    prefetch
        Whether inputs are read while a task runs.
    locality
        Whether an executor goes on with the children of what it ran. Otherwise every value goes through the store,
        and its children to whoever arrives last: what the other decisions are compared with.
    bytes_per_second
        How many bytes cross the storage tier: sealed and written by one, read and checked by another.
    expand_bytes_per_second
        How many bytes compressed frames become.
    """

    ceiling: int = 1
    inline_bytes_max: int = 64 * 1024
    fan_in_bytes_max: int = 1024 * 1024
    invoke_seconds: float = INVOKE_SECONDS
    request_seconds: float = 0.0
    invoke_here_min: int = 4
    branches_max: int = 32
    share_seconds_min: float = 0.5
    publish_seconds_min: float = 0.01
    publications_per_second_max: float = 1000.0
    full_seconds: float = 1.0
    full_executors: int = 200
    refused_seconds: float = 0.1
    refused_seconds_max: float = 2.0
    fetch_ahead: int = 2
    reserve_seconds_max: float = 30.0
    kept_bytes_max: int = 256 * 1024 * 1024
    hold: bool = True
    hold_bytes_min: int = 256 * 1024
    hold_seconds_min: float = 0.25
    hold_seconds_max: float = 5.0
    ask_seconds_min: float = 0.002
    ask_seconds_max: float = 0.05
    threads: int = 1
    group: bool = True
    split: bool = True
    split_claims: bool = False
    prefetch: bool = True
    locality: bool = True
    bytes_per_second: float = 1024 * 1024 * 1024
    expand_bytes_per_second: float = 1e9

    @property
    def publish_seconds(self) -> float:
        """How long a result or an arrival may wait for others while a task is running.

        Examples
        --------
        >>> Policy(ceiling=2).publish_seconds, Policy(ceiling=200).publish_seconds
        (0.01, 0.2)
        """
        return max(self.publish_seconds_min, self.ceiling / self.publications_per_second_max)

    def settle_seconds(self, beginning: float = 0.0) -> float:
        """Decide how long who begins while the fleet is full does not ask for more executors.

        A wide fleet asks as often as one of `full_executors`, all together: else whoever is slow because a thousand
        others begin as well takes its work for long, and gives it to still others. Nor does anybody ask before all
        have begun, if it is known how long that takes.

        Parameters
        ----------
        beginning
            Seconds in which all who begin together will have begun (0: not known).

        Examples
        --------
        >>> Policy(ceiling=2).settle_seconds(), Policy(ceiling=1_000).settle_seconds()
        (1.0, 5.0)
        >>> Policy(ceiling=1_000).settle_seconds(beginning=8.0)
        8.0
        """
        return max(self.full_seconds * max(1.0, self.ceiling / self.full_executors), beginning)

    def leave_at(self, now: float, seconds_left: float) -> float:
        """Decide until when an executor runs tasks, whose Lambda ends in `seconds_left`.

        What is ready then goes to a successor; the rest of the time is for publishing, and for the end
        of a task that runs.

        Examples
        --------
        >>> Policy().leave_at(now=100.0, seconds_left=900.0), Policy().leave_at(now=0.0, seconds_left=3.0)
        (970.0, 2.4)
        """
        return now + seconds_left - min(self.reserve_seconds_max, 0.2 * seconds_left)

    def inline(self, nbytes: int, siblings: int = 1) -> bool:
        """Decide whether a serialised value travels inside messages.

        `siblings` values of this size may meet at one fan-in: together they must not fill the
        metadata server, which is small, nor one answer to the executor that wins the fan-in.

        Examples
        --------
        >>> Policy().inline(50_000), Policy().inline(50_000, siblings=1_000)
        (True, False)
        """
        return nbytes <= self.inline_bytes_max and nbytes * siblings <= self.fan_in_bytes_max

    def travel_seconds(self, nbytes: float) -> float:
        """Estimate how long it takes to bring a value from one executor to another.

        Examples
        --------
        >>> Policy(bytes_per_second=100e6).travel_seconds(50e6)
        0.501
        """
        return ROUND_TRIP_SECONDS + nbytes / self.bytes_per_second

    def hold_seconds(self, nbytes: int, bandwidth: float) -> float:
        """Decide how long an executor waits, with nothing else to do, for the fan-ins whose inputs it holds.

        As long as it takes to write the values and read them elsewhere, twice over: who waits for about
        what giving up costs never pays much more than who knew the future (the ski rental problem).

        Examples
        --------
        >>> Policy().hold_seconds(100_000_000, bandwidth=100e6), Policy().hold_seconds(0, bandwidth=100e6)
        (4.0, 0.25)
        """
        return min(max(4 * nbytes / bandwidth, self.hold_seconds_min), self.hold_seconds_max)

    def moves(self, nbytes: int, seconds: float, bandwidth: float) -> bool:
        """Decide whether a ready task with inputs of this size here may run elsewhere (else it is grouped with them).

        Not if writing and reading the inputs takes longer than the task.

        Examples
        --------
        >>> Policy().moves(0, 1e-6, bandwidth=1e8), Policy().moves(10_000_000, 0.1, bandwidth=1e8)
        (True, False)
        """
        return not self.group or 2 * nbytes <= seconds * bandwidth

    def compresses(self, saved: float, seconds_per_byte: float, bandwidth: float | None = None) -> bool:
        """Decide whether a frame is compressed.

        Parameters
        ----------
        saved
            Which share of its bytes that would save.
        seconds_per_byte
            How long that would take.
        bandwidth
            Bytes per second to or from the storage tier, as measured; None: as configured.

        Examples
        --------
        >>> far, near = Policy(bytes_per_second=50e6), Policy(bytes_per_second=500e6)
        >>> far.compresses(saved=0.5, seconds_per_byte=2e-9), near.compresses(saved=0.5, seconds_per_byte=2e-9)
        (True, False)
        >>> near.compresses(saved=0.5, seconds_per_byte=2e-9, bandwidth=100e6)
        True
        """
        bytes_per_second = self.bytes_per_second if bandwidth is None else bandwidth / 2  # that is there and back
        return saved / bytes_per_second > seconds_per_byte + 1 / self.expand_bytes_per_second

    def invoke_here(self, executors: int, warm: bool) -> bool:
        """Decide who invokes new executors: the one that delegates, or the proxy on its behalf.

        Making an AWS client takes a sandbox longer than a message to the proxy, which has one. For
        many executors at once, the proxy would be the bottleneck.
        """
        return warm or executors >= self.invoke_here_min

    def branches(self, shares: int) -> tuple[int, int]:
        """Decide how many of so many shares are made at once, and into how many more each may be split.

        Examples
        --------
        >>> Policy().branches(8), Policy().branches(1_000), Policy().branches(100_000)
        ((8, 0), (32, 31), (32, 3124))
        """
        count = min(shares, self.branches_max)
        return count, -(-shares // count) - 1

    @property
    def share_seconds(self) -> float:
        """How much work is worth starting an executor for, by the time and by the money that this takes.

        Examples
        --------
        >>> Policy().share_seconds, Policy(request_seconds=0.1).share_seconds
        (0.5, 1.0)
        """
        return max(2 * self.invoke_seconds, self.share_seconds_min, self.request_seconds / REQUEST_SHARE_MAX)

    def shares(self, ready: int, seconds_per_task: float, seconds_left: float = math.inf) -> int:
        """Decide into how many shares ready tasks are split (1: keep them all here).

        Splitting pays when the work left here takes longer than starting somebody else (lazy
        splitting): a share must be worth several invocations. The store grants only what the
        ceiling allows, so this may ask for too much. Nor is more kept than fits into `seconds_left`.

        Examples
        --------
        >>> Policy(ceiling=8).shares(ready=2000, seconds_per_task=0.1)
        8
        >>> Policy(ceiling=8).shares(ready=100, seconds_per_task=1e-5)
        1
        >>> Policy(ceiling=8).shares(ready=4, seconds_per_task=0.1, seconds_left=0.2)
        2
        """
        if not self.split:
            return 1
        worth = int(ready * seconds_per_task / self.share_seconds) if self.share_seconds else ready
        if seconds_left < math.inf:
            worth = max(worth, math.ceil(ready * seconds_per_task / max(seconds_left, seconds_per_task, 1e-9)))
        return max(1, min(self.ceiling, ready, worth))


def first_groups(
    starts: int,
    permits: int,
    seconds_per_task: float | None = None,
    invoke_seconds: float = INVOKE_SECONDS,
    unknown: int = 0,
    request_seconds: float = 0.0,
) -> int:
    """Decide how many executors a job begins with.

    Without a measured task time every start may be long, so all permits are used; with one, no
    more than pay for their invocation, in time and in money. If so many tasks are `unknown`, each of them may be
    long and pay for one.

    Examples
    --------
    >>> first_groups(starts=2000, permits=200, seconds_per_task=None, invoke_seconds=0.01)
    200
    >>> first_groups(starts=2000, permits=200, seconds_per_task=1e-5, invoke_seconds=0.01)
    1
    >>> first_groups(starts=2000, permits=200, seconds_per_task=1e-5, unknown=3)
    4
    >>> first_groups(starts=2000, permits=200, seconds_per_task=1e-3, request_seconds=0.1)
    2
    """
    groups = min(starts, permits)
    if seconds_per_task is not None:
        worth = max(2 * invoke_seconds, request_seconds / REQUEST_SHARE_MAX)
        groups = min(groups, unknown + int(starts * seconds_per_task / worth))
    return max(1, groups)
