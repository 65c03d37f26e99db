"""A session inside a Kaggle kernel: inputs found by manifest, checkpoints delivered as dataset versions."""
