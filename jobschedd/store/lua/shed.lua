#!lua flags=allow-oom
-- Forget finished records, those submitted first before the others: their budget is used up. The history has them.
-- KEYS: leader results next_id
-- ARGV: base, fence, first id to look at, how many ids, bytes to free, age that a record has at least (ms)
-- returns: {bytes freed, records forgotten, next id to look at (0: there are no more)}
if call('GET', KEY.leader) ~= ARGV[2] then return redis.error_reply('NOTLEADER another master leads') end
local first, count, wanted = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local newest = tonumber(call('GET', KEY.next_id) or 0)
-- What the collector has not put into the history stays: its report is still in the result stream, and may have come
-- there a moment after the end that the record tells.
local MOMENT = 1000
local oldest_report = call('XRANGE', KEY.results, '-', '+', 'COUNT', 1)[1]
local before = now_ms() - tonumber(ARGV[6])
if oldest_report then before = math.min(before, tonumber(string.match(oldest_report[1], '^%d+')) - MOMENT) end

local freed, forgotten, at = 0, 0, first
while at <= newest and at < first + count and freed < wanted do
  local id = string.format('%.0f', at)
  local key = BASE .. 'job:' .. id
  local r = read(call('GETRANGE', key, 0, 59))
  if r and r.state == DONE and r.since < before then
    if has(r.flags, KEYED) then
      local once = key_of(call('GET', key), r)
      if once then free_key(id, once) end
    end
    freed, forgotten = freed + (call('MEMORY', 'USAGE', key) or 0), forgotten + 1
    call('UNLINK', key)
  end
  at = at + 1
end
return {freed, forgotten, at > newest and 0 or at}
