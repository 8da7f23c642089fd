#!lua flags=no-writes,allow-oom
-- What uses how much, from samples: a look at every record would hold up the server. Reads only.
-- KEYS: pending scheduled held
-- ARGV: base, draws from all keys, draws from the jobs that wait
-- returns: keys of the database; then of the draws from all keys, per kind that was met: name, keys, bytes; an empty
--          text; jobs that wait, those drawn of them, their bytes
local draws, waiting_draws = tonumber(ARGV[2]), tonumber(ARGV[3])

local function bytes_of(key) return call('MEMORY', 'USAGE', key) or 0 end

local function kind_of(key)
  if string.sub(key, 1, #BASE) ~= BASE then return 'foreign' end
  local kind = string.match(key, '^[^:]+', #BASE + 1) or 'other'
  if kind ~= 'job' then return kind end
  local r = read(call('GETRANGE', key, 0, 59))
  if not r then return 'other' end
  if r.state == WAITING then return 'blocked' end
  if r.state == DONE then return r.outcome == SUCCEEDED and 'finished-succeeded' or 'finished-failed' end
  return (r.state == DISPATCHED or r.state == RUNNING) and 'active' or 'waiting'
end

local keys, bytes, order = {}, {}, {}
for _ = 1, draws do
  local key = call('RANDOMKEY')
  if not key then break end
  local kind = kind_of(key)
  if not keys[kind] then
    keys[kind], bytes[kind] = 0, 0
    order[#order + 1] = kind
  end
  keys[kind], bytes[kind] = keys[kind] + 1, bytes[kind] + bytes_of(key)
end

local lists, waiting = {}, call('ZCARD', KEY.scheduled)
for _, name in ipairs(call('SMEMBERS', KEY.pending)) do
  local length = call('LLEN', BASE .. 'pending:' .. name)
  lists[#lists + 1] = {BASE .. 'pending:' .. name, length}
  waiting = waiting + length
end
local drawn, drawn_bytes = 0, 0
local function draw(id)
  local used = id and bytes_of(BASE .. 'job:' .. id) or 0
  if used > 0 then drawn, drawn_bytes = drawn + 1, drawn_bytes + used end
end
for number = 1, math.min(waiting_draws, #lists) do
  -- From both ends: the middle of a long list is far away for the server.
  local list = lists[math.floor((number - 1) * #lists / math.min(waiting_draws, #lists)) + 1]
  local each = math.max(1, math.floor(waiting_draws / #lists / 2))
  for at = 0, math.min(each, list[2]) - 1 do
    draw(call('LINDEX', list[1], at))
    draw(call('LINDEX', list[1], -1 - at))
  end
end
for _, id in ipairs(call('ZRANDMEMBER', KEY.scheduled, math.min(waiting_draws, call('ZCARD', KEY.scheduled)))) do
  draw(id)
end

-- Of the held ones, those that stand in no list come on top.
local held, parked = call('HRANDFIELD', KEY.held, waiting_draws), 0
for _, id in ipairs(held) do
  local r = read(call('GETRANGE', BASE .. 'job:' .. id, 0, 59))
  if r and has(r.flags, PARKED) then
    parked = parked + 1
    draw(id)
  end
end
if #held > 0 then waiting = waiting + math.floor(call('HLEN', KEY.held) * parked / #held) end

local reply = {call('DBSIZE')}
for _, kind in ipairs(order) do
  reply[#reply + 1] = kind
  reply[#reply + 1] = keys[kind]
  reply[#reply + 1] = bytes[kind]
end
for _, item in ipairs({'', waiting, drawn, drawn_bytes}) do reply[#reply + 1] = item end
return reply
