-- Shared by the moves that hand jobs to channels: what a job counts against while a channel has it.
-- Terms (JSON; '' where a job counts against nothing):
--   l: per limit {key, most jobs at a time (-1: any number, only counted)}
--   r: per rate {key, most starts, within how many ms}
--   c: per place with a limit {most jobs at a time, what its channels have: dispatch:<incarnation>, sent:<channel>}
-- Holders are sets of ids and not counters: whatever is repeated changes nothing.

local function rate_key(rate)
  return BASE .. 'rate:' .. rate[1] .. ':' .. string.format('%.0f', rate[3])
end

-- ms until one more may start, when so many of those that count were within the period.
local function next_start(rate, within, now)
  local oldest = call('ZRANGE', rate_key(rate), math.max(0, within - rate[2]), math.max(0, within - rate[2]), 'WITHSCORES')
  return math.max(1, (tonumber(oldest[2]) or now) + rate[3] - now)
end

-- How many of ``room`` jobs the terms let through; where fewer, what bounds them, and for how many ms (-1: until
-- somebody lets go of it).
local function bounded(room, terms, now)
  local by, wait = '', -1
  for _, limit in ipairs(terms.l or {}) do
    if limit[2] >= 0 then
      local free = math.max(0, limit[2] - call('SCARD', BASE .. 'limit:' .. limit[1]))
      if free < room then room, by = free, limit[1] end
    end
  end
  for _, place in ipairs(terms.c or {}) do
    local free = place[1]
    for _, key in ipairs(place[2]) do
      free = free - call(string.sub(key, 1, 5) == 'sent:' and 'ZCARD' or 'XLEN', BASE .. key)
    end
    if free < room then room, by = math.max(0, free), 'place' end
  end
  for _, rate in ipairs(terms.r or {}) do
    call('ZREMRANGEBYSCORE', rate_key(rate), '-inf', now - rate[3])
    local within = call('ZCARD', rate_key(rate))
    local free = math.max(0, rate[2] - within)
    if free < room then room, by, wait = free, 'rate:' .. rate[1], next_start(rate, within, now) end
  end
  return room, by, wait
end

-- From now on this job counts. The flag on its record sees to it that whoever takes it from its channel lets go.
local function hold(id, r, terms, now)
  local keys = {}
  for _, limit in ipairs(terms.l or {}) do
    call('SADD', BASE .. 'limit:' .. limit[1], id)
    keys[#keys + 1] = limit[1]
  end
  for _, rate in ipairs(terms.r or {}) do
    call('ZADD', rate_key(rate), now, id .. ':' .. r.attempt)
    call('PEXPIRE', rate_key(rate), rate[3])
  end
  if #keys == 0 then return end
  call('HSET', BASE .. 'holds', id, cmsgpack.pack({limits = keys}))
  if not has(r.flags, HOLDS) then r.flags = r.flags + HOLDS end
end

-- Whoever frees what bounds a class says so: only where somebody waits for it.
local function await_room(by, wait)
  if wait < 0 and by ~= 'place' then call('SADD', BASE .. 'blocked', by) end
end
