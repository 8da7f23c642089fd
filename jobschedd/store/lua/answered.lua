#!lua flags=allow-oom
-- An id was said on the result channel, or its time is over: pass the report on to the result stream, once.
-- KEYS: leader results
-- ARGV: base, fence; then per id: id, attempt and entry of the dispatch meant (14 bytes), the report on it should
--       our own slave have left none ('' to wait for that one)
-- returns: per id: 1 passed on | 2 said by somebody who had an older dispatch of it | 0 nothing waits for this
if call('GET', KEY.leader) ~= ARGV[2] then return redis.error_reply('NOTLEADER another master leads') end

local function channel_of(id, rec, r)
  local ok, note = pcall(cmsgpack.unpack, string.sub(rec, 61 + r.spec_length))
  local channel = ok and type(note) == 'table' and note.channel
  return type(channel) == 'string' and call('ZSCORE', BASE .. 'sent:' .. channel, id) and channel
end

local freed = {}
local function pass_on(id, channel, report)
  call('ZREM', BASE .. 'sent:' .. channel, id)
  call('DEL', BASE .. 'answer:' .. id)
  -- Another slave of the same name may have heard the id, too, and not have asked yet.
  call('PEXPIRE', BASE .. 'taken:' .. id, 5000)
  call('XADD', KEY.results, '*', 'report', report)
  freed[channel] = (freed[channel] or 0) + 1
  return 1
end

local function judge(id, meant, report)
  local rec = call('GET', BASE .. 'job:' .. id)
  local r = rec and read(rec)
  if not r or (r.state ~= DISPATCHED and r.state ~= RUNNING) then return 0 end
  local channel = channel_of(id, rec, r)
  if not channel then return 0 end
  local dispatch = string.sub(rec, 29, 32) .. string.sub(rec, 47, 56)
  local left = call('HMGET', BASE .. 'answer:' .. id, 'report', 'dispatch')
  if left[1] and left[2] == dispatch then return pass_on(id, channel, left[1]) end
  if left[1] then
    call('DEL', BASE .. 'answer:' .. id)
    return 2
  end
  if report == '' or meant ~= dispatch then return 0 end
  return pass_on(id, channel, report)
end

local replies = {}
for at = 3, #ARGV, 3 do replies[#replies + 1] = judge(ARGV[at], ARGV[at + 1], ARGV[at + 2]) end
for channel, count in pairs(freed) do ring('r:' .. channel .. ':' .. count) end
return replies
