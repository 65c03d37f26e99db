"""Kaggle: sessions as kernels, and everything else that the controller does on an account."""
