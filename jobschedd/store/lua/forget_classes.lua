#!lua flags=allow-oom
-- Forget classes of which nothing is pending. A record that still names one loses nothing: the dispatcher reads from
-- the job itself what it asks for (see Dispatcher).
-- KEYS: leader classes next_class pending
-- ARGV: base, fence, class texts...
-- returns: how many were forgotten
if call('GET', KEY.leader) ~= ARGV[2] then return redis.error_reply('NOTLEADER another master leads') end
local last = tonumber(call('GET', KEY.next_class) or call('HLEN', KEY.classes))
call('SET', KEY.next_class, string.format('%.0f', last))
local pending, forgotten = {}, 0
for _, name in ipairs(call('SMEMBERS', KEY.pending)) do pending[string.match(name, '^(%d+):')] = true end
for at = 3, #ARGV do
  local number = call('HGET', KEY.classes, ARGV[at])
  if number and not pending[number] then forgotten = forgotten + call('HDEL', KEY.classes, ARGV[at]) end
end
return forgotten
