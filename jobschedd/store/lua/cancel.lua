#!lua flags=allow-oom
-- move: cancel: PENDING, SCHEDULED, WAITING -> DONE
-- (with a channel: a flag on the record and a hint)
-- KEYS:
-- ARGV: base, keep (ms), ids...
-- returns: per id {1 cancelled | 2 requested | 3 had ended | 4 unknown, outcome where it had ended}
local now, keep = now_ms(), tonumber(ARGV[2])
local replies = {}
for at = 3, #ARGV do
  local id = ARGV[at]
  local rec = call('GET', BASE .. 'job:' .. id)
  local r = rec and read(rec)
  local reply
  if not r then
    reply = {4}
  elseif r.state == DONE then
    reply = {3, r.outcome}
  else
    reply = {request_end(id, rec, r, keep, now)}
  end
  replies[#replies + 1] = reply
end
return replies
