"""What the master role runs: the dispatcher and the collector."""
