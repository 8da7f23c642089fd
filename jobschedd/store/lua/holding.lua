-- Shared by the moves that hand jobs to channels: what a job counts against while a channel has it.
-- Terms (JSON; '' where a job counts against nothing):
--   l: per limit {key, most jobs at a time (-1: any number, only counted)}
--   r: per rate {key, most starts, within how many ms}
--   u: resources {node/channel, what that has, what a job asks for}; g: the GPUs that this job has already
--   s: the slots that each takes at once, where more than one: dispatch.lua takes them off the channel's window
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

-- What nobody uses of a channel's resources, by name, and the numbers of its free GPUs.
local function free_of(place, have)
  local free, taken, gpus = {}, {}, {}
  for name, amount in pairs(have) do free[name] = amount end
  for _, text in ipairs(call('HVALS', BASE .. 'used:' .. place)) do
    local used = cmsgpack.unpack(text)
    for name, amount in pairs(used.amounts) do free[name] = (free[name] or 0) - amount end
    for _, number in ipairs(used.gpus) do taken[number] = true end
  end
  for number = 0, (have.gpus or 0) - 1 do
    if not taken[number] then gpus[#gpus + 1] = number end
  end
  free.gpus = math.min(free.gpus or 0, #gpus)
  return free, gpus
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
  if terms.u then
    local free, gpus = free_of(terms.u[1], terms.u[2])
    terms.gpus = gpus
    for name, amount in pairs(terms.u[3]) do
      local fit = math.max(0, math.floor((free[name] or 0) / amount))
      if fit < room then room, by = fit, 'used:' .. terms.u[1] end
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

-- From now on this job has these of the channel's resources; the numbers of its GPUs.
local function use(id, terms)
  local gpus = terms.g or {}
  for _ = #gpus + 1, terms.u[3].gpus or 0 do gpus[#gpus + 1] = table.remove(terms.gpus or {}, 1) end
  call('HSET', BASE .. 'used:' .. terms.u[1], id, cmsgpack.pack({amounts = terms.u[3], gpus = gpus}))
  return gpus
end

-- From now on this job counts. The flag on its record sees to it that whoever takes it from its channel lets go.
-- returns the numbers of its GPUs
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
  local gpus = terms.u and use(id, terms) or {}
  if #keys == 0 and not terms.u then return gpus end
  call('HSET', BASE .. 'holds', id, cmsgpack.pack({limits = keys, place = terms.u and terms.u[1]}))
  if not has(r.flags, HOLDS) then r.flags = r.flags + HOLDS end
  return gpus
end

-- Whoever frees what bounds a class says so: only where somebody waits for it.
local function await_room(by, wait)
  if wait < 0 and by ~= 'place' then call('SADD', BASE .. 'blocked', by) end
end
