#!lua flags=allow-oom
-- Which channel incarnations have no lease. Remembers since when, so that a new leader need not wait again.
-- KEYS: leader suspects
-- ARGV: base, fence, incarnations...
-- returns: now (ms), then per incarnation: window, entries in its stream, since when its lease is missing (0: it has one)
if call('GET', KEY.leader) ~= ARGV[2] then return redis.error_reply('NOTLEADER another master leads') end
local now = now_ms()
local replies = {now}
for at = 3, #ARGV do
  local name = ARGV[at]
  local window = call('HGET', BASE .. 'lease:' .. name, 'window')
  local since = 0
  if window then
    call('HDEL', KEY.suspects, name)
  else
    call('HSETNX', KEY.suspects, name, now)
    since = tonumber(call('HGET', KEY.suspects, name))
  end
  replies[#replies + 1] = {tonumber(window or -1) or -1, call('XLEN', BASE .. 'dispatch:' .. name), since}
end
return replies
