"""The command in this process, on the model that the tests hold already, and in a process of its own."""

import subprocess
import sys
from typing import NamedTuple

import pytest

import seeing.loading
from seeing import cli
from seeing.data.plates import plates


class Said(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def seeing_command(monkeypatch, capsys):
    """``seeing_command(*words)``: what the command says and the code that it ends with, in this process."""

    def run(*words: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["seeing", *map(str, words)])
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code
        return Said(code or 0, *capsys.readouterr())

    return run


@pytest.fixture
def loaded(monkeypatch, trained):
    """Spares the command the loading: any model is the embedded one."""
    monkeypatch.setattr(seeing.loading, "load", lambda *args, **kwargs: trained)


@pytest.fixture(scope="session")
def process():
    """``process(*words)``: the command in a process of its own."""

    def run(*words: object) -> Said:
        done = subprocess.run(
            [sys.executable, "-m", "seeing.cli", *map(str, words)],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        return Said(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="session")
def photo(tmp_path_factory):
    """(path of a PNG, its sample)."""
    sample = plates("easy", 1, seed=4)[0]
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    sample.image.save(path)
    return path, sample
