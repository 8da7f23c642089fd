#!lua flags=allow-oom
-- The collector hears the result channel: only then the dispatcher publishes.
-- KEYS: leader listening
-- ARGV: base, fence, for how long this is to be believed (ms)
-- returns: 1
if call('GET', KEY.leader) ~= ARGV[2] then return redis.error_reply('NOTLEADER another master leads') end
call('SET', KEY.listening, ARGV[2], 'PX', ARGV[3])
return 1
