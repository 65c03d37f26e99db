"""Adopt a run: read it from the account, and replay it into this home's ledger."""
