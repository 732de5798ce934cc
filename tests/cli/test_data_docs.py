"""What the page on data shows runs as it stands, in Python and in a shell, from top to bottom."""

import re
import runpy
import shlex
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")


def test_the_page_on_data_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys, seeing_command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "page.py").write_text("\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)))
    runpy.run_path(str(tmp_path / "page.py"))
    said = capsys.readouterr().out
    assert "(410.0, 402.0, 480.0, 424.0)" in said
    assert "missing picture" in said

    (spec,) = re.findall(r"^    (other\.jsonl\?\S+)$", PAGE, re.MULTILINE)
    assert seeing_command("data", "check", spec).code == 0

    commands = re.findall(r"^\$ seeing (.*)$", PAGE, re.MULTILINE)
    assert [seeing_command(*shlex.split(one)).code for one in commands] == [1, 0, 0, 0]
    assert [path.name for path in (tmp_path / "drawn").iterdir()] == ["0000.png"]
