"""Whole programs: the command line, the stages end to end, the demo, and configurations to copy."""
