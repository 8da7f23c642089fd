#!lua flags=allow-oom
-- move: cancel: PENDING, SCHEDULED, WAITING -> DONE
-- move: cancel: RUNNING -> DONE
-- (with a channel: a flag on the record and a hint. RUNNING: an array of which no task is with a channel)
-- KEYS: scheduled cancelling
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
  elseif r.state == DISPATCHED or r.state == RUNNING then
    if not has(r.flags, CANCEL_REQUESTED) then
      r.flags = r.flags + CANCEL_REQUESTED
      write_middle(id, r)
      call('SADD', KEY.cancelling, id)
    end
    hint('cancel', id, r)
    reply = {2}
  else
    if r.state == SCHEDULED then call('ZREM', KEY.scheduled, id) end
    finish_unreported(id, rec, r, CANCELLED, 'cancelled', keep, now)
    if r.state == PENDING then drop_tombstones(r.class, r.priority) end
    reply = {1}
  end
  replies[#replies + 1] = reply
end
return replies
