"""Show which documents a step reads."""
