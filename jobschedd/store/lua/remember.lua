#!lua flags=allow-oom
-- Keep what is to be known of channels while they are away. A full Redis must not hold up the leader for that.
-- KEYS: leader known
-- ARGV: base, fence, then per channel: node/channel, what is known of it (JSON)
-- returns: how many
if call('GET', KEY.leader) ~= ARGV[2] then return redis.error_reply('NOTLEADER another master leads') end
for at = 3, #ARGV, 2 do call('HSET', KEY.known, ARGV[at], ARGV[at + 1]) end
return (#ARGV - 2) / 2
