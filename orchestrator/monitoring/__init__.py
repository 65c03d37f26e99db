"""What users see of a run: status, views, speed, and watching it."""
