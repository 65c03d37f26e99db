"""Shards to batches: order, data versions, block reads, verification, scratch copies."""
