"""Upload prepared data to the account, in parts."""
