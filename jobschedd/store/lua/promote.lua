#!lua flags=allow-oom
-- move: promote: SCHEDULED -> PENDING
-- move: expire: PENDING, SCHEDULED, WAITING -> DONE
-- move: expire: RUNNING -> DONE
-- (when the time has come; promote: at the end of the list; RUNNING: an array, which ends once no task is left)
-- KEYS: leader scheduled expiring
-- ARGV: base, fence, keep of expired jobs (ms), at most
-- returns: {promoted, expired, ms until the next is due (-1: none)}
if call('GET', KEY.leader) ~= ARGV[2] then return redis.error_reply('NOTLEADER another master leads') end
local now, keep = now_ms(), tonumber(ARGV[3])

local promoted, lines = 0, {}
for _, id in ipairs(call('ZRANGEBYSCORE', KEY.scheduled, '-inf', now, 'LIMIT', 0, ARGV[4])) do
  call('ZREM', KEY.scheduled, id)
  local rec = call('GETRANGE', BASE .. 'job:' .. id, 0, 59)
  local r = read(rec)
  if r and r.state == SCHEDULED then
    r.state, r.since = PENDING, now
    if has(r.flags, HELD) then
      park(id, r)
    else
      write_middle(id, r)
      line_up(lines, id, r)
    end
    promoted = promoted + 1
  end
end
make_lines_pending(lines)

local expired = 0
for _, id in ipairs(call('ZRANGEBYSCORE', KEY.expiring, '-inf', now, 'LIMIT', 0, ARGV[4])) do
  call('ZREM', KEY.expiring, id)
  local rec = call('GET', BASE .. 'job:' .. id)
  local r = rec and read(rec)
  if r and r.state ~= DONE and has(r.flags, ARRAY) then
    array.drop(id, EXPIRED, keep, now)
    expired = expired + 1
  elseif r and (r.state == PENDING or r.state == SCHEDULED or r.state == WAITING) then
    if r.state == SCHEDULED then call('ZREM', KEY.scheduled, id) end
    finish_unreported(id, rec, r, EXPIRED, 'expired', keep, now)
    if r.state == PENDING then drop_tombstones(r.class, r.priority) end
    expired = expired + 1
  end
end

local soonest = -1
for _, key in ipairs({KEY.scheduled, KEY.expiring}) do
  local first = call('ZRANGE', key, 0, 0, 'WITHSCORES')
  if first[2] then
    local wait = math.max(0, tonumber(first[2]) - now)
    if soonest < 0 or wait < soonest then soonest = wait end
  end
end
return {promoted, expired, soonest}
