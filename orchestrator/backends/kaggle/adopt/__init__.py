"""Adopt a run: read what the account shows of it, and replay it into the ledger of this home."""
