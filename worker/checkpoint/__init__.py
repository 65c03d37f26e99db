"""Checkpoints: take a snapshot of the training state, and save it while the training goes on."""
