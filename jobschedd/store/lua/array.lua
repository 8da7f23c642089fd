-- Job arrays: what belongs to a parent's record (jobs with the flag ARRAY) and to its tasks (``<parent>_<index>``, TASK).
--
-- array:<id>             counts: total, limit, left (indices not started), active (started, not ended), o<outcome>; and
--                        at (where the first index not started may be, in bytes), parked (no marker stands in the list),
--                        highest (attempt of any task), most_failures, stopped, begun, again, keep, shed:<which> (see shed.lua)
-- array:<id>:all         bitmap of all its indices
-- array:<id>:todo        bitmap of the indices that have not started, or not again: it outweighs an older record
-- array:<id>:active      bitmap of the indices that have a record and have not ended
-- array:<id>:failed      bitmap of the indices that did not succeed
-- array:<id>:cancelled   bitmap of those among them that never got a record, likewise :expired
-- array:<id>:places      list of the places of a job for all nodes: there every task waits in a list of its own
--
-- In the pending list of its class an array is one id, its marker. Who meets it takes tasks from it. More than one
-- marker does no harm: what may start is decided by the counts alone. An array without a marker is parked: nothing is
-- left, or its limit is reached; the end of a task puts the marker back.

local WORDS = {[2] = 'failed', [3] = 'timed out', [4] = 'cancelled', [5] = 'lost', [6] = 'expired', [7] = 'skipped'}
local PARTS = {'', ':all', ':todo', ':active', ':failed', ':cancelled', ':expired', ':places'}

function array.key(id, part)
  return BASE .. 'array:' .. id .. (part and ':' .. part or '')
end

-- Parent and index of a task, nil for any other job.
function array.task_of(id)
  return string.match(id, '^(%d+)_(%d+)$')
end

-- Whether a task waits in the bitmap: whatever its record says is then a former life.
function array.is_todo(id)
  local parent, index = array.task_of(id)
  return parent ~= nil and call('GETBIT', array.key(parent, 'todo'), index) == 1
end

local function numbers(id, ...)
  local values = call('HMGET', array.key(id), ...)
  for i = 1, select('#', ...) do values[i] = tonumber(values[i] or 0) or 0 end
  return unpack(values)
end

-- Whether a marker stands rightly in the list of this class and priority.
function array.waits_in(r, class, priority)
  return has(r.flags, ARRAY) and r.class == class and r.priority == priority
    and (r.state == RUNNING or r.state == PENDING)
end

-- Whether every task of it has a place, and waits there by itself.
function array.has_places(id)
  return call('EXISTS', array.key(id, 'places')) == 1
end

local function put_marker(id, r)
  call('HDEL', array.key(id), 'parked')
  make_pending(r.class, r.priority, {id}, true)
end

-- The attempt that a task which is to start anew has had in a former life.
local function former_attempt(task, again, highest)
  if not again then return 0 end
  local before = read(call('GETRANGE', BASE .. 'job:' .. task, 0, 59))
  return before and before.attempt or highest
end

-- The record of a task that is about to wait for a channel. A former life gives it its attempt: those only grow.
local function new_record(id, task, rec, r, again, highest, now)
  local attempt, waiter = former_attempt(task, again, highest), 0
  if call('EXISTS', BASE .. 'waiters:' .. task) == 1 then waiter = MANY_WAITERS end
  local flags = TASK + (has(r.flags, NO_RETRY_ON_LOSS) and NO_RETRY_ON_LOSS or 0)
  local made = string.sub(rec, 1, 2) .. '\0\0' .. string.sub(rec, 5, 8) .. struct.pack('<I4', waiter) .. string.sub(rec, 13, 24)
    .. middle(PENDING, 0, flags, attempt, now, NOBODY, 0, 0) .. string.sub(rec, 57, 60 + r.spec_length)
  call('SET', BASE .. 'job:' .. task, made)
  return made
end

local function begin(id, rec, r, now)
  if r.state == PENDING or r.state == SCHEDULED then
    r.state, r.since = RUNNING, now
    write_middle(id, r)
    if has(r.flags, KEYED) then leave_key(id, rec, r) end
  end
end

-- Take up to ``most`` tasks, as far as the limit of the array allows: {id, rec, r} of each; then how many more could be
-- taken from it at once: where there are any, the marker has to stand in its list again.
function array.take(id, rec, r, most, keep, now)
  if r.state == DONE then return {}, 0 end
  if r.expires > 0 and r.expires <= now then
    array.drop(id, EXPIRED, keep, now)
    return {}, 0
  end
  if has(r.flags, HELD) then
    park(id, r)
    return {}, 0
  end
  local limit, active, left, at, again, highest = numbers(id, 'limit', 'active', 'left', 'at', 'again', 'highest')
  local possible = math.max(0, math.min(left, limit > 0 and limit - active or left))
  local todo, tasks = array.key(id, 'todo'), {}
  while #tasks < math.min(most, possible) do
    local index = call('BITPOS', todo, 1, at)
    if index < 0 then
      left, possible = #tasks, #tasks
      break
    end
    at = math.floor(index / 8)
    call('SETBIT', todo, index, 0)
    call('SETBIT', array.key(id, 'active'), index, 1)
    local task = id .. '_' .. index
    local made = new_record(id, task, rec, r, again == 1, highest, now)
    tasks[#tasks + 1] = {id = task, rec = made, r = read(made)}
  end
  local more = possible - #tasks
  call('HSET', array.key(id), 'active', active + #tasks, 'left', left - #tasks, 'at', at)
  if more == 0 then call('HSET', array.key(id), 'parked', 1) end
  if #tasks > 0 then begin(id, rec, r, now) end
  return tasks, more
end

-- Whether a task must not start any more because too many others failed. Also notes that the array has begun.
function array.stopped(id, now)
  local parent = array.task_of(id)
  local stopped, begun = numbers(parent, 'stopped', 'begun')
  if stopped == 0 and begun == 0 and call('EXISTS', array.key(parent)) == 1 then
    call('HSET', array.key(parent), 'begun', 1)
    local rec = call('GET', BASE .. 'job:' .. parent)
    local r = rec and read(rec)
    if r then begin(parent, rec, r, now) end
  end
  return stopped == 1
end

local function outcome_of(id, r)
  local total, succeeded, cancelled = numbers(id, 'total', 'o1', 'o4')
  if succeeded == total then return 1, '' end
  local counted = {}
  for outcome = 2, 7 do
    local count = numbers(id, 'o' .. outcome)
    if count > 0 then counted[#counted + 1] = string.format('%d %s', count, WORDS[outcome]) end
  end
  local text = string.format('%d of %d tasks did not succeed: %s', total - succeeded, total, table.concat(counted, ', '))
  return has(r.flags, CANCEL_REQUESTED) and cancelled > 0 and CANCELLED or 2, text
end

-- The end of the whole, once nothing is left of it. ``keep`` of a success; that of other ends came with those.
local function close(id, keep, now)
  local left, active = numbers(id, 'left', 'active')
  if left > 0 or active > 0 then return end
  local rec = call('GET', BASE .. 'job:' .. id)
  local r = rec and read(rec)
  if not r or r.state == DONE then return end
  local outcome, text = outcome_of(id, r)
  if outcome ~= 1 then keep = numbers(id, 'keep') end
  if r.state == SCHEDULED then call('ZREM', BASE .. 'scheduled', id) end
  call('SREM', BASE .. 'cancelling', id)
  finish(id, rec, r, outcome, cmsgpack.pack({outcome = outcome, cause = 'tasks', error = text, ended = now / 1000}), keep, now)
  call('XADD', BASE .. 'results', '*', 'ended', id)
end

-- What has not started never will: operations on bitmaps, however many there are.
local function end_unstarted(id, outcome, keep)
  local key, todo = array.key(id), array.key(id, 'todo')
  local left = numbers(id, 'left')
  if left == 0 then return end
  if outcome ~= SUCCEEDED then
    for _, part in ipairs({'failed', outcome == EXPIRED and 'expired' or 'cancelled'}) do
      call('BITOP', 'OR', array.key(id, part), array.key(id, part), todo)
    end
  end
  call('DEL', todo)
  call('HINCRBY', key, 'o' .. outcome, left)
  call('HSET', key, 'left', 0, 'keep', keep)
end

function array.drop(id, outcome, keep, now)
  end_unstarted(id, outcome, keep)
  close(id, keep, now)
end

-- Too many have failed: nothing starts any more. What waits by itself is ended when it is met, or by the dispatcher.
local function stop(id, keep, now)
  call('HSET', array.key(id), 'stopped', 1)
  call('SADD', BASE .. 'cancelling', id)
  ring('x')
  array.drop(id, CANCELLED, keep, now)
end

local function note_task(id, r, outcome, keep, now)
  local parent, index = array.task_of(id)
  local key = array.key(parent)
  -- Its array was lost with Redis' data, or its end was counted before.
  if call('EXISTS', key) == 0 or call('SETBIT', array.key(parent, 'active'), index, 0) == 0 then return end
  local active, limit, left, parked, highest, most_failures, stopped =
    numbers(parent, 'active', 'limit', 'left', 'parked', 'highest', 'most_failures', 'stopped')
  active = active - 1
  call('HSET', key, 'active', active, 'highest', math.max(highest, r.attempt))
  call('HINCRBY', key, 'o' .. outcome, 1)
  if outcome ~= 1 then
    call('SETBIT', array.key(parent, 'failed'), index, 1)
    call('HSET', key, 'keep', keep)
    if most_failures > 0 and stopped == 0 and outcome ~= CANCELLED then
      if call('HINCRBY', key, 'failures', 1) >= most_failures then return stop(parent, keep, now) end
    end
  end
  if left > 0 and parked == 1 and (limit == 0 or active < limit) then
    local whole = read(call('GETRANGE', BASE .. 'job:' .. parent, 0, 59))
    if whole then put_marker(parent, whole) end
  end
  close(parent, keep, now)
end

function array.keys(id)
  local keys = {}
  for _, part in ipairs(PARTS) do keys[#keys + 1] = BASE .. 'array:' .. id .. part end
  return keys
end

-- Some of its tasks, whatever they are at: those from this place on (0: the first); the place of the next.
function array.tasks_from(id, at)
  local all, places, tasks = array.key(id, 'all'), call('LLEN', array.key(id, 'places')), {}
  if places > 0 then
    for place = at + 1, math.min(at + 8, places) do tasks[#tasks + 1] = id .. '_' .. place end
    return tasks, at + 8
  end
  local index = call('BITPOS', all, 1, at)
  if index < 0 then return tasks, at end
  at = math.floor(index / 8)
  local byte = string.byte(call('GETRANGE', all, at, at))
  for bit = 0, 7 do
    if math.floor(byte / 2 ^ (7 - bit)) % 2 == 1 then tasks[#tasks + 1] = string.format('%s_%.0f', id, at * 8 + bit) end
  end
  return tasks, at + 1
end

-- Called by the one way to an end.
function array.note_end(id, r, outcome, keep, now)
  if has(r.flags, TASK) then return note_task(id, r, outcome, keep, now) end
  call('SREM', BASE .. 'arrays', id)
  -- Where it ended as a whole: skipped, or known to have ended before a roll-back; failed because of others, then.
  end_unstarted(id, outcome == FAILED and CANCELLED or outcome, keep)
  for _, key in ipairs(array.keys(id)) do
    if keep > 0 then call('PEXPIRE', key, keep) else call('DEL', key) end
  end
end

-- Whether a task that waits in the bitmap is known to have got further: Redis was rolled back.
function array.is_behind(id, attempt)
  local parent = array.task_of(id)
  local again, highest = numbers(parent, 'again', 'highest')
  return attempt > former_attempt(id, again == 1, highest)
end

-- Out of the bitmap: a task that is about to be ended before it started gets a record for that.
function array.bring_forth(id, now)
  local parent, index = array.task_of(id)
  local rec = call('GET', BASE .. 'job:' .. parent)
  local r = rec and read(rec)
  if not r then return nil end
  local again, highest = numbers(parent, 'again', 'highest')
  call('SETBIT', array.key(parent, 'todo'), index, 0)
  call('SETBIT', array.key(parent, 'active'), index, 1)
  call('HINCRBY', array.key(parent), 'left', -1)
  call('HINCRBY', array.key(parent), 'active', 1)
  return new_record(parent, id, rec, r, again == 1, highest, now)
end

-- A user's end of the whole: of what has not started at once, of the tasks that channels have through the dispatcher.
-- Returns whether that was all.
function array.cancel(id, r, keep, now)
  if not has(r.flags, CANCEL_REQUESTED) then
    r.flags = r.flags + CANCEL_REQUESTED
    write_middle(id, r)
    call('SADD', BASE .. 'cancelling', id)
  end
  ring('x')
  array.drop(id, CANCELLED, keep, now)
  return numbers(id, 'active') == 0
end

-- Tasks that are to be ended and of which that was not asked yet, at most so many: all of a cancelled array, those that
-- have not started of a stopped one.
function array.open_cancels(id, r, most)
  local key, at, tasks = array.key(id, 'active'), 0, {}
  local bytes = call('STRLEN', key)
  while at < bytes and #tasks < most do
    local index = call('BITPOS', key, 1, at)
    if index < 0 then break end
    at = math.floor(index / 8)
    local byte = string.byte(call('GETRANGE', key, at, at))
    for bit = 0, 7 do
      if math.floor(byte / 2 ^ (7 - bit)) % 2 == 1 then
        local task = string.format('%s_%.0f', id, at * 8 + bit)
        local state = string.byte(call('GETRANGE', BASE .. 'job:' .. task, 24, 24)) or 0
        local waits = state == PENDING or state == SCHEDULED or state == WAITING
        if waits or (has(r.flags, CANCEL_REQUESTED) and call('SISMEMBER', BASE .. 'cancelling', task) == 0) then
          tasks[#tasks + 1] = task
        end
      end
    end
    at = at + 1
  end
  return tasks
end

-- A finished array lives again, or an unfinished one gets more to do. Returns its header, nil where it may not.
local function reopen(id, now)
  local rec = call('GET', BASE .. 'job:' .. id)
  local r = rec and read(rec)
  if not r or call('EXISTS', array.key(id)) == 0 then return nil end
  if r.state == DONE then
    r.flags = has(r.flags, CANCEL_REQUESTED) and r.flags - CANCEL_REQUESTED or r.flags
    r.state, r.outcome, r.since, r.expires, r.was_done = PENDING, 0, now, 0, true
    call('SET', BASE .. 'job:' .. id, string.sub(rec, 1, 8) .. struct.pack('<I4', 0) .. string.sub(rec, 13, 18)
      .. struct.pack('<I6', 0) .. middle(PENDING, 0, r.flags, r.attempt, now, NOBODY, 0, 0)
      .. string.sub(rec, 57, 60 + r.spec_length))
    for _, key in ipairs(array.keys(id)) do call('PERSIST', key) end
    call('SADD', BASE .. 'arrays', id)
    call('HDEL', array.key(id), 'begun', 'stopped', 'failures')
    if has(r.flags, KEYED) then
      local once, scope = key_of(rec, r)
      if once and scope == '' then call('PERSIST', once) elseif once then call('SET', once, id, 'NX') end
    end
  elseif has(r.flags, CANCEL_REQUESTED) or numbers(id, 'stopped') == 1 then
    return nil
  end
  call('HSET', array.key(id), 'again', 1, 'at', 0)
  return r
end

local function wants_marker(id, r)
  return r.was_done or (r.state ~= SCHEDULED and numbers(id, 'parked') == 1)
end

-- A user wants this ended task once more. Returns 'todo' where its array will start it again, 'now' where the caller is
-- to make it pending (it has a place of its own, or its array was lost), 'refused' where the array may not go on.
function array.task_again(id, r, now)
  local parent, index = array.task_of(id)
  if call('EXISTS', array.key(parent)) == 0 then return 'now' end
  local whole = reopen(parent, now)
  if not whole then return 'refused' end
  call('HINCRBY', array.key(parent), 'o' .. r.outcome, -1)
  call('SETBIT', array.key(parent, 'failed'), index, 0)
  if array.has_places(parent) then
    call('SETBIT', array.key(parent, 'active'), index, 1)
    call('HINCRBY', array.key(parent), 'active', 1)
    return 'now'
  end
  call('SETBIT', array.key(parent, 'todo'), index, 1)
  call('HINCRBY', array.key(parent), 'left', 1)
  if wants_marker(parent, whole) then put_marker(parent, whole) end
  return 'todo'
end

-- Start indices again: those that did not succeed, or all. Returns how many, nil where the array may not go on.
function array.again(id, all, now)
  local key, todo, failed = array.key(id), array.key(id, 'todo'), array.key(id, 'failed')
  if not all and call('BITCOUNT', failed) == 0 then return 0 end
  local r = reopen(id, now)
  if not r then return nil end
  if not all then
    call('BITOP', 'OR', todo, todo, failed)
    for outcome = 2, 7 do call('HDEL', key, 'o' .. outcome) end
  else
    call('BITOP', 'OR', todo, array.key(id, 'all'), todo)
    for outcome = 1, 7 do call('HDEL', key, 'o' .. outcome) end
  end
  call('DEL', failed, array.key(id, 'cancelled'), array.key(id, 'expired'))
  local before, left = numbers(id, 'left'), call('BITCOUNT', todo)
  call('HSET', key, 'left', left)
  if wants_marker(id, r) then put_marker(id, r) end
  return left - before
end

-- The same where tasks have places of their own: {index, class, rec} of those that may be meant.
function array.places_again(id, tasks, all, expires, now)
  local key, failed, again = array.key(id), array.key(id, 'failed'), {}
  for _, task in ipairs(tasks) do
    if all or call('GETBIT', failed, task.index) == 1 then again[#again + 1] = task end
  end
  if #again == 0 then return 0 end
  if not reopen(id, now) then return nil end
  local highest = numbers(id, 'highest')
  if expires > 0 then expires = now + expires end
  for _, task in ipairs(again) do
    local name = id .. '_' .. task.index
    local before = read(call('GETRANGE', BASE .. 'job:' .. name, 0, 59))
    local r = read(task.rec)
    call('SET', BASE .. 'job:' .. name, string.sub(task.rec, 1, 4) .. struct.pack('<I4', tonumber(task.class))
      .. string.sub(task.rec, 9, 12) .. struct.pack('<I6I6', now, expires)
      .. middle(PENDING, 0, r.flags, before and before.attempt or highest, now, NOBODY, 0, 0) .. string.sub(task.rec, 57))
    call('SETBIT', failed, task.index, 0)
    call('SETBIT', array.key(id, 'active'), task.index, 1)
    if expires > 0 then call('ZADD', BASE .. 'expiring', expires, name) end
    make_pending(tonumber(task.class), r.priority, {name}, false)
  end
  for outcome = all and 1 or 2, 7 do call('HDEL', key, 'o' .. outcome) end
  call('HINCRBY', key, 'active', #again)
  if expires > 0 then ring('s') end
  return #again
end

-- Why nobody can hold this job, or give it another priority: 2 a channel has it | 3 has ended | 4 unknown | 5 a task that
-- waits in its array | 6 an array whose tasks wait by themselves. nil: it waits.
function array.why_unfit(id, r)
  if array.is_todo(id) then return 5 end
  if not r then return 4 end
  if r.state == DONE then return 3 end
  if has(r.flags, ARRAY) then return array.has_places(id) and 6 or nil end
  if r.state == DISPATCHED or r.state == RUNNING then return 2 end
end
