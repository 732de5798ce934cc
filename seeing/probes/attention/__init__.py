"""Where a row of attention goes, and how well it finds the evidence."""
