#!lua flags=allow-oom
-- Events become deliveries, in one step.
-- KEYS: leader events
-- ARGV: base, fence, number of events, their ids..., then per delivery: hook, delivery
-- returns: how many deliveries were dropped, the oldest of hooks that have too many
if call('GET', KEY.leader) ~= ARGV[2] then return redis.error_reply('NOTLEADER another master leads') end
local MOST = 10000
local count, dropped, now = tonumber(ARGV[3]), 0, now_ms()
for at = 4 + count, #ARGV, 2 do
  local queue = BASE .. 'hook:' .. ARGV[at]
  call('ZADD', queue, now, ARGV[at + 1])
  local over = call('ZCARD', queue) - MOST
  if over > 0 then dropped = dropped + call('ZREMRANGEBYRANK', queue, 0, over - 1) end
end
for at = 4, 3 + count do call('XDEL', KEY.events, ARGV[at]) end
return dropped
