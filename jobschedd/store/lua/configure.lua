#!lua flags=allow-oom
-- What the configuration of the leading master says of limits: for its own reading and for people who ask.
-- KEYS: leader configured_limits
-- ARGV: base, fence, then pairs: field, limit
-- returns: 1
if call('GET', KEY.leader) ~= ARGV[2] then return redis.error_reply('NOTLEADER another master leads') end
call('DEL', KEY.configured_limits)
for at = 3, #ARGV, 2 do call('HSET', KEY.configured_limits, ARGV[at], ARGV[at + 1]) end
return 1
