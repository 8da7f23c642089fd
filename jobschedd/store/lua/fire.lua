#!lua
-- move: fire: NONE -> PENDING, SCHEDULED
-- move: replace: PENDING, SCHEDULED, WAITING -> DONE
-- (one time of a schedule: its job is made and the schedule's cursor moves on, or neither; replace: the job before it)
-- WITH: create
-- KEYS: leader
-- ARGV: base, fence; then per fire: schedule, revision, cursor it was reckoned from (ms), time (ms), how:
--         'time'    its time has come
--         'pass'    nothing is to run, the cursor moves on to this time
--         'queued'  the first that waits for the job before it
--       times left out before it, if_running, most that may wait, keep of a replaced job (ms), class text, priority,
--       start (ms since the epoch; 0: now), expires (ms from now), key, record
-- returns: now (ms), then per fire {word, job}: fired | skipped | queued | passed | busy (still) | early | changed
--          (paused, removed, moved on by somebody else: read it again)
if call('GET', KEY.leader) ~= ARGV[2] then return redis.error_reply('NOTLEADER another master leads') end
local refused = refusal()
if refused then return refused end
local now = now_ms()
local HISTORY = 50

-- The job of the time before, where it has not ended: id, record, header.
local function running(state)
  local id = call('HGET', state, 'job')
  local rec = id and call('GET', BASE .. 'job:' .. id)
  local r = rec and read(rec)
  if r and r.state ~= DONE then return id, rec, r end
end

local function note(name, state, word, time, job)
  local fires = BASE .. 'fires:' .. name
  call('LPUSH', fires, cjson.encode({time = time, at = now, what = word, job = job}))
  call('LTRIM', fires, 0, HISTORY - 1)
  call('HINCRBY', state, word, 1)
end

-- Times that wait, as text in the state: there are few.
local function waiting(state)
  local times = {}
  for time in string.gmatch(call('HGET', state, 'waiting') or '', '%d+') do times[#times + 1] = time end
  return times
end

local function let_wait(state, times)
  if #times == 0 then call('HDEL', state, 'waiting') else call('HSET', state, 'waiting', table.concat(times, ' ')) end
end

local function submit(name, state, at, time)
  local key = ARGV[at + 13]
  local expires = tonumber(ARGV[at + 12])
  if expires > 0 then expires = now + expires end
  local id = known_under(key) or create({at = at + 14, count = 1, class = class_number(ARGV[at + 9]),
    priority = tonumber(ARGV[at + 10]), due = tonumber(ARGV[at + 11]), expires = expires, key = key, first = 0,
    conditions = {}, new = {}, awaited = {}}, now)
  id = string.format('%.0f', id)
  call('HSET', state, 'job', id, 'fired_for', time, 'fired_at', string.format('%.0f', now))
  note(name, state, 'fired', time, id)
  return {'fired', id}
end

local function fire(name, state, at, time)
  local if_running, times = ARGV[at + 6], waiting(state)
  local id, rec, r = running(state)
  if if_running == 'allow' or (not id and #times == 0) then return submit(name, state, at, time) end
  if if_running == 'skip' then
    note(name, state, 'skipped', time, id)
    return {'skipped', id or ''}
  end
  if if_running == 'replace' then
    for _, older in ipairs(times) do note(name, state, 'replaced', older) end
    let_wait(state, {})
    local gone = not id or request_end(id, rec, r, tonumber(ARGV[at + 8]), now) == 1
    drop_what_was_left()
    if gone then return submit(name, state, at, time) end
    let_wait(state, {time})
    return {'queued', id}
  end
  if #times >= tonumber(ARGV[at + 7]) then
    note(name, state, 'skipped', time, id)
    return {'skipped', id or ''}
  end
  times[#times + 1] = time
  let_wait(state, times)
  return {'queued', id or ''}
end

local function turn(at)
  local name, time, how = ARGV[at], ARGV[at + 3], ARGV[at + 4]
  local state = BASE .. 'schedule:' .. name
  local known = call('HMGET', state, 'revision', 'cursor', 'paused')
  if known[1] ~= ARGV[at + 1] or known[3] then return {'changed', ''} end
  if how == 'queued' then
    local times = waiting(state)
    if times[1] ~= time then return {'changed', ''} end
    if running(state) then return {'busy', ''} end
    table.remove(times, 1)
    let_wait(state, times)
    return submit(name, state, at, time)
  end
  if known[2] ~= ARGV[at + 2] then return {'changed', ''} end
  if tonumber(time) > now then return {'early', ''} end
  call('HSET', state, 'cursor', time)
  if tonumber(ARGV[at + 5]) > 0 then call('HINCRBY', state, 'missed', ARGV[at + 5]) end
  if how == 'pass' then return {'passed', ''} end
  return fire(name, state, at, time)
end

local replies = {now}
for at = 3, #ARGV, 15 do replies[#replies + 1] = turn(at) end
return replies
