#!lua flags=allow-oom
-- A master says that it is there to answer questions about its history.
-- KEYS: masters
-- ARGV: base, "<instance> <node>", for how long (ms; 0: no more), the one that it succeeds (or '')
if ARGV[4] ~= '' then call('ZREM', KEY.masters, ARGV[4]) end
if tonumber(ARGV[3]) == 0 then return call('ZREM', KEY.masters, ARGV[2]) end
call('ZADD', KEY.masters, now_ms() + tonumber(ARGV[3]), ARGV[2])
return 1
