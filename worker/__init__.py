"""What trains: one session, from its spec to its report."""
