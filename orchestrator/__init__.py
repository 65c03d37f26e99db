"""What decides and launches: the controller, which needs no GPU and no torch."""
