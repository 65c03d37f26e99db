"""Check the account: the doctor's findings, and the live check against Kaggle itself."""
