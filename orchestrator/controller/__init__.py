"""The controller: observe, reconcile, decide, act, record."""
