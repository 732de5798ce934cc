"""``python -m seeing.cli``."""

from seeing.cli import main

main()
