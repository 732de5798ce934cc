"""A study that is killed at any moment, many times, ends with the rows of one that nobody killed."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from seeing.study import Study
from seeing.study.columns import KEY

SCRIPT = Path(__file__).with_name("killing.py")

#: What a clock says, and no model.
CLOCKED = ["seconds"]


def kill(folder, *words, timeout=240):
    """Run the script, and give how often it killed, by the number of processes."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), *map(str, words)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return {int(line.split()[0]): int(line.split()[3]) for line in done.stdout.splitlines()}


def rows_of(folder):
    """All rows that stand in Parquet files, as they stand."""
    parts = [pd.read_parquet(path) for path in sorted((folder / "rows").glob("*.parquet"))]
    return pd.concat(parts, ignore_index=True)


def check(folder, name):
    whole, killed = rows_of(folder / "undisturbed"), rows_of(folder / name)
    assert len(whole) == 80 * 2
    assert not killed.duplicated(list(KEY)).any()
    pd.testing.assert_frame_equal(killed.drop(columns=CLOCKED), whole.drop(columns=CLOCKED), check_exact=True)
    assert not list((folder / name / "journal").iterdir())
    study = Study.open(folder / name)
    assert len(study.rows) == len(whole)
    assert not len(study.failures)


def check_all(folder, processes):
    studies = sorted(path.name for path in folder.glob(f"killed-{processes}-*"))
    assert studies
    for name in studies:
        check(folder, name)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    return folder, kill(folder, "--kills", 5, "--processes", 1, 2)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_study_ends_as_if_nobody_had_killed_it(killed, processes):
    folder, kills = killed
    assert kills[processes] == 5
    check_all(folder, processes)


@pytest.mark.long
def test_a_study_survives_hundreds_of_kills(tmp_path):
    kills = kill(tmp_path, "--kills", 100, "--processes", 1, 2, 4, "--seed", 7, timeout=3600)
    assert kills == {1: 100, 2: 100, 4: 100}
    for processes in kills:
        check_all(tmp_path, processes)
