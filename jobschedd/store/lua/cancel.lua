#!lua flags=allow-oom
-- move: cancel: PENDING, SCHEDULED, WAITING -> DONE
-- move: cancel: RUNNING -> DONE
-- (with a channel: a flag on the record and a hint. RUNNING: an array of which no task is with a channel)
-- KEYS: scheduled
-- ARGV: base, keep (ms), ids...
-- returns: per id {1 cancelled | 2 requested | 3 had ended | 4 unknown, outcome where it had ended}
local now, keep = now_ms(), tonumber(ARGV[2])
local replies = {}
for at = 3, #ARGV do
  local id = ARGV[at]
  local rec = array.is_todo(id) and array.bring_forth(id, now) or call('GET', BASE .. 'job:' .. id)
  local r = rec and read(rec)
  local reply
  if not r then
    reply = {4}
  elseif r.state == DONE then
    reply = {3, r.outcome}
  elseif has(r.flags, ARRAY) then
    if r.state == SCHEDULED then call('ZREM', KEY.scheduled, id) end
    reply = {array.cancel(id, r, keep, now) and 1 or 2}
  else
    reply = {request_end(id, rec, r, keep, now)}
  end
  replies[#replies + 1] = reply
end
drop_what_was_left()
return replies
