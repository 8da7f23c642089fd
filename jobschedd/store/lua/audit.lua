#!lua flags=allow-oom
-- Is every job where its record says? Looks at a slice of all keys and puts back what is missing: it costs nothing
-- while nothing is, and somebody who deletes, evicts or loses a key of ours leaves no job stuck.
-- KEYS: leader channels owners scheduled waiting expiring cancelling
-- ARGV: base, fence, cursor of the walk ('0': from the start), keys to look at
-- returns: {cursor, now (ms), repairs made, then per job whose dispatch entry is gone: id, attempt, entry}
--          An entry is also gone while a report waits to be collected: see recover.
if call('GET', KEY.leader) ~= ARGV[2] then return redis.error_reply('NOTLEADER another master leads') end
-- A longer list is not read as a whole.
local LONGEST = 10000
local repairs = 0

-- A channel without a lease announces itself anew.
local function announce_anew(incarnation)
  repairs = repairs + call('DEL', BASE .. 'lease:' .. incarnation)
end

local function look_at_the_tables()
  local channels, owners = call('EXISTS', KEY.channels), call('EXISTS', KEY.owners)
  if channels == 0 and owners == 1 then
    for _, incarnation in ipairs(call('HVALS', KEY.owners)) do announce_anew(incarnation) end
  elseif owners == 0 and channels == 1 then
    for _, incarnation in ipairs(call('HKEYS', KEY.channels)) do announce_anew(incarnation) end
  end
end

local waiting = {} -- name of a list -> {class, priority, {{since, number, id}, ...}}

local function look_at_pending(id, r)
  local name = string.format('%d:%d', r.class, r.priority)
  waiting[name] = waiting[name] or {r.class, r.priority, {}}
  table.insert(waiting[name][3], {r.since, tonumber(id) or 0, id})
end

local function missing_in_short(list, jobs)
  local there, missing = {}, {}
  for _, id in ipairs(call('LRANGE', list, 0, -1)) do there[id] = true end
  for _, job in ipairs(jobs) do
    if not there[job[3]] then missing[#missing + 1] = job[3] end
  end
  return missing
end

-- A list that was lost and has grown again lacks the oldest: where they end is found by halving.
local function missing_in_long(list, jobs)
  local low, high = 0, #jobs
  if call('LPOS', list, jobs[1][3]) then high = 0 end
  while low < high do
    local half = math.ceil((low + high) / 2)
    if call('LPOS', list, jobs[half][3]) then high = half - 1 else low = half end
  end
  local missing = {}
  for i = 1, low do missing[i] = jobs[i][3] end
  return missing
end

local function put_back()
  for name, each in pairs(waiting) do
    local class, priority, jobs = unpack(each)
    local list = pending_list(class, priority)
    table.sort(jobs, function(one, other)
      if one[1] ~= other[1] then return one[1] < other[1] end
      return one[2] < other[2]
    end)
    local length = call('LLEN', list)
    if length > 0 and call('SADD', BASE .. 'pending', name) == 1 then
      ring(string.format('p:%d:%d:%d', class, priority, length))
      repairs = repairs + 1
    end
    local missing = (length > LONGEST and missing_in_long or missing_in_short)(list, jobs)
    repairs = repairs + #missing
    local oldest_last = {}
    for i = #missing, 1, -1 do oldest_last[#oldest_last + 1] = missing[i] end
    if #missing > 0 then make_pending(class, priority, oldest_last, true) end
  end
end

local function look_at_times(id, r)
  if r.state == SCHEDULED and not call('ZSCORE', KEY.scheduled, id) then
    call('ZADD', KEY.scheduled, r.since, id)
    ring('s')
    repairs = repairs + 1
  end
  if r.expires > 0 and not call('ZSCORE', KEY.expiring, id) then
    watch_expiry(id, r)
    repairs = repairs + 1
  end
end

-- pubsub: what stands behind the spec says to which channel it was published.
local function wire_of(id, r)
  local ok, note = pcall(cmsgpack.unpack, call('GETRANGE', BASE .. 'job:' .. id, 60 + r.spec_length, -1))
  return ok and type(note) == 'table' and note.channel
end

local function is_with(id, r)
  local wire = wire_of(id, r)
  if wire then return call('ZSCORE', BASE .. 'sent:' .. wire, id) end
  local incarnation, entry = to_hex(r.incarnation), entry_of(r)
  if #call('XRANGE', BASE .. 'dispatch:' .. incarnation, entry, entry) == 0 then return false end
  if call('HEXISTS', KEY.channels, incarnation) == 0 then
    -- Nobody would take the entries of one that is dead: it is known again, by its number.
    if call('EXISTS', BASE .. 'lease:' .. incarnation) == 1 then
      announce_anew(incarnation)
    else
      call('HSET', KEY.channels, incarnation, '{}')
      ring('c:' .. incarnation)
      repairs = repairs + 1
    end
  end
  return true
end

local gone = {}
local function look_at_dispatched(id, r)
  if has(r.flags, CANCEL_REQUESTED) then repairs = repairs + call('SADD', KEY.cancelling, id) end
  if is_with(id, r) then return end
  gone[#gone + 1] = id
  gone[#gone + 1] = r.attempt
  gone[#gone + 1] = entry_of(r)
end

-- Its marker stands in the list while there are tasks left that may start.
local function look_at_array(id, r)
  local counts = call('HMGET', array.key(id), 'left', 'parked')
  if tonumber(counts[1] or '0') == 0 or counts[2] == '1' or has(r.flags, PARKED) then return end
  if r.state == PENDING or r.state == SCHEDULED then look_at_times(id, r) end
  if array.waits_in(r, r.class, r.priority) then look_at_pending(id, r) end
end

local function look_at(id, r)
  if r.state == WAITING then repairs = repairs + call('ZADD', KEY.waiting, 'NX', 0, id) end
  if has(r.flags, ARRAY) then return look_at_array(id, r) end
  if r.state == DISPATCHED or r.state == RUNNING then return look_at_dispatched(id, r) end
  -- One that is held and whose turn has come stands in no list until it is released; a task that is to start anew
  -- waits in its array.
  if has(r.flags, PARKED) or array.is_todo(id) then return end
  if r.state == PENDING or r.state == SCHEDULED then look_at_times(id, r) end
  if r.state == PENDING then look_at_pending(id, r) end
end

if ARGV[3] == '0' then look_at_the_tables() end
local prefix = BASE .. 'job:'
local page = call('SCAN', ARGV[3], 'MATCH', prefix .. '*', 'COUNT', ARGV[4])
for _, key in ipairs(page[2]) do
  local r = read(call('GETRANGE', key, 0, 59))
  if r then look_at(string.sub(key, #prefix + 1), r) end
end
put_back()
return {page[1], now_ms(), repairs, unpack(gone)}
