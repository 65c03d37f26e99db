"""One session on Kaggle: quota, inputs, push, status, stop flag, outputs."""
