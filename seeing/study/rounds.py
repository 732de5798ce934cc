"""Work that is sent out until all of it has come back, wherever it got lost on the way.

Who sends tasks away can't know what became of them: a machine may be gone, or the network. What has come back
is all that counts. So a round sends what is left, without the entries that are there already, and the next
round sends what is left then.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import replace

from seeing.study.units import Entry, Task

#: Rounds in a row in which a task may bring nothing new, before it is given up.
ROUNDS = 3


def rounds(
    send: Callable[[Sequence[Task]], Iterator[Entry]], tasks: Iterable[Task]
) -> Generator[Entry, None, tuple[Task, ...]]:
    """The entries of all tasks, each one once, and at the end the tasks that are given up.

    Args:
        send: sends tasks out once and gives what comes back, in any order, and perhaps not all of it.
    """
    left = {task.unit.number: task for task in tasks}
    in_vain = dict.fromkeys(left, 0)
    while sent := [task for number, task in left.items() if in_vain[number] < ROUNDS]:
        heard: set[int] = set()
        for entry in send(sent):
            task = left.get(entry.unit)
            if task is None or entry.key in task.done:
                continue
            heard.add(entry.unit)
            left[entry.unit] = replace(task, done=task.done | {entry.key})
            if entry.last:
                del left[entry.unit]
            yield entry
        for task in sent:
            number = task.unit.number
            in_vain[number] = 0 if number in heard else in_vain[number] + 1
    return tuple(left.values())
