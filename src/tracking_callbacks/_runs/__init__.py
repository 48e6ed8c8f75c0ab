"""What users hold: the tracker, the run, and what happens to open runs when the process exits."""
