#!lua flags=allow-oom
-- Which channels the master publishes to, for people who ask whether a channel is served at all.
-- KEYS: leader wires
-- ARGV: base, fence, channels...
-- returns: 1
if call('GET', KEY.leader) ~= ARGV[2] then return redis.error_reply('NOTLEADER another master leads') end
call('DEL', KEY.wires)
for at = 3, #ARGV do call('SADD', KEY.wires, ARGV[at]) end
return 1
