#!lua flags=allow-oom
-- What hooks want to be told of; whoever leads says so.
-- KEYS: leader hooked nameable
-- ARGV: base, fence, digits of the outcomes ('': none), names of hooks that jobs may name, with spaces between
if call('GET', KEY.leader) ~= ARGV[2] then return redis.error_reply('NOTLEADER another master leads') end
for at, key in ipairs({KEY.hooked, KEY.nameable}) do
  if ARGV[at + 2] == '' then call('DEL', key) else call('SET', key, ARGV[at + 2]) end
end
return 1
