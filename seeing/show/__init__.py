"""What people look at: the report of a run or of a study as one file."""

from seeing.show.report import write_report
from seeing.show.study_report import write_study_report

__all__ = ["write_report", "write_study_report"]
