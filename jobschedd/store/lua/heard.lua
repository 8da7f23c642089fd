#!lua flags=allow-oom
-- The leader has heard of drains: from now on nothing new goes there.
-- KEYS: leader drains
-- ARGV: base, fence, names...
-- returns: how many it has noted
if call('GET', KEY.leader) ~= ARGV[2] then return redis.error_reply('NOTLEADER another master leads') end
local noted = 0
for at = 3, #ARGV do
  local said = call('HGET', KEY.drains, ARGV[at])
  local ok, drain = pcall(cjson.decode, said or '')
  if ok and type(drain) == 'table' then
    drain.heard = true
    call('HSET', KEY.drains, ARGV[at], cjson.encode(drain))
    noted = noted + 1
  end
end
return noted
