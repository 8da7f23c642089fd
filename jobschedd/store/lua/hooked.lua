#!lua flags=allow-oom
-- Which outcomes hooks want to be told of; whoever leads says so.
-- KEYS: leader hooked
-- ARGV: base, fence, digits of the outcomes ('': none)
if call('GET', KEY.leader) ~= ARGV[2] then return redis.error_reply('NOTLEADER another master leads') end
if ARGV[3] == '' then return call('DEL', KEY.hooked) end
call('SET', KEY.hooked, ARGV[3])
return 1
