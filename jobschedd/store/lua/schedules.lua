-- Shared by those who change schedules: what is there, and how one is put there.
local function definitions() return BASE .. 'schedules' end

local function state_of(name)
  return BASE .. 'schedule:' .. name
end

-- A new schedule, or one with other times, counts from now on: what was before is not missed.
local function put(name, definition, revision, timing, origin, now)
  local state = state_of(name)
  local known = call('HMGET', state, 'revision', 'timing', 'origin')
  if known[1] == revision and known[3] == origin then return 'unchanged' end
  call('HSET', definitions(), name, definition)
  call('HSET', state, 'revision', revision, 'timing', timing, 'origin', origin, 'changed', string.format('%.0f', now))
  if known[2] ~= timing then
    call('HSET', state, 'cursor', string.format('%.0f', now))
    call('HDEL', state, 'waiting')
  end
  return known[1] and 'changed' or 'added'
end

local function remove(name)
  call('DEL', state_of(name), BASE .. 'fires:' .. name)
  return call('HDEL', definitions(), name)
end
