#!lua flags=allow-oom
-- Forget finished records, those submitted first before the others: their budget is used up. The history has them.
-- KEYS: leader results next_id judged
-- ARGV: base, fence, first id to look at, how many, bytes to free, age that a record has at least (ms),
--       'succeeded' | 'failed' (any other end) | '' (both)
-- returns: {bytes freed, records forgotten, next id to look at (0: there are no more)}
if call('GET', KEY.leader) ~= ARGV[2] then return redis.error_reply('NOTLEADER another master leads') end
local first, left, wanted, which = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[7]
local newest = tonumber(call('GET', KEY.next_id) or 0)
-- What the collector has not put into the history stays: its report is still in the result stream, and may have come
-- there a moment after the end that the record tells; or it was judged with its report.
local MOMENT = 1000
local oldest_report = call('XRANGE', KEY.results, '-', '+', 'COUNT', 1)[1]
local before = now_ms() - tonumber(ARGV[6])
if oldest_report then before = math.min(before, tonumber(string.match(oldest_report[1], '^%d+')) - MOMENT) end
local some_judged = call('EXISTS', KEY.judged) == 1

local function is_meant(id, r)
  if r.state ~= DONE or r.since >= before then return false end
  if some_judged and call('HEXISTS', KEY.judged, id) == 1 then return false end
  return which == '' or (r.outcome == SUCCEEDED) == (which == 'succeeded')
end

local freed, forgotten = 0, 0
local function forget(id, r)
  local key = BASE .. 'job:' .. id
  if has(r.flags, KEYED) then
    local once = key_of(call('GET', key), r)
    if once then free_key(id, once) end
  end
  freed, forgotten = freed + (call('MEMORY', 'USAGE', key) or 0), forgotten + 1
  call('UNLINK', key)
  if not has(r.flags, ARRAY) then return end
  for _, key in ipairs(array.keys(id)) do call('UNLINK', key) end
end

local function look_at(id)
  left = left - 1
  local r = read(call('GETRANGE', BASE .. 'job:' .. id, 0, 59))
  if r and is_meant(id, r) then forget(id, r) end
end

-- Tasks have no ids of their own to count through. Where it stops, it goes on the next time; whether all are looked at.
local function look_at_tasks(id)
  if call('EXISTS', array.key(id)) == 0 then return true end
  local at = tonumber(call('HGET', array.key(id), 'shed:' .. which) or 0)
  while left > 0 and freed < wanted do
    local tasks, following = array.tasks_from(id, at)
    if #tasks == 0 then
      call('HDEL', array.key(id), 'shed:' .. which)
      return true
    end
    for _, task in ipairs(tasks) do look_at(task) end
    at = following
    call('HSET', array.key(id), 'shed:' .. which, at)
  end
  return false
end

local at = first
while at <= newest and left > 0 and freed < wanted do
  local id = string.format('%.0f', at)
  local r = read(call('GETRANGE', BASE .. 'job:' .. id, 0, 59))
  if r and has(r.flags, ARRAY) and not look_at_tasks(id) then break end
  look_at(id)
  at = at + 1
end
return {freed, forgotten, at > newest and 0 or at}
