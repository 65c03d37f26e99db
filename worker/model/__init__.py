"""The model: Gemma 3, its weights, and the arithmetic under it."""
