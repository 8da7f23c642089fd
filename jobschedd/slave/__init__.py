"""What a node runs for one dispatch channel: receive, start, supervise, spool, report."""
