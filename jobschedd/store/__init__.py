"""Everything that is kept in Redis, and the only code that talks to it."""
