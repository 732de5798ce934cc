"""Work that is sent away comes back whole, whatever gets lost on the way."""

from hypothesis import given
from hypothesis import strategies as st

from seeing.study.rounds import ROUNDS, rounds
from seeing.study.units import Entry, Task, Unit

#: Batches of a unit.
BATCHES = 4


def tasks(n, done=()):
    return [Task(Unit(number, 0, 0, number, number + 1), frozenset(done)) for number in range(n)]


def whole(task):
    """All entries of a task, without those that are done."""
    for batch in range(BATCHES):
        if str(batch) not in task.done:
            yield Entry(task.unit.number, str(batch))
    yield Entry.end(task.unit)


def followed(send, sent):
    """What rounds give, and which units they give up."""
    given_up = []

    def given():
        given_up.extend((yield from rounds(send, sent)))

    return [(entry.unit, entry.key) for entry in given()], [task.unit.number for task in given_up]


@given(st.integers(1, 5), st.randoms(use_true_random=False))
def test_each_entry_comes_once_and_only_what_brings_nothing_three_times_is_given_up(n, luck):
    empty = dict.fromkeys(range(n), 0)

    def send(sent):
        for task in sent:
            entries = list(whole(task))
            # The end of a task gets lost, as when a machine is pulled out; what is left may come twice.
            arrived = entries[: luck.choice([0, 1, 2, len(entries)])]
            empty[task.unit.number] = 0 if arrived else empty[task.unit.number] + 1
            yield from arrived
            if luck.random() < 0.2:
                yield from arrived

    heard, given_up = followed(send, tasks(n))
    assert len(heard) == len(set(heard))
    assert given_up == [number for number, times in empty.items() if times == ROUNDS]
    for number in set(range(n)) - set(given_up):
        assert {key for unit, key in heard if unit == number} == {"0", "1", "2", "3", "end"}


def test_what_is_done_already_is_not_sent_for():
    asked = []

    def send(sent):
        for task in sent:
            asked.append(task.done)
            yield from whole(task)

    heard, given_up = followed(send, tasks(1, done=("0", "2")))
    assert heard == [(0, "1"), (0, "3"), (0, "end")]
    assert asked == [{"0", "2"}]
    assert given_up == []


def test_a_next_round_sends_what_is_left_without_what_was_heard():
    sent_out = []

    def send(sent):
        sent_out.append([(task.unit.number, sorted(task.done)) for task in sent])
        for task in sent:
            entries = list(whole(task))
            yield from entries[:2] if task.unit.number == 1 and len(sent_out) == 1 else entries

    heard, _ = followed(send, tasks(3))
    assert sent_out == [[(0, []), (1, []), (2, [])], [(1, ["0", "1"])]]
    assert len(heard) == 3 * (BATCHES + 1)
