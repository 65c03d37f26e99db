"""The commands, grouped by task: runs, data, checkpoints, Kaggle, tools. Slow imports sit inside the commands."""
