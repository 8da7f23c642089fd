#!lua flags=allow-oom
-- move: recover: DISPATCHED, RUNNING -> PENDING, DONE
-- (its dispatch entry, or the report on it, is gone from Redis; DONE: lost where it may start once only, or cancelled)
-- KEYS: leader results sent_channels
-- ARGV: base, fence, keep of lost jobs (ms); then per job: id, attempt, entry, when that was first seen to be gone (ms),
--       'stop' (have its channel end it first: nobody will take its report) | 'take'
-- returns: per job 0 nothing is wrong with it (any more) | 1 wait: its report may not be collected yet
--          | 2 its channel was told | 3 it is pending again, or has ended
if call('GET', KEY.leader) ~= ARGV[2] then return redis.error_reply('NOTLEADER another master leads') end
local now, keep = now_ms(), tonumber(ARGV[3])
local oldest = call('XRANGE', KEY.results, '-', '+', 'COUNT', 1)[1]
local collected_until = oldest and tonumber(string.match(oldest[1], '^(%d+)')) or now

local function wire_of(rec, r)
  local ok, note = pcall(cmsgpack.unpack, string.sub(rec, 61 + r.spec_length))
  return ok and type(note) == 'table' and note.channel
end

-- pubsub: it counts as sent again, and ends as that does.
local function send_back(id, r, wire)
  call('ZADD', BASE .. 'sent:' .. wire, r.entry_time, id)
  call('SADD', KEY.sent_channels, wire)
end

local back = {}
local function take(id, rec, r)
  if has(r.flags, CANCEL_REQUESTED) then
    finish_unreported(id, rec, r, CANCELLED, 'cancelled', keep, now)
  elseif has(r.flags, NO_RETRY_ON_LOSS) then
    finish_unreported(id, rec, r, LOST, 'channel_lost', keep, now)
  else
    take_back(back, id, rec, r, now)
  end
end

local function judge(at)
  local id, entry = ARGV[at], ARGV[at + 2]
  local rec = call('GET', BASE .. 'job:' .. id)
  local r = rec and read(rec)
  if not r or (r.state ~= DISPATCHED and r.state ~= RUNNING) then return 0 end
  if r.attempt ~= tonumber(ARGV[at + 1]) or not is_entry(entry, r.entry_time, r.entry_number) then return 0 end
  local wire = wire_of(rec, r)
  if wire and call('ZSCORE', BASE .. 'sent:' .. wire, id) then return 0 end
  if not wire and #call('XRANGE', BASE .. 'dispatch:' .. to_hex(r.incarnation), entry, entry) > 0 then return 0 end
  if collected_until <= tonumber(ARGV[at + 3]) then return 1 end
  if wire then
    send_back(id, r, wire)
    return 3
  end
  if ARGV[at + 4] == 'stop' then
    hint('cancel', id, r)
    return 2
  end
  take(id, rec, r)
  return 3
end

local replies = {}
for at = 4, #ARGV, 5 do replies[#replies + 1] = judge(at) end
pending_again(back)
return replies
