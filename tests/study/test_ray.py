"""A study on Ray: the rows of the local engine, from two workers of which one is killed.

One local cluster of Ray serves all tests. Workers are real processes and really killed. Where the model does
not matter, a stand-in answers that needs no torch, because a process that does takes seconds to start.
"""

import contextlib
import os
import random
import re
import shlex
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from seeing import study
from seeing.cli import app
from seeing.loading import CannotLoad
from seeing.study import planning, pool
from seeing.study.columns import KEY
from seeing.study.on_ray import OnRay, opened
from seeing.study.pool import Raised, Share, answers, said_as_ours, tried
from seeing.study.rounds import rounds
from seeing.study.settings import StudyError
from seeing.study.units import Entry, Task, Unit

ray = pytest.importorskip("ray")


PAGE = Path(__file__).parents[2] / "docs" / "clusters.md"


@pytest.fixture(scope="module")
def engine():
    """Two workers on a local cluster that the engine starts, and that ends with it."""
    made = OnRay(workers=2)
    yield made
    assert ray.is_initialized()
    made.close()
    assert not ray.is_initialized()


@pytest.fixture(scope="module")
def share(engine):
    return engine.connected()


def tasks(n):
    return [Task(Unit(number, 0, 0, number, number + 1)) for number in range(n)]


def stand_in(answer):
    """What makes a worker that answers with ``answer(task)``. Functions within functions travel whole."""

    def make():
        class Worker:
            def answer(self, task):
                return answer(task)

        return Worker()

    return make


# -- the rows ------------------------------------------------------------------------------------------


def deadly(folder, deaths, chance):
    """Workers that kill themselves, behind an entry, so many times in all."""

    def make(*told):
        worker = opened(*told)
        answer = worker.answer

        def answer_and_die(task):
            for entry in answer(task):
                yield entry
                died = len(list(folder.iterdir()))
                if died < deaths and random.random() < chance:
                    with contextlib.suppress(FileExistsError):  # where another was faster
                        (folder / f"{died}").touch(exist_ok=False)
                        os.kill(os.getpid(), signal.SIGKILL)

        worker.answer = answer_and_die
        return worker

    return make


def same_rows(one, other):
    """Every row once, and all columns as they are there."""
    found, expected = (
        each.rows.sort_values(list(KEY), ignore_index=True).drop(columns="seconds") for each in (one, other)
    )
    pd.testing.assert_frame_equal(found, expected, check_exact=True)


def test_a_worker_is_killed_and_the_rows_are_those_of_the_local_engine(engine, tmp_path, monkeypatch):
    """The study of the page, in which a worker is killed in the midst of a unit."""
    (kills := tmp_path / "kills").mkdir()
    monkeypatch.chdir(tmp_path)
    engine.connected()

    class Deadly(OnRay):
        def __init__(self, workers):
            super().__init__(workers)
            self.make = deadly(kills, deaths=1, chance=1.0)

    monkeypatch.setattr("seeing.study.on_ray.OnRay", Deadly)
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    exec(block, names := {})
    assert len(list(kills.iterdir())) == 1
    found = names["found"]
    assert len(found.rows) == 2 * 136
    assert found.failures.empty
    assert not list((tmp_path / "results" / "journal").iterdir())
    same_rows(found, study.run("plates-tiny", "plates:136", "base,vea_in_pass:gain=2", tmp_path / "local"))


@pytest.mark.long
def test_workers_are_killed_again_and_again(engine, tmp_path, monkeypatch):
    (kills := tmp_path / "kills").mkdir()
    asked = ("plates-tiny", "plates:600", "base,vea,vea_in_pass:gain=2")
    monkeypatch.setattr(engine, "make", deadly(kills, deaths=8, chance=0.2))
    found = study.run(*asked, tmp_path / "ray", engine=engine)
    assert len(list(kills.iterdir())) == 8
    assert len(found.rows) == 3 * 600
    same_rows(found, study.run(*asked, tmp_path / "local"))


@pytest.mark.long
def test_a_model_that_there_is_not_is_said_as_it_is_without_ray(engine, tmp_path):
    where = str(tmp_path / "nowhere")
    with pytest.raises(CannotLoad) as local:
        study.run(where, "plates:2", "base", tmp_path / "local")
    with pytest.raises(CannotLoad) as far:
        study.run(where, "plates:2", "base", tmp_path / "ray", engine=engine)
    assert str(far.value) == str(local.value)
    assert "In a worker on Ray" in far.value.__notes__[0]


# -- the pool ------------------------------------------------------------------------------------------


def test_an_entry_is_heard_before_the_next_is_made(share, tmp_path):
    heard = tmp_path / "heard"

    def patient(task):
        yield Entry(task.unit.number, "first")
        for _ in range(600):
            if heard.exists():
                break
            time.sleep(0.05)
        yield Entry(task.unit.number, f"heard: {heard.exists()}")
        yield Entry.end(task.unit)

    keys = []
    for entry in answers(stand_in(patient), (), tasks(1), share):
        heard.touch()
        keys.append(entry.key)
    assert keys == ["first", "heard: True", "end"]


@pytest.mark.long
def test_a_task_that_kills_every_worker_is_given_up_and_the_others_are_done(share, monkeypatch):
    monkeypatch.setattr("seeing.study.rounds.ROUNDS", 1)

    def poisoned(task):
        yield Entry(task.unit.number, "a")
        if task.unit.number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        yield Entry(task.unit.number, "b")
        yield Entry.end(task.unit)

    given_up = []

    def followed():
        given_up.extend(
            (yield from rounds(lambda sent: answers(stand_in(poisoned), (), sent, share), tasks(4)))
        )

    others = sorted((entry.unit, entry.key) for entry in followed() if entry.unit != 1)
    assert [task.unit.number for task in given_up] == [1]
    assert others == [(unit, key) for unit in (0, 2, 3) for key in ("a", "b", "end")]


@pytest.mark.long
def test_a_worker_that_dies_while_it_opens_its_model_ends_the_study_with_a_line(share, monkeypatch):
    monkeypatch.setattr(pool, "DEATHS", 0)

    def deadly():
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(StudyError, match=r"^workers die while they open their model \(.*fewer workers"):
        list(answers(deadly, (), tasks(2), replace(share, workers=1)))


def test_what_ray_says_of_its_workers_becomes_a_line():
    gone = ray.exceptions.RayError("The actor died.\n\tclass_name: Seat")
    said = pytest.raises(StudyError, match=r"can't keep a worker of llava alive: The actor died.*fewer")
    with said as said, said_as_ours("llava"):
        raise gone
    assert "\n" not in str(said.value)


def test_what_a_worker_raises_is_raised_here_and_ends_its_pool(share):
    def wrong(task):
        if task.unit.number == 1:
            raise StudyError("no such head: 99")
        yield Entry(task.unit.number, "a")
        yield Entry.end(task.unit)

    with pytest.raises(StudyError, match="no such head: 99") as raised:
        list(answers(stand_in(wrong), (), tasks(2), share))
    assert re.search(r"In a worker on Ray:(.|\n)*test_ray.py.*in wrong", raised.value.__notes__[0])
    for _ in range(200):
        if ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"]:
            break
        time.sleep(0.05)
    assert ray.available_resources()["CPU"] == ray.cluster_resources()["CPU"]


@pytest.mark.long
def test_a_worker_that_can_not_be_made_says_why(share):
    def make(name):
        raise StudyError(f"no model {name}")

    with pytest.raises(StudyError) as raised:
        list(answers(make, ("llava",), tasks(2), share))
    assert str(raised.value) == "no model llava"


def test_an_exception_that_can_not_travel_is_told():
    class Stubborn(Exception):
        def __init__(self, one, other):
            super().__init__(f"{one} and {other}")

    def wrong():
        raise Stubborn("this", "that")

    found = tried(wrong)
    assert isinstance(found, Raised)
    with pytest.raises(RuntimeError, match="Stubborn: this and that"):
        found.again()


# -- who gets what -------------------------------------------------------------------------------------

DESK, BOX = {"CPU": 8}, {"CPU": 64, "GPU": 4}


@pytest.mark.parametrize(
    ("nodes", "asked", "found"),
    [
        ([DESK], {}, (4, 2, 0)),
        ([DESK], {"workers": 3}, (3, 2, 0)),
        ([{"CPU": 2}], {"workers": 4}, (4, 0.5, 0)),
        ([{"CPU": 1}], {}, (1, 1, 0)),
        ([DESK, DESK], {"cpus": 3}, (4, 3, 0)),
        ([BOX], {}, (4, 16, 1)),
        ([DESK, BOX, BOX], {}, (8, 16, 1)),
        ([BOX], {"gpus": 2}, (2, 32, 2)),
        ([BOX], {"gpus": 0.5}, (8, 8, 0.5)),
        ([BOX], {"workers": 6}, (6, 8, 0.5)),
        ([BOX], {"workers": 2}, (2, 16, 1)),
        ([BOX], {"gpus": 0}, (32, 2, 0)),
        ([{"CPU": 2, "GPU": 4}], {}, (4, 0.5, 1)),
    ],
)
def test_a_worker_gets_its_share_of_what_a_node_has(nodes, asked, found):
    share = Share.of(nodes, **asked)
    assert (share.workers, share.cpus, share.gpus) == found


def test_without_ray_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(StudyError, match=r"pip install 'seeing\[ray\]'"):
        OnRay()


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"num_gpus": -1}, {"num_cpus": -0.5}])
def test_a_number_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(StudyError, match=r"1 worker or more, got 0|is 0 or more, got -"):
        OnRay(**wrong)


def test_a_cluster_that_does_not_answer_is_said(engine, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **settings: (_ for _ in ()).throw(ConnectionError("refused")))
    with pytest.raises(StudyError, match=r"no Ray cluster at 10\.0\.0\.1:6379: refused"):
        OnRay(address="10.0.0.1:6379").connected()


def test_an_open_model_is_refused(trained, engine):
    (job,) = planning.plan(trained, "plates:2", "base").jobs
    with pytest.raises(StudyError, match="open model, which stays in its process"):
        engine.prepare(job)
    with pytest.raises(StudyError, match="open model, which stays in its process"):
        next(engine.run(job, tasks(1)))


def test_a_data_set_that_can_not_be_sent_is_refused(engine):
    (job,) = planning.plan("plates-tiny", "plates:2", "base").jobs
    stuck = replace(job, load={"lock": threading.Lock()})
    with pytest.raises(StudyError, match="of plates-tiny can't be sent to another process: cannot pickle"):
        next(engine.run(stuck, tasks(1)))


def test_the_commands_of_the_page_are_commands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"^seeing study .*$", PAGE.read_text(), flags=re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        words = shlex.split(command.replace("textvqa", "plates:8").replace("/shared/", ""))[1:]
        done = CliRunner().invoke(app, [*words, "--dry-run"])
        assert done.exit_code == 0, done.output
