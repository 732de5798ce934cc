"""What the page on tables shows runs as it stands, from the first line to the last."""

import re
import runpy
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "tables.md"


def test_the_page_runs_from_top_to_bottom(tmp_path, capsys, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "page.py").write_text("\n".join(blocks), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(tmp_path / "page.py"))
    said = capsys.readouterr().out
    assert "| vea | 24 |" in said
    assert r"\begin{table}" in said
    assert "('base', 'inst', 'vea', 'pai') 128" in said
    assert (tmp_path / "report.html").exists()


def test_the_commands_of_the_page_are_those_of_the_command_line():
    from seeing.cli.table import FORMATS
    from seeing.study.comparing import METRICS
    from seeing.study.layouts import LAYOUTS

    page = PAGE.read_text(encoding="utf-8")
    for name in (*METRICS, *LAYOUTS, *FORMATS.values()):
        assert f"`{name}`" in page
