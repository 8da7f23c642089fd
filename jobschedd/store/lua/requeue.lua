#!lua flags=allow-oom
-- move: requeue: DISPATCHED, RUNNING -> PENDING, DONE
-- (DONE: lost, or cancelled meanwhile)
-- KEYS: leader channels suspects
-- ARGV: base, fence, incarnation, since when its lease is missing (ms; 0: only if it left), keep of lost jobs (ms), at most
-- An incarnation that left in order (or whose successor spoke for it) holds nothing that was started;
-- of one that is lost, nobody knows.
-- returns: {'left' | 'lost' | 'alive' | 'unsure' (asked for one that left, and it did not), requeued, lost,
--           kept back because of lost_after, entries still there, ids...}
-- An incarnation that has no entry any more is forgotten.
if call('GET', KEY.leader) ~= ARGV[2] then return redis.error_reply('NOTLEADER another master leads') end
local now, name = now_ms(), ARGV[3]
local why = call('HGET', KEY.channels, name) == 'left' and 'left' or 'lost'
local missing_for, keep, most = now - tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local stream = BASE .. 'dispatch:' .. name
if call('EXISTS', BASE .. 'lease:' .. name) == 1 then return {'alive', 0, 0, 0, call('XLEN', stream)} end
if why == 'lost' and tonumber(ARGV[4]) == 0 then return {'unsure', 0, 0, 0, call('XLEN', stream)} end

-- Entries of two streams may have the same name: those of one job then differ in the attempt.
local function mine(r, entry, attempt)
  return r and (r.state == DISPATCHED or r.state == RUNNING) and is_entry(entry, r.entry_time, r.entry_number)
    and r.attempt == attempt
end

local function lost_after(rec, r)
  local ok, spec = pcall(cmsgpack.unpack, string.sub(rec, 61, 60 + r.spec_length))
  return (ok and type(spec) == 'table' and tonumber(spec.lost_after) or 0) * 1000
end

local requeued, lost, kept, ids = 0, 0, 0, {}
local back = {}

local function take(entry, fields)
  local id = fields[1] == 'job' and fields[2] or ''
  local rec = call('GET', BASE .. 'job:' .. id)
  local r = rec and read(rec)
  if not mine(r, entry, tonumber(fields[4])) then
    call('XDEL', stream, entry)
  elseif why == 'lost' and lost_after(rec, r) > missing_for then
    kept = kept + 1
  else
    call('XDEL', stream, entry)
    ids[#ids + 1] = id
    if why == 'lost' and has(r.flags, NO_RETRY_ON_LOSS) then
      finish_unreported(id, rec, r, LOST, 'node_lost', keep, now)
      lost = lost + 1
    elseif has(r.flags, CANCEL_REQUESTED) then
      finish_unreported(id, rec, r, CANCELLED, 'cancelled', keep, now)
    else
      take_back(back, id, rec, r, now)
      requeued = requeued + 1
    end
  end
end

local from, looked = '-', 0
repeat
  local page = call('XRANGE', stream, from, '+', 'COUNT', most)
  for _, item in ipairs(page) do
    take(item[1], item[2])
    from = '(' .. item[1]
  end
  looked = looked + #page
  -- What is kept back must not hide what stands behind it.
until #page < most or looked - kept >= most
pending_again(back)
local left = call('XLEN', stream)
if left == 0 then
  call('DEL', stream, BASE .. 'control:' .. name)
  call('HDEL', KEY.channels, name)
  call('HDEL', KEY.suspects, name)
end
return {why, requeued, lost, kept, left, unpack(ids)}
