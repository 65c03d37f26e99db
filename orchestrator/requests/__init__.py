"""What users ask of a run: start it, add data to it, rerun a session."""
