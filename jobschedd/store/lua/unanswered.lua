#!lua flags=allow-oom
-- What was published too long ago and not answered. A job that our own slave said to run, and whose slave has its
-- lease, is not silent.
-- KEYS: leader sent_channels
-- ARGV: base, fence, how long is too long (ms), at most per channel
-- returns: per job: id, attempt, entry, channel
if call('GET', KEY.leader) ~= ARGV[2] then return redis.error_reply('NOTLEADER another master leads') end
local latest = now_ms() - tonumber(ARGV[3])

local function is_meant(r, score)
  return r and (r.state == DISPATCHED or r.state == RUNNING) and r.entry_time == score
end

local found = {}
for _, channel in ipairs(call('SMEMBERS', KEY.sent_channels)) do
  local key = BASE .. 'sent:' .. channel
  local sent = call('ZRANGEBYSCORE', key, '-inf', latest, 'WITHSCORES', 'LIMIT', 0, ARGV[4])
  for i = 1, #sent, 2 do
    local id = sent[i]
    local r = read(call('GETRANGE', BASE .. 'job:' .. id, 0, 59))
    if not is_meant(r, tonumber(sent[i + 1])) then
      call('ZREM', key, id)
    elseif r.state ~= RUNNING or call('EXISTS', BASE .. 'lease:' .. to_hex(r.incarnation)) == 0 then
      found[#found + 1] = id
      found[#found + 1] = r.attempt
      found[#found + 1] = entry_of(r)
      found[#found + 1] = channel
    end
  end
  if call('EXISTS', key) == 0 then call('SREM', KEY.sent_channels, channel) end
end
return found
