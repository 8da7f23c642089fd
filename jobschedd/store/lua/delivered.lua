#!lua flags=allow-oom
-- A delivery has been tried: it is over, or comes back later. Only for whoever still finds it there.
-- KEYS: queue
-- ARGV: base, delivery, the same for the next try ('': none), when (ms from now)
if call('ZREM', KEY.queue, ARGV[2]) == 1 and ARGV[3] ~= '' then
  call('ZADD', KEY.queue, now_ms() + tonumber(ARGV[4]), ARGV[3])
end
return 1
