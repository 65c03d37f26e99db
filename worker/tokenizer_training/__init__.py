"""Train a tokenizer on the user's text: sample, train, check, report."""
