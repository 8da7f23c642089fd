#!lua flags=allow-oom
-- move: start: DISPATCHED -> RUNNING
-- move: return: DISPATCHED, RUNNING -> PENDING, DONE
-- move: collect: DISPATCHED, RUNNING -> DONE, SCHEDULED, PENDING
-- (return: in front, uncharged, or DONE when a user has cancelled it meanwhile; SCHEDULED, PENDING: for a retry)
-- WITH: succeed
-- KEYS: leader scheduled
-- ARGV: base, fence; then per report: verb, job, attempt, entry, a, b, c, d, e where
--       'start':  -                       'return': keep (ms) should a user have cancelled it
--       'done':   outcome, result, keep (ms), crashes where their number has changed
--       'retry':  delay (ms), tries, crashes, keep (ms) should a user have cancelled it, class text where that changes
--       or for several: 'succeeded', how many, keep (ms), and of each: job, attempt, entry, result
-- returns: per report {verdict, record before}: 1 accepted, 2 duplicate, 3 stale, 4 unknown job.
--          The record comes with an accepted or duplicate 'done' and an accepted 'retry', for the history; also with
--          a stale one of an attempt that is over: its verdict may have been given by a collector that then died.
if call('GET', KEY.leader) ~= ARGV[2] then return redis.error_reply('NOTLEADER another master leads') end
local now = now_ms()
local ACCEPTED, DUPLICATE, STALE, UNKNOWN = 1, 2, 3, 4

local back, returned = {}, {}
local function apply(verb, id, rec, r, at)
  if verb == 'start' then
    if r.state == DISPATCHED then
      r.state, r.since = RUNNING, now
      write_middle(id, r)
    end
    return {ACCEPTED}
  elseif verb == 'return' then
    if has(r.flags, CANCEL_REQUESTED) then
      finish_unreported(id, rec, r, CANCELLED, 'cancelled', tonumber(ARGV[at + 4]), now)
    else
      take_back(back, id, rec, r, now)
      returned[r.class] = true
    end
    return {ACCEPTED}
  elseif verb == 'done' then
    local whole = rec
    if ARGV[at + 7] ~= '' then
      whole = string.sub(rec, 1, 3) .. struct.pack('B', math.min(tonumber(ARGV[at + 7]), 255)) .. string.sub(rec, 5)
    end
    finish(id, whole, r, tonumber(ARGV[at + 4]), ARGV[at + 5], tonumber(ARGV[at + 6]), now)
    return {ACCEPTED, rec}
  elseif verb == 'retry' then
    if has(r.flags, CANCEL_REQUESTED) then
      finish_unreported(id, rec, r, CANCELLED, 'cancelled', tonumber(ARGV[at + 7]), now)
      return {ACCEPTED}
    end
    local delay = tonumber(ARGV[at + 4])
    r.tries, r.crashes = tonumber(ARGV[at + 5]), tonumber(ARGV[at + 6])
    write_tries(id, r)
    if ARGV[at + 8] ~= '' then
      r.class = class_number(ARGV[at + 8])
      call('SETRANGE', BASE .. 'job:' .. id, 4, struct.pack('<I4', r.class))
    end
    if delay > 0 then
      r.state, r.outcome, r.since, r.incarnation, r.entry_time, r.entry_number = SCHEDULED, 0, now + delay, NOBODY, 0, 0
      write_middle(id, r)
      call('ZADD', KEY.scheduled, r.since, id)
      watch_expiry(id, r)
      take_key_again(id, rec, r)
      ring('s')
    else
      take_back(back, id, rec, r, now)
    end
    return {ACCEPTED, rec}
  end
  error('unknown verb ' .. verb)
end

-- Whether this is news of what a channel has now; else what else it is.
local function is_current(rec, r, attempt, entry)
  if not r then return false, {UNKNOWN} end
  if r.attempt == attempt and is_entry(entry, r.entry_time, r.entry_number) then
    if r.state == DISPATCHED or r.state == RUNNING then return true end
    if r.state == DONE then return false, {DUPLICATE, rec} end
  end
  if attempt < r.attempt or (attempt == r.attempt and r.state < DISPATCHED) then return false, {STALE, rec} end
  return false, {STALE}
end

local function record_of(id) return call('GET', BASE .. 'job:' .. id) end

local replies, at = {}, 3
while at <= #ARGV do
  if ARGV[at] == 'succeeded' then
    local first, keep = at + 3, ARGV[at + 2]
    at = first + 4 * tonumber(ARGV[at + 1])
    for one = first, at - 1, 4 do
      local id, attempt, entry, result = ARGV[one], ARGV[one + 1], ARGV[one + 2], ARGV[one + 3]
      local rec = record_of(id)
      local reply = {ACCEPTED, rec}
      if not rec or keep == '0' or not succeed_plainly(id, rec, attempt, entry, result, keep, now) then
        local r = rec and read(rec)
        local current, other = is_current(rec, r, tonumber(attempt), entry)
        if current then finish(id, rec, r, SUCCEEDED, result, tonumber(keep), now) else reply = other end
      end
      replies[#replies + 1] = reply
    end
  else
    local id = ARGV[at + 1]
    local rec = record_of(id)
    local r = rec and read(rec)
    local current, other = is_current(rec, r, tonumber(ARGV[at + 2]), ARGV[at + 3])
    replies[#replies + 1] = current and apply(ARGV[at], id, rec, r, at) or other
    at = at + 9
  end
end
pending_again(back)
for class in pairs(returned) do ring(string.format('b:%d', class)) end
return replies
