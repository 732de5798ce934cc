"""What the page on studies shows runs as it stands, and names what there is."""

import re
import runpy
from pathlib import Path

from seeing.methods.recipes import RECIPES
from seeing.study.columns import SCHEMA

PAGE = Path(__file__).parents[2] / "docs" / "studies.md"


def test_the_page_runs_from_top_to_bottom(tmp_path, capsys, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "page.py").write_text("\n".join(blocks), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(tmp_path / "page.py"))
    said = capsys.readouterr().out
    assert "\nTrue\n" in said, "the study that was started again has other rows"
    assert "base" in said


def test_the_page_names_every_column_and_only_methods_that_there_are():
    page = PAGE.read_text(encoding="utf-8")
    for column in SCHEMA.names:
        assert f"`{column}`" in page
    rows = page.split("| method | what it is |")[1].split("\n\n")[0]
    named = {one.split(":")[0] for one in re.findall(r"`([a-z_:=.0-9-]+)`", rows)}
    assert named <= RECIPES.keys()
    assert {"base", "vea", "vea_no_denoise", "oracle"} <= named
