#!lua flags=allow-oom
-- Something is as it was not before: hooks are told of it once, whoever leads.
-- KEYS: leader noticed events
-- ARGV: base, fence; then per thing: field, what it is now ('': forget it), the event to tell of ('': none)
-- returns: how many events there are now that were not before
if call('GET', KEY.leader) ~= ARGV[2] then return redis.error_reply('NOTLEADER another master leads') end
local told = 0
for at = 3, #ARGV, 3 do
  local field, now, event = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  if now == '' then
    call('HDEL', KEY.noticed, field)
  elseif call('HGET', KEY.noticed, field) ~= now then
    call('HSET', KEY.noticed, field, now)
    if event ~= '' then
      call('XADD', KEY.events, 'MAXLEN', '~', EVENTS_LIMIT, '*', 'event', event)
      told = told + 1
    end
  end
end
return told
