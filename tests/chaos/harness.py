"""Hurts the processes and connections of a real cluster, twice a second, while computations run on it.

Everything is hurt from outside, where the platform would do it: signals for processes, a `FaultProxy` in the place of
the network to the storage servers, a `LambdaProxy` before the Invoke API, commands to the servers. What happens when is
drawn from a seed; what it meets is not (these are real processes), so a seed tells what was tried, and not a story.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import dask
import redis
from distributed import Client

from dask_serverless import ServerlessCluster
from dask_serverless.backend import Backend, LocalBackend
from dask_serverless.local_lambda import FunctionConfig
from dask_serverless.local_lambda.config import LocalLambdaError
from fargate_storage.client.config import StoreConfig
from fargate_storage.client.redis_store import RedisStore
from tests.chaos.counting import Counting, runs
from tests.chaos.fault_proxy import DIRECTIONS, FaultProxy, Loop
from tests.chaos.lambda_proxy import LambdaProxy
from tests.chaos.workloads import WORKLOADS, agree, answer

EVERY_SECONDS = 0.5
#: What is not over by then hangs.
ROUND_SECONDS_MAX = 180.0
#: One less than the product survives: who dies more often is given up, and that is promised, too.
DEATHS_A_MINUTE_MAX = 4
MINUTE = 60.0
SIDES = ("executors", "cluster")
#: Who was to be hurt is gone, or not there again yet.
NOBODY_THERE = (ProcessLookupError, FileNotFoundError, redis.RedisError, LocalLambdaError)


class ChaosBackend(LocalBackend):
    """The platform on this machine, with lines that can be hurt between its parts."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.loop = Loop()
        self.luck = random.Random(0)
        self.lambdas = LambdaProxy(self.loop, self.luck)
        self.lines: dict[tuple[str, str], FaultProxy] = {}  # by side, and by server

    def _through(self, store_config: StoreConfig, side: str) -> StoreConfig:
        """Return where the servers are for this side: behind lines."""
        assert self.tier is not None
        urls = []
        for name, url in zip(self.tier.names, (store_config.metadata, *store_config.shards), strict=True):
            path = os.path.join(str(self.tier.directory), f"{side[0]}-{name}.sock")
            self.lines[side, name] = FaultProxy(self.loop, path, url.removeprefix("unix://"), self.luck)
            urls.append(f"unix://{path}")
        return replace(store_config, metadata=urls[0], shards=tuple(urls[1:]))

    def _function(self, secret: bytes, store_config: StoreConfig) -> FunctionConfig:
        function = super()._function(secret, self._through(store_config, "executors"))
        return replace(function, environment={**function.environment, "DASK_SERVERLESS_ENDPOINT": self.lambdas.url})

    def _start(self) -> Backend:
        backend = super()._start()
        assert self.service is not None
        self.lambdas.target = self.service.endpoint_url
        backend.invoker.endpoint_url = self.lambdas.url
        backend.store.close()
        self.backend = replace(backend, store=RedisStore(self._through(backend.store.config, "cluster")))
        return self.backend

    def _close(self) -> None:
        if self._closed:
            return
        self.heal()
        super()._close()
        for each in (self.lambdas, *self.lines.values()):
            each.close()
        self.loop.close()

    def heal(self) -> None:
        """Have all lines be good ones."""
        for each in (self.lambdas, *self.lines.values()):
            each.heal()


class ChaosCluster(ServerlessCluster):
    """A cluster whose lines can be hurt: `cluster.chaos` has them."""

    _backend_class = ChaosBackend

    @property
    def chaos(self) -> ChaosBackend:
        """The backend."""
        assert isinstance(self._local, ChaosBackend)
        return self._local

    def server(self, name: str) -> redis.Redis:
        """Return a client of a storage server, past all lines."""
        tier = self.chaos.tier
        assert tier is not None
        return redis.Redis(unix_socket_path=str(tier._socket(name)), password=tier._password)


class Trouble:
    """Hurts a cluster on a thread of its own.

    Parameters
    ----------
    cluster
        Whom.
    kinds
        What is done, each as often as it is here: names of methods of this class.
    always
        What is done every time, beside one of the others.
    seed
        What decides.
    """

    def __init__(self, cluster: ChaosCluster, kinds: Sequence[str], always: Sequence[str], seed: int) -> None:
        self.cluster = cluster
        self.happened: Counter[str] = Counter()
        self._kinds = kinds
        self._always = always
        self._luck = random.Random(seed)
        self._done = threading.Event()
        self._error: Exception | None = None
        self._cures: list[tuple[float, Callable[[], object]]] = []
        self._lately: dict[str, deque[float]] = {}
        self._thread = threading.Thread(target=self._work, name="trouble")

    def __enter__(self) -> Trouble:
        self.cluster.chaos.luck.seed(self._luck.random())
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        if self._error is not None:  # else what followed was a calm run, and says nothing
            raise self._error

    def _work(self) -> None:
        try:
            self._trouble()
        except Exception as error:
            self._error = error
        finally:
            self._cure(float("inf"))

    def _trouble(self) -> None:
        while not self._done.wait(EVERY_SECONDS):
            self._cure(time.monotonic())
            for kind in (*self._always, *([self._luck.choice(self._kinds)] if self._kinds else ())):
                with contextlib.suppress(*NOBODY_THERE):
                    if getattr(self, kind)() is not False:
                        self.happened[kind] += 1

    def _cure(self, now: float) -> None:
        due = [cure for at, cure in self._cures if at <= now]
        self._cures = [each for each in self._cures if each[0] > now]
        for cure in due:
            with contextlib.suppress(*NOBODY_THERE):
                cure()

    def _for_a_while(self, cure: Callable[[], object], seconds_max: float = 1.5) -> None:
        self._cures.append((time.monotonic() + self._luck.uniform(0.3, seconds_max), cure))

    def _seldom(self, what: str, times_a_minute: int = DEATHS_A_MINUTE_MAX) -> bool:
        times = self._lately.setdefault(what, deque())
        while times and time.monotonic() - times[0] > MINUTE:
            times.popleft()
        if len(times) >= times_a_minute:
            return False
        times.append(time.monotonic())
        return True

    # -- processes ------------------------------------------------------------------------------

    def _sandbox(self) -> int | None:
        assert self.cluster.chaos.service is not None
        busy = [
            each["pid"] for each in self.cluster.chaos.service.sandboxes() if each["state"] == "busy" and each["pid"]
        ]
        return self._luck.choice(busy) if busy else None

    def kill(self) -> bool | None:
        """End a sandbox that is at work."""
        pid = self._sandbox()
        if pid is None:
            return False
        os.kill(pid, signal.SIGKILL)
        return None

    def pause(self) -> bool | None:
        """Stop a sandbox for a while."""
        pid = self._sandbox()
        if pid is None:
            return False
        os.kill(pid, signal.SIGSTOP)
        self._for_a_while(lambda: os.kill(pid, signal.SIGCONT))
        return None

    def zygote(self) -> bool | None:
        """End the process that sandboxes are forked from, and all of them with it."""
        pid = self._sandbox()
        if pid is None or not self._seldom("zygote"):
            return False
        with open(f"/proc/{pid}/stat") as file:
            os.kill(int(file.read().rpartition(")")[2].split()[1]), signal.SIGKILL)
        return None

    def _shard(self) -> str:
        assert self.cluster.chaos.tier is not None
        return self._luck.choice(self.cluster.chaos.tier.names[1:])

    def shard(self) -> bool | None:
        """End a data server, with everything that it holds."""
        name = self._shard()
        if not self._seldom(name):
            return False
        assert self.cluster.chaos.tier is not None
        os.kill(self.cluster.chaos.tier.pids[name], signal.SIGKILL)
        return None

    def metadata(self) -> bool | None:
        """End the metadata server: everything that is under way begins again."""
        assert self.cluster.chaos.tier is not None
        if not self._seldom("metadata"):
            return False
        os.kill(self.cluster.chaos.tier.pids["metadata"], signal.SIGKILL)
        return None

    # -- storage servers ------------------------------------------------------------------------

    def full(self) -> bool | None:
        """Let a data server have no more memory than it uses; rarely, because what runs then is refused."""
        name = self._shard()
        if not self._seldom(f"{name} is full", 1):
            return False
        server = self.cluster.server(name)
        server.config_set("maxmemory", server.info("memory")["used_memory"])
        self._for_a_while(lambda: self._roomy(name))
        return None

    def evict(self) -> None:
        """Let a data server throw away a part of its keys, as one that was set up in another way would."""
        server = self.cluster.server(self._shard())
        keys = sorted(server.scan_iter(count=1_000))
        if keys:
            server.unlink(*self._luck.sample(keys, -(-len(keys) // 5)))

    def _roomy(self, name: str) -> None:
        assert self.cluster.chaos.tier is not None
        server = self.cluster.server(name)
        server.config_set("maxmemory", self.cluster.chaos.tier.limits[name])

    # -- lines ----------------------------------------------------------------------------------

    def _line(self, of: Sequence[str] = SIDES) -> FaultProxy:
        return self._luck.choice([line for (side, _), line in sorted(self.cluster.chaos.lines.items()) if side in of])

    def cut(self) -> None:
        """Break the connections to a server."""
        self._line().cut()

    def delay(self) -> None:
        """Have all that is said arrive 50 ms later."""
        line = self._line()
        line.delay_seconds = 0.05
        self._for_a_while(line.heal)

    def slow(self) -> None:
        """Let no more than a megabyte pass in a second."""
        line = self._line()
        line.bytes_per_second = 1e6
        self._for_a_while(line.heal)

    def silence(self) -> None:
        """Let nothing pass, in one direction or in both."""
        line = self._line()
        line.silence(*self._luck.choice([DIRECTIONS[:1], DIRECTIONS[1:], DIRECTIONS]))
        self._for_a_while(line.heal, 3.0)

    def spoil(self) -> None:
        """Change a bit of a value on its way to or from a data server."""
        lines = [line for (_, name), line in sorted(self.cluster.chaos.lines.items()) if name != "metadata"]
        self._luck.choice(lines).spoil[self._luck.choice(DIRECTIONS)] += 1

    # -- Lambda ---------------------------------------------------------------------------------

    def _invocations(self, fault: str, chance: float) -> None:
        self.cluster.chaos.lambdas.chances[fault] = chance
        self._for_a_while(self.cluster.chaos.lambdas.heal)

    def throttled(self) -> None:
        """Refuse half of the invocations."""
        self._invocations("throttled", 0.5)

    def failed(self) -> None:
        """Fail half of the invocations, with 500."""
        self._invocations("failed", 0.5)

    def broken(self) -> None:
        """Accept half of the invocations and break the connection before saying so."""
        self._invocations("broken", 0.5)

    def doubled(self) -> None:
        """Do half of the invocations twice."""
        self._invocations("doubled", 0.5)

    def late(self) -> None:
        """Do half of the invocations later, and so in another order."""
        self._invocations("late", 0.5)


#: What goes wrong beside the kills; as often as they are named.
KINDS = (
    *("kill", "pause", "zygote", "shard", "metadata", "full", "evict"),
    *("cut", "delay", "slow", "silence", "spoil", "spoil"),
    *("throttled", "failed", "broken", "doubled", "late"),
)


@dataclass(slots=True)
class Report:
    """What became of a run."""

    seed: int
    rounds: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)  # rounds that ended with an error that is promised
    wrong: list[str] = field(default_factory=list)
    happened: Counter[str] = field(default_factory=Counter)
    runs: Counter[str] = field(default_factory=Counter)  # by key
    slowest_seconds: float = 0.0
    stats: dict[str, Any] = field(default_factory=dict)

    @property
    def waste(self) -> float:
        """How often a task ran, on average; 1 is none in vain."""
        return sum(self.runs.values()) / max(1, len(self.runs))

    @property
    def lost_per_kill(self) -> float:
        """How many runs each kill cost, on average: what an executor had not told anybody yet."""
        return (sum(self.runs.values()) - len(self.runs)) / max(1, self.happened["kill"])

    @property
    def kills_per_round(self) -> float:
        """How often somebody was killed while one computation went on."""
        return self.happened["kill"] / max(1, self.rounds.total())

    def __str__(self) -> str:
        named = ("executors_lost", "shards_lost", "metadata_lost", "results_lost", "tasks_remade")
        return "\n".join(
            [
                f"chaos: seed {self.seed}",
                "  done right: " + _counted(self.rounds),
                *([f"  refused (the storage was full): {_counted(self.refused)}"] if self.refused else []),
                *(f"  WRONG: {each}" for each in self.wrong),
                "  went wrong: " + _counted(self.happened),
                "  counted: " + ", ".join(f"{name} {self.stats.get(name, 0)}" for name in named),
                f"  runs per task: {self.waste:.3f} ({sum(self.runs.values()):,} of {len(self.runs):,} tasks; "
                f"at most {max(self.runs.values(), default=0)}); slowest round {self.slowest_seconds:.1f} s",
                f"  {self.kills_per_round:.1f} kills per round, {self.lost_per_kill:.1f} runs lost by each",
            ]
        )


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.most_common()) or "nothing"


def run(
    seconds: float,
    seed: int,
    kinds: Sequence[str] = KINDS,
    always: Sequence[str] = ("kill",),
    executors: int = 4,
    shards: int = 2,
    skewed: bool = True,
    say: Callable[[str], object] = lambda line: None,
) -> Report:
    """Hurt a cluster for so long, and compare what it computes with the synchronous scheduler.

    Parameters
    ----------
    seconds
        How long; the round that has begun by then is finished, still in trouble.
    seed, kinds, always
        As of `Trouble`.
    executors, shards
        Of the cluster.
    skewed
        Whether sandboxes have other ideas of the time of day.
    say
        Called with a line for each round.
    """
    report = Report(seed)
    preload = [*dask.config.get("serverless.lambda.preload"), *(["tests.chaos.skewed_clock"] if skewed else [])]
    options = {
        # Who runs a task while it is killed is innocent here.
        "serverless.executor.allowed-failures": 50,
        "serverless.executor.lease": "5 s",
        "serverless.storage.shards": shards,
        "serverless.policy.compress": False,  # what crosses the lines shall be as large as it is
        "serverless.storage.allowed-failures": 50,
        "serverless.lambda.preload": preload,
    }
    with (
        tempfile.TemporaryDirectory() as directory,
        dask.config.set(options),
        ChaosCluster(n_workers=executors, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        counted = os.path.join(directory, "runs")
        client.register_plugin(Counting(counted))
        end = time.monotonic() + seconds
        with Trouble(cluster, kinds, always, seed) as trouble:
            number = seed * 1_000_003 % 1_000_000
            while time.monotonic() < end:
                for name, make in WORKLOADS.items():
                    number += 1
                    begun = time.monotonic()
                    try:
                        future = client.compute(make(number))
                        expected = answer(make(number))
                        agree(future.result(timeout=ROUND_SECONDS_MAX), expected)
                        report.rounds[name] += 1
                    except Exception as error:
                        if "full" in trouble.happened and "is full (limit: " in str(error):
                            report.refused[name] += 1
                        else:
                            report.wrong.append(f"{name}({number}): {type(error).__name__}: {error}")
                    took = time.monotonic() - begun
                    report.slowest_seconds = max(report.slowest_seconds, took)
                    say(f"{name}({number}) {took:.1f} s")
        report.happened = trouble.happened
        report.stats = cluster.stats()
        report.runs = runs(counted)
    return report
