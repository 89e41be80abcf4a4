"""What a run computes: graphs of symbolic tasks, drawn from its seed, and the right answers. Pure.

A value is a number that depends on its task and, in order, on the values of the task's parents: so a wrong, missing or
swapped input shows in the answer. How large it is, and how long a task takes, is drawn beside it.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Collection, Container, Sequence
from dataclasses import dataclass, field, replace

from dask_serverless.job_events import Key
from dask_serverless.plan.graph import Graph
from dask_serverless.plan.prefixes import Prefixes
from dask_serverless.statistics import Expectation
from lambda_worker.core.schedule import SEGMENT_TASKS

MIB = 2**20


@dataclass(slots=True)
class SimTask:
    """One task.

    Parameters
    ----------
    seconds, nbytes
        How long it takes, and how large its value is.
    failures
        How often it raises before it succeeds (-1: always).
    reschedules
        How often it asks to be run later.
    memory
        The function class below which it runs out of memory.
    poison
        Whether it ends whoever runs it.
    input_nbytes
        What it reads first that is no task's value: data in S3, for instance.
    """

    seconds: float = 0.01
    nbytes: int = 100
    failures: int = 0
    reschedules: int = 0
    memory: int = 0
    poison: bool = False
    input_nbytes: int = 0


@dataclass(slots=True)
class SimJob:
    """One graph that a client submits.

    Parameters
    ----------
    name
        Of the job.
    graph
        Its edges. Numbers without a task are gaps: they make segments sparse.
    tasks
        What each task does, by number.
    visible
        The keys that the client wants, and their tasks.
    externals
        Keys of other jobs, and the tasks that stand for them here.
    at
        When it is submitted, in seconds.
    released_at
        When the client loses interest in all of it (infinity: never).
    prefixes, expected
        Of its keys; and what the cluster has learned of these before.
    """

    name: str
    graph: Graph
    tasks: dict[int, SimTask]
    visible: dict[Key, int]
    externals: dict[Key, int] = field(default_factory=dict)
    at: float = 0.0
    released_at: float = float("inf")
    prefixes: Prefixes | None = None
    expected: Expectation = field(default_factory=Expectation)
    origin: str = ""  # of one that is another one begun again: the name of the first

    def begun_again(self, name: str, wanted: Collection[Key], there: Container[Key]) -> SimJob:
        """Return the part of this job that some of its keys still need, with what is `there` as made elsewhere.

        Numbers stay as they are; what is not needed is a gap.
        """
        outside = {task: key for key, task in self.externals.items()}
        outside |= {task: key for key, task in self.visible.items() if key in there}
        needed: set[int] = set()
        todo = [self.visible[key] for key in wanted]
        while todo:
            task = todo.pop()
            if task not in needed:
                needed.add(task)
                todo += () if task in outside else self.graph.parents[task]
        made = needed - outside.keys()
        old = self.graph
        graph = replace(
            old,
            parents=[row if task in made else [] for task, row in enumerate(old.parents)],
            children=[[each for each in row if each in made] for task, row in enumerate(old.children)],
            starts=sorted(task for task in needed if task in outside or not old.parents[task]),
            visible=frozenset(self.visible[key] for key in wanted),
            externals=frozenset(needed & outside.keys()),
        )
        return replace(
            self,
            name=name,
            origin=self.origin or self.name,
            graph=graph,
            tasks={task: does for task, does in self.tasks.items() if task in made},
            visible={key: self.visible[key] for key in wanted},
            externals={outside[task]: task for task in sorted(needed & outside.keys())},
        )


@dataclass(slots=True)
class Expected:
    """The right answer for a key: a value, or an error of one of these tasks (job and number)."""

    value: int
    failing: frozenset[tuple[str, int]] = frozenset()
    poison: frozenset[tuple[str, int]] = frozenset()


@dataclass(slots=True)
class Workload:
    """All jobs of a run."""

    jobs: list[SimJob]

    def answers(self) -> dict[Key, Expected]:
        """Evaluate everything directly."""
        known: dict[Key, Expected] = {}
        for job in self.jobs:
            keys = {task: key for key, task in job.externals.items()}
            here: dict[int, Expected] = {}
            for task, parents in enumerate(job.graph.parents):
                if task in keys:
                    here[task] = known[keys[task]]
                elif task in job.tasks:
                    above = [here[parent] for parent in parents]
                    failing = frozenset[tuple[str, int]]().union(*(each.failing for each in above))
                    poison = frozenset[tuple[str, int]]().union(*(each.poison for each in above))
                    mine = job.tasks[task]
                    if mine.failures < 0 or mine.failures > job.graph.retries.get(task, 0):
                        failing |= {(job.name, task)}
                    if mine.poison:
                        poison |= {(job.name, task)}
                    here[task] = Expected(combine(job.name, task, [each.value for each in above]), failing, poison)
            known |= {key: here[task] for key, task in job.visible.items()}
        return known


def combine(job: str, task: int, values: Sequence[int]) -> int:
    """Compute a task's value.

    Examples
    --------
    >>> combine("job", 1, [2, 3]) == combine("job", 1, [3, 2])
    False
    """
    return zlib.crc32(f"{job} {task} {values}".encode())


def draw(luck: random.Random, tasks_max: int = 40) -> Workload:
    """Draw one to three jobs, of which later ones may go on from earlier ones."""
    jobs: list[SimJob] = []
    hazards = luck.random() < 0.3
    seconds = 10 ** luck.uniform(-3, 1)
    nbytes = 10 ** luck.uniform(1, 8)
    for number in range(luck.choice((1, 1, 1, 2, 3))):
        name = f"j{number + 1}"
        known = [key for job in jobs for key in job.visible]
        borrowed = luck.sample(known, min(len(known), luck.randint(0, 3)))
        parents = _shape(luck, luck.randint(1, tasks_max), len(borrowed))
        jobs.append(_job(luck, name, parents, borrowed, seconds, nbytes, hazards))
        jobs[-1].at = luck.choice((0.0, 0.0, luck.uniform(0, 10))) + (jobs[-2].at if number else 0.0)
    if luck.random() < 0.1:
        last = jobs[-1]
        last.released_at = last.at + luck.uniform(0.0, 5.0)
    return Workload(jobs)


def _shape(luck: random.Random, count: int, borrowed: int) -> list[list[int]]:
    """Return the parents of each task of a graph of some kind; the first `borrowed` tasks have none."""
    kind = luck.choice(("tree", "chain", "fan", "layers", "random", "diamonds", "matrix"))
    parents: list[list[int]] = [[] for _ in range(borrowed)]
    if kind == "tree":
        row = list(range(borrowed))
        while len(row) < max(2, count // 2):
            row.append(len(parents))
            parents.append([])
        while len(row) > 1:
            above, row = row, []
            for first in range(0, len(above), 2):
                row.append(len(parents))
                parents.append(above[first : first + 2])
    elif kind == "chain":
        for task in range(borrowed, borrowed + count):
            parents.append([task - 1] if task else [])
    elif kind == "fan":
        middle = max(1, count - 2)
        parents.append(list(range(borrowed)))
        root = len(parents) - 1
        parents += [[root] for _ in range(middle)]
        parents.append(list(range(root + 1, root + 1 + middle)))
    elif kind == "layers":
        width = luck.randint(1, 6)
        row = list(range(borrowed))
        while len(parents) < borrowed + count:
            above, row = row, []
            for _ in range(width):
                row.append(len(parents))
                parents.append(sorted(luck.sample(above, luck.randint(min(1, len(above)), min(3, len(above))))))
    elif kind == "diamonds":
        last = list(range(borrowed))
        while len(parents) < borrowed + count:
            top = len(parents)
            parents.append(last)
            sides = luck.randint(2, 4)
            parents += [[top] for _ in range(sides)]
            parents.append(list(range(top + 1, top + 1 + sides)))
            last = [len(parents) - 1]
    elif kind == "matrix":
        side = max(1, int(count**0.5 / 1.5))
        left = [len(parents) + i for i in range(side)]
        parents += [[] for _ in range(2 * side)]
        for row_number in range(side):
            for column in range(side):
                parents.append([left[row_number], left[0] + side + column])
        parents.append(list(range(borrowed)) + list(range(len(parents) - side * side, len(parents))))
    else:
        for task in range(borrowed, borrowed + count):
            upto = min(task, luck.choice((0, 1, 1, 2, 2, 3)))
            parents.append(sorted(luck.sample(range(max(0, task - 12), task), upto)) if upto else [])
    return parents


def _job(
    luck: random.Random,
    name: str,
    parents: list[list[int]],
    borrowed: list[Key],
    seconds: float,
    nbytes: float,
    hazards: bool,
) -> SimJob:
    count = len(parents)
    has_child = {parent for row in parents for parent in row}
    wanted = [task for task in range(count) if task not in has_child or luck.random() < 0.1]
    # Sparse numbers: few tasks to a segment, so that small graphs have many segments.
    spread = luck.choice((1, 1, 1, SEGMENT_TASKS // luck.randint(2, 12)))
    spread = min(spread, 4_000 // count + 1)
    numbers = [task * spread for task in range(count)]
    size = numbers[-1] + 1
    all_parents: list[list[int]] = [[] for _ in range(size)]
    children: list[list[int]] = [[] for _ in range(size)]
    for task, row in enumerate(parents):
        all_parents[numbers[task]] = [numbers[parent] for parent in row]
        for parent in row:
            children[numbers[parent]].append(numbers[task])
    tasks: dict[int, SimTask] = {}
    retries: dict[int, int] = {}
    classes: dict[int, int] = {}
    has_classes = luck.random() < 0.15
    for task in range(len(borrowed), count):
        number = numbers[task]
        mine = tasks[number] = SimTask(seconds * luck.expovariate(1.0), int(nbytes * 10 ** luck.uniform(-1, 0.5)))
        if hazards and luck.random() < 0.15:
            kind = luck.choice(("fails", "recovers", "reschedules", "memory", "poison"))
            if kind == "fails":
                mine.failures = -1
            elif kind == "recovers":
                mine.failures = luck.randint(1, 2)
                retries[number] = luck.randint(1, 3)
            elif kind == "reschedules":
                mine.reschedules = luck.randint(1, 8)
            elif kind == "memory":
                mine.memory = 1
            elif luck.random() < 0.5:
                mine.poison = True
        if has_classes and luck.random() < 0.2:
            classes[number] = luck.randint(1, 2)
    outsiders: dict[Key, int] = {key: numbers[task] for task, key in enumerate(borrowed)}
    for number in outsiders.values():  # whoever begins with it can go on
        smallest = min((classes.get(child, 0) for child in children[number]), default=0)
        if smallest:
            classes[number] = smallest
    graph = Graph(
        parents=all_parents,
        children=children,
        starts=[numbers[task] for task in range(count) if not parents[task]],
        visible=frozenset(numbers[task] for task in wanted if task >= len(borrowed)),
        externals=frozenset(outsiders.values()),
        retries=retries,
        classes=classes,
    )
    visible: dict[Key, int] = {f"{name}-{numbers[task]}": numbers[task] for task in wanted if task >= len(borrowed)}
    return SimJob(name, graph, tasks, visible, outsiders)


# -- values as the store sees them ----------------------------------------------------------------


def to_frames(value: int, nbytes: int) -> list[bytes]:
    """Make the frames of a value, which stand for `nbytes`.

    Examples
    --------
    >>> frames = to_frames(7, 1_000_000)
    >>> from_frames(frames), measure(frames)
    ((7, 1000000), 1000000)
    """
    return [b"%d" % value, b"%d" % nbytes]


def from_frames(frames: Sequence[bytes | bytearray | memoryview]) -> tuple[int, int]:
    """Undo `to_frames`."""
    return int(bytes(frames[0])), int(bytes(frames[1]))


def measure(frames: Sequence[bytes | bytearray | memoryview]) -> int:
    """Tell how large a value is; what is no value is as large as it is."""
    return int(bytes(frames[1])) if len(frames) == 2 else sum(map(len, frames))
