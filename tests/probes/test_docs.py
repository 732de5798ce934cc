"""What the page on probes shows runs as it stands, from the first line to the last."""

import re
import runpy
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "probes.md"


def test_the_page_on_probes_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)  # it saves a profile
    (tmp_path / "page.py").write_text("\n".join(blocks), encoding="utf-8")
    runpy.run_path(str(tmp_path / "page.py"))
    assert capsys.readouterr().out
