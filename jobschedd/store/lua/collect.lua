#!lua flags=allow-oom
-- move: start: DISPATCHED -> RUNNING
-- move: return: DISPATCHED, RUNNING -> PENDING, DONE
-- move: collect: DISPATCHED, RUNNING -> DONE, SCHEDULED, PENDING
-- (return: in front, uncharged, or DONE when a user has cancelled it meanwhile; SCHEDULED, PENDING: for a retry)
-- KEYS: leader scheduled
-- ARGV: base, fence; then per report: verb, job, attempt, entry, a, b, c, d, e where
--       'start':  -                       'return': keep (ms) should a user have cancelled it
--       'done':   outcome, result, keep (ms), crashes where their number has changed
--       'retry':  delay (ms), tries, crashes, keep (ms) should a user have cancelled it, class text where that changes
-- returns: per report {verdict, record before}: 1 accepted, 2 duplicate, 3 stale, 4 unknown job.
--          The record comes with an accepted or duplicate 'done' and an accepted 'retry', for the history; also with
--          a stale one of an attempt that is over: its verdict may have been given by a collector that then died.
if call('GET', KEY.leader) ~= ARGV[2] then return redis.error_reply('NOTLEADER another master leads') end
local now = now_ms()
local ACCEPTED, DUPLICATE, STALE, UNKNOWN = 1, 2, 3, 4

local back = {}
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

-- Nearly every report is the end of such a job. False: this one is not.
local function apply_plainly(id, rec, at)
  if ARGV[at + 6] == '0' or ARGV[at + 7] ~= '' or #rec < 60 then return false end
  local version, _, _, _, waiter, expires, state, flags, attempt, time, number, spec_length = unpack_struct(PLAIN, rec)
  if not is_plain(version, expires, flags) or (state ~= DISPATCHED and state ~= RUNNING) then return false end
  if attempt ~= tonumber(ARGV[at + 2]) or not is_entry(ARGV[at + 3], time, number) then return false end
  finish_plain(id, rec, waiter, attempt, spec_length, tonumber(ARGV[at + 4]), ARGV[at + 5], ARGV[at + 6], now)
  return true
end

local replies = {}
for at = 3, #ARGV, 9 do
  local verb, id = ARGV[at], ARGV[at + 1]
  local rec = call('GET', BASE .. 'job:' .. id)
  local reply
  local plain = rec and verb == 'done' and apply_plainly(id, rec, at)
  local r = rec and not plain and read(rec)
  if plain then
    reply = {ACCEPTED, rec}
  elseif not r then
    reply = {UNKNOWN}
  else
    local same = r.attempt == tonumber(ARGV[at + 2]) and is_entry(ARGV[at + 3], r.entry_time, r.entry_number)
    if same and (r.state == DISPATCHED or r.state == RUNNING) then
      reply = apply(verb, id, rec, r, at)
    elseif same and r.state == DONE then
      reply = {DUPLICATE, rec}
    elseif tonumber(ARGV[at + 2]) < r.attempt or (tonumber(ARGV[at + 2]) == r.attempt and r.state < DISPATCHED) then
      reply = {STALE, rec}
    else
      reply = {STALE}
    end
  end
  replies[#replies + 1] = reply
end
pending_again(back)
return replies
