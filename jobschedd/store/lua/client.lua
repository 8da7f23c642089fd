#!lua flags=allow-oom
-- A number for a client that waits: to wait costs next to nothing, so a full Redis must not refuse it.
-- KEYS: next_client
-- ARGV: base
-- returns: the number
return call('INCR', KEY.next_client)
