"""What people look at: the report of a finished run as one file."""

from seeing.show.report import write_report

__all__ = ["write_report"]
