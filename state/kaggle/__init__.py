"""The client of Kaggle: its calls, its answers, and the names on the account. Only this room imports Kaggle's library."""
