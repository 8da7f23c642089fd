#!lua
-- move: submit: NONE -> PENDING, SCHEDULED, WAITING
-- KEYS: operation next_id scheduled expiring loss held full workflows
-- ARGV: base, sequence of the call, memory of the call (ms), workflow ('': none), n groups; then per group: class text,
--       priority, delay (ms), at (ms since the epoch; 0: none), expires (ms from now), idempotency key, first id where
--       it was reserved (0: none), conditions ('12:ok 13:any'), n jobs, n records;
--       after the record of an array: tasks, limit of those at once (0: none), failures that stop it (0: none), bitmap
--       of the indices, n places; then per place: name, class text, record (then the indices are 1 to n)
-- returns: now (ms), then the first id of each group. A group with a key holds one job, and so does one with an array.
-- All or nothing: a condition on a job without a record refuses the call.
local before = call('MGET', KEY.operation, KEY.full)
local last, full = before[1], before[2]
if last then
  local seen, answer = string.match(last, '^(%d+) (.*)$')
  if seen == ARGV[2] then return cjson.decode(answer) end
end

-- Redis has lost what we had: an id given now may have been given before.
if call('EXISTS', KEY.loss) == 1 then
  return redis.error_reply('DATALOST Redis has lost data of this namespace (' .. (call('HGET', KEY.loss, 'what') or '?')
    .. '): nothing is accepted until an operator decides; see jobsched doctor')
end

if full then return redis.error_reply('QUEUEFULL queue full: ' .. full .. '; try again when jobs have ended') end

local MOST_WORKFLOWS = 10000

local function once(key)
  local id = call('GET', BASE .. 'once:' .. key)
  if id and call('EXISTS', BASE .. 'job:' .. id) == 1 then return tonumber(id) end
end

local function words(text)
  local list = {}
  for word in string.gmatch(text, '%S+') do list[#list + 1] = word end
  return list
end

local FIXED, FIRST_GROUP = 9, 6

-- Bit 512 of the flags: see array.lua.
local function is_array(record)
  return math.floor(string.byte(record, 28) / 2) % 2 == 1
end

-- How many arguments stand behind the record of a group that is an array.
local function beside(at)
  return is_array(ARGV[at + FIXED]) and 5 + 3 * tonumber(ARGV[at + FIXED + 5]) or 0
end

local function each_group(look)
  local at = FIRST_GROUP
  for _ = 1, tonumber(ARGV[5]) do
    local count = tonumber(ARGV[at + 8])
    local problem = look(at, count)
    if problem then return problem end
    at = at + FIXED + count + beside(at)
  end
end

-- Ids that come with this call; those that others wait for. Before anything is written.
local new, awaited = {}, {}
local problem = each_group(function(at, count)
  local first = tonumber(ARGV[at + 6])
  if first == 0 then return end
  for i = 0, count - 1 do
    local id = string.format('%.0f', first + i)
    if call('EXISTS', BASE .. 'job:' .. id) == 1 then return 'IDTAKEN ' .. id end
    new[id] = true
  end
end) or each_group(function(at)
  if ARGV[at + 7] == '' or (ARGV[at + 5] ~= '' and once(ARGV[at + 5])) then return end
  for _, condition in ipairs(words(ARGV[at + 7])) do
    local parent = string.match(condition, '^(.+):%a+$')
    if not new[parent] and call('EXISTS', BASE .. 'job:' .. parent) == 0 then return 'NOPARENT ' .. parent end
    awaited[parent] = true
  end
end)
if problem then return redis.error_reply(problem) end

local function number_of(first, count)
  if first == 0 then return call('INCRBY', KEY.next_id, count) - count + 1 end
  if first + count - 1 > tonumber(call('GET', KEY.next_id) or '0') then
    call('SET', KEY.next_id, string.format('%.0f', first + count - 1))
  end
  return first
end

local function with_flag(rec, flag)
  return string.sub(rec, 1, 26) .. struct.pack('<I2', struct.unpack('<I2', rec, 27) + flag) .. string.sub(rec, 29)
end

local now = now_ms()
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
    if state == SCHEDULED then call('ZADD', KEY.scheduled, due, task) end
    if expires > 0 then call('ZADD', KEY.expiring, expires, task) end
  end
  return true
end

local answer, at = {now}, FIRST_GROUP
for _ = 1, tonumber(ARGV[5]) do
  local priority, delay, due = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  local expires, key, count = tonumber(ARGV[at + 4]), ARGV[at + 5], tonumber(ARGV[at + 8])
  local known = key ~= '' and once(key)
  if known then
    answer[#answer + 1] = known
  else
    local class = class_number(ARGV[at])
    local first, conditions = number_of(tonumber(ARGV[at + 6]), count), words(ARGV[at + 7])
    if due == 0 then due = now + delay end
    local start = due > now and SCHEDULED or PENDING
    if expires > 0 then expires = now + expires end
    local class_bytes, times = struct.pack('<I4', class), struct.pack('<I6I6', now, expires)
    local since, now_bytes = struct.pack('<I6', start == SCHEDULED and due or now), struct.pack('<I6', now)
    local ids = {}
    for i = 1, count do
      local rec, id = ARGV[at + 8 + i], string.format('%.0f', first + i - 1)
      local time = #conditions > 0 and await_all(id, conditions, new, now)
      local state = time and WAITING or start
      local rest = since .. string.sub(rec, 39)
      if state == WAITING then
        rest = now_bytes .. string.sub(rec, 39, 46)
          .. struct.pack('<I6I4', start == SCHEDULED and due or 0, time) .. string.sub(rec, 57)
      end
      if new[id] and awaited[id] then rec = with_flag(rec, AWAITED) end
      call('SET', BASE .. 'job:' .. id, string.sub(rec, 1, 4) .. class_bytes .. string.sub(rec, 9, 12) .. times
        .. string.char(state) .. string.sub(rec, 26, 32) .. rest)
      local alone = is_array(rec) and put_array(id, at + FIXED + 1, priority, state, due, expires, function(task, class_of_it)
        return string.sub(task, 1, 4) .. class_of_it .. string.sub(task, 9, 12) .. times .. string.char(state)
          .. string.sub(task, 26, 32) .. since .. string.sub(task, 39)
      end)
      if state == PENDING and not alone then ids[#ids + 1] = id end
      if state == SCHEDULED and not alone then call('ZADD', KEY.scheduled, due, id) end
      if string.byte(rec, 27) >= HELD then call('HSET', KEY.held, id, cjson.encode({since = now / 1000})) end
      if expires > 0 and not alone then call('ZADD', KEY.expiring, expires, id) end
    end
    if #ids > 0 then make_pending(class, priority, ids, false) end
    if start == SCHEDULED or expires > 0 then ring('s') end
    if key ~= '' then call('SET', BASE .. 'once:' .. key, string.format('%.0f', first)) end
    answer[#answer + 1] = first
  end
  at = at + FIXED + count + beside(at)
end
if ARGV[4] ~= '' then
  call('ZADD', KEY.workflows, string.match(ARGV[4], '^%d+'), ARGV[4])
  call('ZREMRANGEBYRANK', KEY.workflows, 0, -1 - MOST_WORKFLOWS)
end
call('SET', KEY.operation, ARGV[2] .. ' ' .. cjson.encode(answer), 'PX', ARGV[3])
return answer
