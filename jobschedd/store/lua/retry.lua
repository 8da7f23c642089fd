#!lua
-- move: retry: DONE -> PENDING, WAITING
-- (with fresh budgets, because a user asked; WAITING: it never started, and what it waits for has not come)
-- KEYS:
-- ARGV: base; then per job: id, time of the end that is meant (ms; '': whichever), so that a repeated call retries once
-- returns: per id: 1 pending again | 2 has not ended, or not with that end | 3 another job has its key | 4 unknown
--          | 5 waits for other jobs again
local now = now_ms()

-- Whether another job has the key that it was submitted under. If not, it is its own again.
local function is_key_taken(id, rec, r)
  if not has(r.flags, KEYED) then return false end
  local once, scope = key_of(rec, r)
  if once and scope == '' then
    call('PERSIST', once)
  elseif once then
    return not call('SET', once, id, 'NX') and call('GET', once) ~= id
  end
  return false
end

local replies = {}
for at = 2, #ARGV, 2 do
  local id = ARGV[at]
  local key = BASE .. 'job:' .. id
  local rec = call('GET', key)
  local r = rec and read(rec)
  local reply
  if array.is_todo(id) then
    reply = 2
  elseif not r then
    reply = 4
  elseif has(r.flags, ARRAY) or r.state ~= DONE or (ARGV[at + 1] ~= '' and r.since ~= tonumber(ARGV[at + 1])) then
    reply = 2
  elseif is_key_taken(id, rec, r) then
    reply = 3
  elseif has(r.flags, TASK) then
    reply = ({todo = 1, refused = 2})[array.task_again(id, r, now)]
  end
  if not reply then
    local flags = has(r.flags, CANCEL_REQUESTED) and r.flags - CANCEL_REQUESTED or r.flags
    local time, awaited
    if r.attempt == 0 then time, awaited = await_all(id, conditions_of(rec, r), {}, now) end
    call('SET', key, string.sub(rec, 1, 2) .. struct.pack('<BB', 0, 0) .. string.sub(rec, 5, 8) .. struct.pack('<I4', 0)
      .. string.sub(rec, 13, 18) .. struct.pack('<I6', 0)
      .. middle(time and WAITING or PENDING, 0, flags, r.attempt, now,
        time and awaited_bytes(awaited) or NOBODY, 0, time or 0)
      .. string.sub(rec, 57, 60 + r.spec_length))
    if not time then make_pending(r.class, r.priority, {id}, false) end
    reply = time and 5 or 1
  end
  replies[#replies + 1] = reply
end
return replies
