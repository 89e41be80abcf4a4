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
#: Who holds values looks again after such a share of the time for which it has waited.
ASK_SHARE = 0.02
#: How far what is expected of others is doubted: who ought to come soon is waited for longer by so much, and who takes
#: long less. With a half, waiting costs 1.5 times the least that it could if they come as expected, and 3 times at
#: worst (Purohit, Svitkina and Kumar, NeurIPS 2018: the ski rental problem with predictions).
DOUBT = 0.5


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
    refused_seconds, refused_seconds_max
        After the store granted no executor, do not ask again for this long (doubled each time, up to a bound).
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
        How long an executor with nothing else to do waits for what it holds, within these bounds. Two minutes of 2 GiB
        cost less than half a cent.
    delay_price
        What it is worth to have the answer a second earlier, by what a second of one executor costs.
    ask_seconds_min, ask_seconds_max
        The time between two looks at what is held: doubled each time, within these bounds.
    asks_per_second_max
        What the metadata server is asked by all executors that hold something, at most; they look less often then.
    threads
        Tasks that an executor runs at the same time.
    group
        Whether ready tasks stay with their large inputs (task clustering).
    split
        Whether ready tasks are shared with other executors.
    prefetch
        Whether inputs are read while a task runs.
    compress
        Whether what is stored is compressed where that was measured to pay.
    locality
        Whether an executor goes on with the children of what it ran. Otherwise every value goes through the store,
        and its children to whoever arrives last: what the other decisions are compared with.
    bytes_per_second
        How many bytes cross the storage tier: sealed and written by one, read and checked by another.
    tier_bytes_per_second
        How many bytes the storage tier takes in and gives out, for all executors together.
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
    hold_seconds_max: float = 120.0
    delay_price: float = 1.0
    ask_seconds_min: float = 0.002
    ask_seconds_max: float = 0.05
    asks_per_second_max: float = 10_000.0
    threads: int = 1
    group: bool = True
    split: bool = True
    prefetch: bool = True
    compress: bool = True
    locality: bool = True
    bytes_per_second: float = 1024 * 1024 * 1024
    tier_bytes_per_second: float = math.inf
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

    def refused_pause(self, refusals: int) -> float:
        """Decide how long who was granted no executor, so many times in a row, does not ask again for what it needs.

        Examples
        --------
        >>> [Policy().refused_pause(refusals) for refusals in (1, 2, 3, 50)]
        [0.1, 0.2, 0.4, 2.0]
        """
        return min(self.refused_seconds * 2.0 ** min(refusals - 1, 50), self.refused_seconds_max)

    def refused_split_pause(self, refusals: int, seconds: float = math.inf, beginning: float = 0.0) -> float:
        """Decide the same for who began in a full fleet, and only wants to share its work.

        In a wide fleet it asks as seldom as at its begin, or often enough to give away half of what it has left, but
        not more often than every `refused_seconds_max`.

        Parameters
        ----------
        refusals
            In a row.
        seconds
            What it wanted to share.
        beginning
            See `settle_seconds`.

        Examples
        --------
        >>> policy = Policy(ceiling=1_000)
        >>> Policy(ceiling=8).refused_split_pause(1), policy.refused_split_pause(1), policy.refused_split_pause(1, 6.0)
        (0.1, 5.0, 3.0)
        """
        if self.ceiling <= self.full_executors:
            return self.refused_pause(refusals)
        return max(self.refused_seconds_max, min(self.settle_seconds(beginning), seconds / 2))

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

    def giving_up_seconds(self, nbytes: int, bandwidth: float, executors: int = 1) -> float:
        """Estimate what it costs to let go of values that are held, in seconds of an executor.

        One writes them and another reads them, and the child begins as much later. What one gives up on, others do as
        well: the input that all of them wait for is late. So each has its share of what the storage tier moves.

        Parameters
        ----------
        nbytes
            Of what is held.
        bandwidth
            Bytes per second between this executor and the storage tier, one way.
        executors
            How many there are.

        Examples
        --------
        >>> policy = Policy(tier_bytes_per_second=1e9)
        >>> policy.giving_up_seconds(100_000_000, bandwidth=100e6, executors=10)
        4.0
        >>> policy.giving_up_seconds(100_000_000, bandwidth=100e6, executors=100)
        40.0
        """
        moved = 2 * nbytes / min(bandwidth, self.tier_bytes_per_second / executors)
        return moved * (1 + self.delay_price)

    def hold_seconds(
        self, nbytes: int, bandwidth: float, executors: int = 1, expected_seconds: float | None = None
    ) -> float:
        """Decide how long an executor waits, with nothing else to do, for the fan-ins whose inputs it holds.

        Until waiting has cost as much as giving up: who does that never pays more than twice what who knew the future
        would have paid (the ski rental problem). If something is known of those that are waited for, they count:
        whoever ought to be there by now is waited for a while longer, and who takes very long is not waited for
        that long.

        Parameters
        ----------
        nbytes, bandwidth, executors
            See `giving_up_seconds`.
        expected_seconds
            How long the others take that the fan-ins lack, as far as that is known.

        Examples
        --------
        >>> policy = Policy()
        >>> policy.hold_seconds(100_000_000, bandwidth=100e6), policy.hold_seconds(0, bandwidth=100e6)
        (4.0, 0.25)
        >>> [policy.hold_seconds(100_000_000, 100e6, expected_seconds=seconds) for seconds in (1.0, 5.0, 60.0)]
        [8.0, 4.0, 2.0]
        """
        seconds = giving_up = self.giving_up_seconds(nbytes, bandwidth, executors)
        if expected_seconds is not None and expected_seconds <= giving_up:
            seconds = giving_up / DOUBT
        elif expected_seconds is not None and expected_seconds >= giving_up / DOUBT:
            seconds = giving_up * DOUBT
        return min(max(seconds, self.hold_seconds_min), self.hold_seconds_max)

    def ask_pause_max(self, executors: int, waited: float) -> float:
        """Decide how long there is between two looks at what is held, at most.

        Who has waited for long may wait a little longer: a fiftieth costs the child little, and the metadata server
        is asked less.

        Examples
        --------
        >>> policy = Policy()
        >>> [policy.ask_pause_max(executors, waited) for executors, waited in ((2, 1.0), (5_000, 1.0), (2, 50.0))]
        [0.05, 0.5, 1.0]
        """
        return max(self.ask_seconds_max, executors / self.asks_per_second_max, waited * ASK_SHARE)

    def moves(self, nbytes: int, seconds: float, bandwidth: float) -> bool:
        """Decide whether a ready task with inputs of this size here may run elsewhere (else it is grouped with them).

        Not if writing and reading the inputs takes longer than the task.

        Examples
        --------
        >>> Policy().moves(0, 1e-6, bandwidth=1e8), Policy().moves(10_000_000, 0.1, bandwidth=1e8)
        (True, False)
        """
        return not self.group or 2 * nbytes <= seconds * bandwidth

    def seconds_saved(self, saved: float, seconds_per_byte: float, bandwidth: float | None = None) -> float:
        """Return how much time it saves, for each byte of a frame, to compress it; 0 or less: it shall not be.

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
        >>> [policy.seconds_saved(saved=0.5, seconds_per_byte=2e-9) > 0 for policy in (far, near)]
        [True, False]
        >>> near.seconds_saved(saved=0.5, seconds_per_byte=2e-9, bandwidth=100e6) > 0
        True
        """
        bytes_per_second = self.bytes_per_second if bandwidth is None else bandwidth / 2  # that is there and back
        spent = seconds_per_byte + 1 / self.expand_bytes_per_second
        return saved / bytes_per_second - spent if self.compress else 0.0

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

    def tries_first(self, known: bool) -> bool:
        """Decide whether of tasks that were won together one is run before the others are shared.

        Only if it is not known what such tasks take: then the first one tells.
        """
        return not known


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
