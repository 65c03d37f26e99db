"""Check the Kaggle account: the doctor's findings, and the live check with real kernels."""
