#!lua flags=allow-oom
-- Repeat the hints of open requests to cancel: the first may have been lost, or the job has a new channel.
-- KEYS: leader cancelling
-- ARGV: base, fence, at most
-- returns: how many are still open
if call('GET', KEY.leader) ~= ARGV[2] then return redis.error_reply('NOTLEADER another master leads') end
local open = 0
for _, id in ipairs(call('SRANDMEMBER', KEY.cancelling, ARGV[3])) do
  local rec = call('GETRANGE', BASE .. 'job:' .. id, 0, 59)
  local r = read(rec)
  if r and (r.state == DISPATCHED or r.state == RUNNING) then
    hint('cancel', id, r)
    open = open + 1
  elseif not r or r.state == DONE then
    call('SREM', KEY.cancelling, id)
  else
    open = open + 1
  end
end
return open
