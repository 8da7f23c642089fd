-- Shared by the moves that make jobs: the reply that refuses, a class's number, an idempotency key, the new jobs.

-- Nothing new is taken while Redis has lost what we had (an id given now may have been given before), nor while a budget
-- is used up. nil while all is well.
local function refusal()
  local loss = BASE .. 'loss'
  if call('EXISTS', loss) == 1 then
    return redis.error_reply('DATALOST Redis has lost data of this namespace (' .. (call('HGET', loss, 'what') or '?')
      .. '): nothing is accepted until an operator decides; see jobsched doctor')
  end
  local full = call('GET', BASE .. 'full')
  if full then return redis.error_reply('QUEUEFULL queue full: ' .. full .. '; try again when jobs have ended') end
end

local function class_number(text)
  local classes = BASE .. 'classes'
  local number = call('HGET', classes, text)
  if not number then
    number = call('HLEN', classes) + 1
    call('HSET', classes, text, number)
  end
  return tonumber(number)
end

-- The id of the job under this idempotency key, while it has a record.
local function known_under(key)
  local id = call('GET', BASE .. 'once:' .. key)
  if id and call('EXISTS', BASE .. 'job:' .. id) == 1 then return tonumber(id) end
end

-- Jobs that are alike but for their records, which are ``count`` arguments from ARGV[at] on. due, expires: ms since
-- the epoch (expires 0: never); key '': none. The first id; the others follow it.
local function create(at, count, class, priority, due, expires, key, now)
  local first = call('INCRBY', BASE .. 'next-id', count) - count + 1
  local state = due > now and SCHEDULED or PENDING
  local class_bytes, times = struct.pack('<I4', class), struct.pack('<I6I6', now, expires)
  local since = struct.pack('<I6', state == SCHEDULED and due or now)
  local ids = {}
  for i = 1, count do
    local rec, id = ARGV[at + i - 1], string.format('%.0f', first + i - 1)
    call('SET', BASE .. 'job:' .. id, string.sub(rec, 1, 4) .. class_bytes .. string.sub(rec, 9, 12) .. times
      .. string.char(state) .. string.sub(rec, 26, 32) .. since .. string.sub(rec, 39))
    ids[i] = id
    if state == SCHEDULED then call('ZADD', BASE .. 'scheduled', due, id) end
    if string.byte(rec, 27) >= HELD then call('HSET', BASE .. 'held', id, cjson.encode({since = now / 1000})) end
    if expires > 0 then call('ZADD', BASE .. 'expiring', expires, id) end
  end
  if state == PENDING then make_pending(class, priority, ids, false) end
  if state == SCHEDULED or expires > 0 then ring('s') end
  if key ~= '' then call('SET', BASE .. 'once:' .. key, ids[1]) end
  return first
end
