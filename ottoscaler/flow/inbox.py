"""What the lane of scale_downs is to look at: new tasks, and tasks with new marks.

An object of its own, so that intake.py, which accepts events, and control.py, which acts on them, do not need each
other to be put together. Any thread puts in, the lane takes out.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Sequence

from ottoscaler.ports import OpenTask


class ScaleDownInbox:
    """New scale_downs and superseding events of ours, and event ids of tasks that another replica has marked."""

    def __init__(self) -> None:
        # Set whenever there is something to look at. It outlives a look that is just ending: what is put in meanwhile
        # is looked at next, without a pause.
        self.wake = threading.Event()
        self._lock = threading.Lock()
        self._tasks: list[OpenTask] = []  # guarded by _lock
        self._marked: set[str] = set()  # guarded by _lock
        self._soon = False  # guarded by _lock

    def submit(self, task: OpenTask) -> None:
        """A scale_down, or an event that supersedes others, is ours now."""
        with self._lock:
            self._tasks.append(task)
        self.wake.set()  # after the task is there: a lane that is woken too early would find nothing and wait again

    def submit_cancel_marked(self, event_ids: Iterable[str]) -> None:
        """These tasks of ours were given cancel marks by another replica."""
        with self._lock:
            self._marked.update(event_ids)
        self.wake.set()

    def request_look(self) -> None:
        """Cancelled workers have their results: scale_downs may be over."""
        with self._lock:
            self._soon = True
        self.wake.set()

    def tasks(self) -> Sequence[OpenTask]:
        """The tasks that were not taken out yet."""
        with self._lock:
            return list(self._tasks)

    def remove_opened(self, tasks: Collection[OpenTask]) -> None:
        """These tasks are open in the lane. They are removed only then: a task that is in neither place for a moment
        would not be renewed, and another replica would take it over.
        """
        taken = {id(task) for task in tasks}
        with self._lock:
            self._tasks = [task for task in self._tasks if id(task) not in taken]

    def take_cancel_marked(self) -> set[str]:
        """Take out the event ids of the tasks with new marks."""
        with self._lock:
            marked, self._marked = self._marked, set()
            return marked

    def take_look_request(self) -> bool:
        """Was a look asked for since the last call?"""
        with self._lock:
            soon, self._soon = self._soon, False
            return soon
