"""What users ask of a run: start it (in the background, too), add data to it, rerun a session."""
