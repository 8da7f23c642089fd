#!lua flags=allow-oom
-- move: unblock: WAITING -> PENDING, SCHEDULED, DONE
-- (a job that others wait for has ended; DONE: skipped, for what it waits for can never come)
-- WITH: awaiting
-- KEYS: leader unblocking scheduled
-- ARGV: base, fence, keep of skipped jobs (ms), at most
-- returns: {dependents looked at, unblocked, skipped, ends whose dependents wait still}
-- A call that is repeated finds less to do: a dependent leaves the list in the same step in which it goes on.
if call('GET', KEY.leader) ~= ARGV[2] then return redis.error_reply('NOTLEADER another master leads') end
local now, keep, most = now_ms(), tonumber(ARGV[3]), tonumber(ARGV[4])
local WORDS = {'succeeded', 'failed', 'timed out', 'was cancelled', 'was lost', 'expired', 'was skipped'}
local WISHES = {ok = 'its success', fail = 'its failure', any = 'its end'}

local lines = {}
local function go_on(id, r)
  local due = forget_waiting(id, r)
  if due > now then
    r.state, r.since = SCHEDULED, due
    call('ZADD', KEY.scheduled, r.since, id)
  else
    r.state, r.since = PENDING, now
    if has(r.flags, HELD) then return park(id, r) end
    line_up(lines, id, r)
  end
  write_middle(id, r)
end

local function why(parent, condition, outcome)
  local text = WORDS[outcome] and 'job ' .. parent .. ' ' .. WORDS[outcome] or 'job ' .. parent .. ' has no record any more'
  return text .. '; this job waited for ' .. (WISHES[condition] or condition)
end

-- For how many it waits still, now that the end of this one has come; nil where that had been counted.
local function count_off(id, rec, r, parent)
  local key = BASE .. 'awaits:' .. id
  local counted = call('SREM', key, parent) == 1
  if not counted and call('EXISTS', key) == 0 then
    await_again(id, rec, r, parent)
    counted = call('SREM', key, parent) == 1
  end
  return counted and call('SCARD', key) or nil
end

local unblocked, skipped, scheduled = 0, 0, false
local function judge(one, parent, outcome)
  local id, condition, time = string.match(one, '^(.+):(%a+):(%d+)$')
  local rec = id and call('GET', BASE .. 'job:' .. id)
  local r = rec and read(rec)
  -- Anything else went another way: cancelled, expired, perhaps retried.
  if not r or r.state ~= WAITING or r.entry_number ~= tonumber(time) then return end
  if not meets(condition, outcome) then
    finish_unreported(id, rec, r, SKIPPED, 'dependency', keep, now, why(parent, condition, outcome))
    skipped = skipped + 1
    return
  end
  local left = count_off(id, rec, r, parent)
  if left == 0 then
    go_on(id, r)
    scheduled = scheduled or r.state == SCHEDULED
    unblocked = unblocked + 1
  elseif left then
    write_awaited(id, left)
  end
end

local left = most
while left > 0 do
  local head = call('LINDEX', KEY.unblocking, 0)
  if not head then break end
  local number, outcome, parent = string.match(head, '^(%d+):(%d+):(.+)$')
  local some = number and call('LPOP', BASE .. 'unblocking:' .. number, left)
  if some then
    for _, one in ipairs(some) do judge(one, parent, tonumber(outcome)) end
    left = left - #some
  else
    call('LPOP', KEY.unblocking)
    left = left - 1
  end
end
make_lines_pending(lines)
if scheduled then ring('s') end
return {most - left, unblocked, skipped, call('LLEN', KEY.unblocking)}
