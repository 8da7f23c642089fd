-- Shared by the moves that make jobs: the reply that refuses, an idempotency key, the new jobs.

-- Nothing new is taken while Redis has lost what we had (an id given now may have been given before), nor while a budget
-- is used up. nil while all is well.
local function refusal()
  local loss = BASE .. 'loss'
  if call('EXISTS', loss) == 1 then
    return redis.error_reply('DATALOST Redis has lost data of this namespace (' .. (call('HGET', loss, 'what') or '?')
      .. '): nothing is accepted until an operator decides; see jobsched doctor')
  end
  -- The counter alone was lost: counting anew would give ids that jobs have. The leader puts it right within a second.
  if call('EXISTS', BASE .. 'next-id') == 0 and call('EXISTS', BASE .. 'classes') == 1 then
    return redis.error_reply('TRYAGAIN the counter of job ids is gone; the leading master sets it right')
  end
  local full = call('GET', BASE .. 'full')
  if full then return redis.error_reply('QUEUEFULL queue full: ' .. full .. '; try again when jobs have ended') end
end

-- The id of the job under this idempotency key, while it has a record.
local function known_under(key)
  local id = call('GET', BASE .. 'once:' .. key)
  if id and call('EXISTS', BASE .. 'job:' .. id) == 1 then return tonumber(id) end
end

-- Bit 512 of the flags: see array.lua.
local function is_array(record)
  return math.floor(string.byte(record, 28) / 2) % 2 == 1
end

local function number_of(first, count)
  if first == 0 then return call('INCRBY', BASE .. 'next-id', count) - count + 1 end
  if first + count - 1 > tonumber(call('GET', BASE .. 'next-id') or '0') then
    call('SET', BASE .. 'next-id', string.format('%.0f', first + count - 1))
  end
  return first
end

local function with_flag(rec, flag)
  return string.sub(rec, 1, 26) .. struct.pack('<I2', struct.unpack('<I2', rec, 27) + flag) .. string.sub(rec, 29)
end

-- What stands behind an array's record, from ``at`` on. Returns whether its tasks have places of their
-- own: then those wait by themselves, and not their array for them.
local function put_array(id, at, priority, state, due, expires, record)
  local key, places = array.key(id), tonumber(ARGV[at + 4])
  call('SADD', BASE .. 'arrays', id)
  call('HSET', key, 'total', ARGV[at], 'limit', ARGV[at + 1], 'most_failures', ARGV[at + 2])
  if places == 0 then
    call('HSET', key, 'left', ARGV[at])
    call('SET', array.key(id, 'todo'), ARGV[at + 3])
    call('SET', array.key(id, 'all'), ARGV[at + 3])
    return false
  end
  call('HSET', key, 'left', 0, 'active', places)
  for place = 1, places do
    local name, class, rec = ARGV[at + 3 * place + 2], class_number(ARGV[at + 3 * place + 3]), ARGV[at + 3 * place + 4]
    local task = id .. '_' .. place
    call('SET', BASE .. 'job:' .. task, record(rec, struct.pack('<I4', class)))
    call('RPUSH', array.key(id, 'places'), name)
    call('SETBIT', array.key(id, 'active'), place, 1)
    if state == PENDING then make_pending(class, priority, {task}, false) end
    if state == SCHEDULED then call('ZADD', BASE .. 'scheduled', due, task) end
    if expires > 0 then call('ZADD', BASE .. 'expiring', expires, task) end
  end
  return true
end

-- Nearly all jobs are pending at once, and no flag says anything of them. Nil: these are not.
local function create_plainly(job, now)
  local bytes, records = pack('<I4', job.class), {}
  local rest = pack('<I6I6', now, 0) .. char(PENDING) .. string.rep('\0', 7) .. pack('<I6', now)
  for i = 1, job.count do
    local rec = ARGV[job.at + i - 1]
    if byte(rec, 27) + byte(rec, 28) > 0 then return nil end
    records[i] = sub(rec, 1, 4) .. bytes .. sub(rec, 9, 12) .. rest .. sub(rec, 39)
  end
  local first, ids, prefix = number_of(0, job.count), {}, BASE .. 'job:'
  for i = 1, job.count do
    ids[i] = string.format('%.0f', first + i - 1)
    call('SET', prefix .. ids[i], records[i])
  end
  make_pending(job.class, job.priority, ids, false)
  return first
end

-- New jobs that are alike but for their records, which are job.count arguments from ARGV[job.at] on; behind the one of an
-- array its own. class: its number; due, expires: ms since the epoch (expires 0: never); key '': none; first: the id where
-- it was reserved (0: none); conditions: what they wait for; new, awaited: ids that come with this call, and those that
-- others of it wait for. The first id; the others follow it.
local function create(job, now)
  if job.expires == 0 and job.due <= now and job.first == 0 and job.key == '' and #job.conditions == 0 then
    local made = create_plainly(job, now)
    if made then return made end
  end
  local class, priority, due, expires = job.class, job.priority, job.due, job.expires
  local first, conditions = number_of(job.first, job.count), job.conditions
  local start = due > now and SCHEDULED or PENDING
  local class_bytes, times = struct.pack('<I4', class), struct.pack('<I6I6', now, expires)
  local since, now_bytes = struct.pack('<I6', start == SCHEDULED and due or now), struct.pack('<I6', now)
  local ids = {}
  for i = 1, job.count do
    local rec, id = ARGV[job.at + i - 1], string.format('%.0f', first + i - 1)
    local time, awaited
    if #conditions > 0 then time, awaited = await_all(id, conditions, job.new, now) end
    local state = time and WAITING or start
    local rest = since .. string.sub(rec, 39)
    if state == WAITING then
      rest = now_bytes .. awaited_bytes(awaited)
        .. struct.pack('<I6I4', start == SCHEDULED and due or 0, time) .. string.sub(rec, 57)
    end
    if job.new[id] and job.awaited[id] then rec = with_flag(rec, AWAITED) end
    call('SET', BASE .. 'job:' .. id, string.sub(rec, 1, 4) .. class_bytes .. string.sub(rec, 9, 12) .. times
      .. string.char(state) .. string.sub(rec, 26, 32) .. rest)
    local alone = is_array(rec) and put_array(id, job.at + 1, priority, state, due, expires, function(task, class_of_it)
      return string.sub(task, 1, 4) .. class_of_it .. string.sub(task, 9, 12) .. times .. string.char(state)
        .. string.sub(task, 26, 32) .. since .. string.sub(task, 39)
    end)
    if state == PENDING and not alone then ids[#ids + 1] = id end
    if state == SCHEDULED and not alone then call('ZADD', BASE .. 'scheduled', due, id) end
    if string.byte(rec, 27) >= HELD then call('HSET', BASE .. 'held', id, cjson.encode({since = now / 1000})) end
    if expires > 0 and not alone then call('ZADD', BASE .. 'expiring', expires, id) end
  end
  if #ids > 0 then make_pending(class, priority, ids, false) end
  if start == SCHEDULED or expires > 0 then ring('s') end
  if job.key ~= '' then call('SET', BASE .. 'once:' .. job.key, string.format('%.0f', first)) end
  return first
end
