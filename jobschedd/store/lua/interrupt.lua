#!lua flags=allow-oom
-- The time that a drain gave to what a channel has is over: end it, so that it runs elsewhere, or for good.
-- KEYS: leader cancelling
-- ARGV: base, fence, incarnation, deadline (ms since the epoch), 'requeue' | 'kill', at most
-- returns: how many were asked for; repeated by the dispatcher until the channel has none
if call('GET', KEY.leader) ~= ARGV[2] then return redis.error_reply('NOTLEADER another master leads') end
if now_ms() < tonumber(ARGV[4]) then return 0 end
local name, kill = ARGV[3], ARGV[5] == 'kill'
local asked = 0
for _, item in ipairs(call('XRANGE', BASE .. 'dispatch:' .. name, '-', '+', 'COUNT', ARGV[6])) do
  local id = item[2][1] == 'job' and item[2][2] or ''
  local r = read(call('GETRANGE', BASE .. 'job:' .. id, 0, 59))
  if r and (r.state == DISPATCHED or r.state == RUNNING) and is_entry(item[1], r.entry_time, r.entry_number) then
    if kill and not has(r.flags, CANCEL_REQUESTED) then
      r.flags = r.flags + CANCEL_REQUESTED
      write_middle(id, r)
      call('SADD', KEY.cancelling, id)
    end
    hint(kill and 'cancel' or 'interrupt', id, r)
    asked = asked + 1
  end
end
return asked
