"""What an executor does about values that are lost: it makes them again, from what they were made of. Pure.

`lineage` knows what is being remade and who waits for it; here that meets the graph and the values that are kept.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, MutableMapping

from lambda_worker.core.instructions import Locate
from lambda_worker.core.kept import Kept
from lambda_worker.core.lineage import Lineage
from lambda_worker.core.promises import Promises
from lambda_worker.core.schedule import Edges
from lambda_worker.core.segments import Segments


class Remaking:
    """Values that are made again here.

    Parameters
    ----------
    segments, kept, promises
        Of the executor.
    unfitting
        Its ready tasks that do not fit, each with the class that it needs.
    function_class
        Of the executor.

    Attributes
    ----------
    lineage
        What is being remade, and who waits for it.
    tasks
        How many tasks have run again for their values.

    Examples
    --------
    The value of task 0 is lost, which 1 needs:

    >>> segments = Segments()
    >>> segments.add(0, Edges(first=0, parents=[[], [0]], children=[[1], []]))
    >>> kept = Kept({})
    >>> kept.keep_all([0])
    >>> remaking = Remaking(segments, kept, Promises(segments), {}, function_class=0)
    >>> remaking.demand(1, [0]), remaking.lineage.ready
    (True, [0])
    >>> remaking.obstacle(0, segments.here[0]), remaking.lineage.take()
    (None, 0)
    >>> kept.made(0, nbytes=0)
    >>> remaking.made(0)
    (False, [1])
    """

    def __init__(
        self,
        segments: Segments,
        kept: Kept,
        promises: Promises,
        unfitting: MutableMapping[int, int],
        function_class: int,
    ) -> None:
        self.lineage = Lineage()
        self.tasks = 0
        self._segments = segments
        self._kept = kept
        self._promises = promises
        self._unfitting = unfitting
        self._function_class = function_class

    def demand(self, task: int, gone: Collection[int], coming: Collection[int] = ()) -> bool:
        """Have values made again that a task needs, but for those that are `coming`; tell whether there is hope."""
        if not gone or self.lineage.hopeless(gone):
            return False
        self.lineage.wait(task, gone, coming)
        return True

    def made(self, value: int) -> tuple[bool, list[int]]:
        """Note that a value is here.

        Returns whether its task was due here as well, and the tasks that wait for nothing more.
        """
        lineage = self.lineage
        due = True
        if value in lineage:
            self.tasks += 1
            self._release_inputs((value,))
            due = lineage.ended(value)
        going_on = lineage.made(value)
        if not due:
            self._kept.keep(value, reasons=0)  # perhaps nobody waits any more
        return due, going_on

    def give_up(self, value: int) -> bool:
        """Leave those be who wait for a value that cannot be made again; tell whether its task was due here as well."""
        due = True
        if value in self.lineage:
            self._release_inputs((value,))
            due = self.lineage.ended(value)
        tasks, opened = self.lineage.give_up(value)
        self._release_inputs(tasks)
        self._release_inputs(opened)
        return due

    def obstacle(self, task: int, edges: Edges) -> Locate | list[int] | None:
        """Find out what it takes to run the next task again.

        Returns what is to be found out first, or which of its inputs are to be made again first (none: it was passed
        on). None if nothing stands in its way; otherwise the task is not the next one any more.
        """
        needs = edges.classes.get(task, 0) if edges.classes else 0
        if needs > self._function_class:
            self.lineage.take()
            self._pass_on(task, needs)
            return []
        parents = edges.parents[task - edges.first]
        if self.lineage.opens(task):
            self._kept.keep_all(parents)
            if self.lineage.is_anew(task):
                self._kept.renew(parents)
            elif len(parents) > 1 and self._kept.gone(parents):  # who arrived there said where
                self.lineage.locate(self.lineage.take())
                return Locate(task)
        if gone := self._kept.gone(parents):
            self.lineage.take()
            return gone
        return None

    def abandon(self, tasks: Iterable[int], busy: Collection[int]) -> tuple[list[int], list[int]]:
        """Remake nothing more.

        Parameters
        ----------
        tasks
            What is left to a successor in any case.
        busy
            Tasks that are running, or about to.

        Returns
        -------
        tuple of list of int
            What is left to a successor in all, and the values from which it goes on: else what takes longer than a
            life to make again would never end.
        """
        mine = list(tasks)
        waiting, opened = self.lineage.abandon({*busy, *mine})
        for task in (each for each in mine if each in self.lineage):
            opened.append(task)
            waiting += [task] if self.lineage.ended(task) else []
        progress = [value for task in opened for value in self._kept.present(self._segments.parents_of(task))]
        return [*waiting, *(task for task in mine if task not in opened)], progress

    def _pass_on(self, value: int, needs: int) -> None:
        """It takes a larger executor to make a value again: so the tasks that wait for it need one, too."""
        self.lineage.ended(value)
        tasks, opened = self.lineage.give_up(value)
        self._release_inputs(opened)
        for task in tasks:
            self._unfitting[task] = needs
        self._promises.unpromise(tasks)

    def _release_inputs(self, tasks: Iterable[int]) -> None:
        for task in tasks:
            self._kept.release_all(self._segments.known_parents(task) or ())
