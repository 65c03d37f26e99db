"""Export weights to the formats that other programs read."""
