#!lua flags=allow-oom
-- move: settle: PENDING, SCHEDULED, WAITING, DISPATCHED, RUNNING -> DONE
-- (Redis was rolled back to a copy in which the job has not ended; the history knows that it has)
-- KEYS: leader scheduled
-- ARGV: base, fence; then per job: id, attempt, when that ended (ms), outcome, result, keep (ms)
-- returns: how many ended now
if call('GET', KEY.leader) ~= ARGV[2] then return redis.error_reply('NOTLEADER another master leads') end
local now, settled = now_ms(), 0

-- A task that had not started in that copy has no record, or one of a former life.
local function record_of(id, attempt)
  if not array.is_todo(id) then return call('GET', BASE .. 'job:' .. id) end
  return array.is_behind(id, attempt) and array.bring_forth(id, now)
end

-- An end that came before the present state is one that a user's retry has undone.
local function is_later(r, attempt, ended)
  if attempt ~= r.attempt then return attempt > r.attempt end
  return r.state == DISPATCHED or r.state == RUNNING or ended >= r.since
end

for at = 3, #ARGV, 6 do
  local id, attempt = ARGV[at], tonumber(ARGV[at + 1])
  local rec = record_of(id, attempt)
  local r = rec and read(rec)
  if r and r.state ~= DONE and is_later(r, attempt, tonumber(ARGV[at + 2])) then
    if r.state == SCHEDULED then call('ZREM', KEY.scheduled, id) end
    if r.state == DISPATCHED or r.state == RUNNING then
      call('XDEL', BASE .. 'dispatch:' .. to_hex(r.incarnation), entry_of(r))
    end
    r.attempt = attempt
    finish(id, rec, r, tonumber(ARGV[at + 3]), ARGV[at + 4], tonumber(ARGV[at + 5]), now)
    settled = settled + 1
  end
end
return settled
