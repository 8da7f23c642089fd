#!lua
-- move: submit: NONE -> PENDING, SCHEDULED
-- KEYS: operation next_id scheduled expiring loss held full
-- ARGV: base, sequence of the call, memory of the call (ms), n groups; then per group: class text, priority,
--       delay (ms), at (ms since the epoch; 0: none), expires (ms from now), idempotency key, n jobs, n records
-- returns: now (ms), then the first id of each group. A group with a key holds one job.
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

local function once(key)
  local id = call('GET', BASE .. 'once:' .. key)
  if id and call('EXISTS', BASE .. 'job:' .. id) == 1 then return tonumber(id) end
end

local now = now_ms()
local answer, at = {now}, 5
for _ = 1, tonumber(ARGV[4]) do
  local priority, delay, due = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  local expires, key, count = tonumber(ARGV[at + 4]), ARGV[at + 5], tonumber(ARGV[at + 6])
  local known = key ~= '' and once(key)
  if known then
    answer[#answer + 1] = known
  else
    local class = class_number(ARGV[at])
    local first = call('INCRBY', KEY.next_id, count) - count + 1
    if due == 0 then due = now + delay end
    local state = due > now and SCHEDULED or PENDING
    if expires > 0 then expires = now + expires end
    local class_bytes, times = struct.pack('<I4', class), struct.pack('<I6I6', now, expires)
    local since = struct.pack('<I6', state == SCHEDULED and due or now)
    local ids = {}
    for i = 1, count do
      local rec, id = ARGV[at + 6 + i], string.format('%.0f', first + i - 1)
      call('SET', BASE .. 'job:' .. id, string.sub(rec, 1, 4) .. class_bytes .. string.sub(rec, 9, 12) .. times
        .. string.char(state) .. string.sub(rec, 26, 32) .. since .. string.sub(rec, 39))
      ids[i] = id
      if state == SCHEDULED then call('ZADD', KEY.scheduled, due, id) end
      if string.byte(rec, 27) >= HELD then call('HSET', KEY.held, id, cjson.encode({since = now / 1000})) end
      if expires > 0 then call('ZADD', KEY.expiring, expires, id) end
    end
    if state == PENDING then make_pending(class, priority, ids, false) end
    if state == SCHEDULED or expires > 0 then ring('s') end
    if key ~= '' then call('SET', BASE .. 'once:' .. key, ids[1]) end
    answer[#answer + 1] = first
  end
  at = at + 7 + count
end
call('SET', KEY.operation, ARGV[2] .. ' ' .. cjson.encode(answer), 'PX', ARGV[3])
return answer
