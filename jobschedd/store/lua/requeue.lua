#!lua flags=allow-oom
-- move: requeue     DISPATCHED, RUNNING -> PENDING, or DONE (lost, or cancelled meanwhile)
-- KEYS: leader channels suspects
-- ARGV: base, fence, incarnation, since when its lease is missing (ms), keep of lost jobs (ms), at most
-- An incarnation that left in order (or whose successor spoke for it) holds nothing that was started;
-- of one that is lost, nobody knows.
-- returns: {'left' | 'lost' | 'alive', requeued, lost, kept back because of lost_after, ids...}; when nothing is left, the incarnation is forgotten
if call('GET', KEY.leader) ~= ARGV[2] then return redis.error_reply('NOTLEADER another master leads') end
local now, name = now_ms(), ARGV[3]
local why = call('HGET', KEY.channels, name) == 'left' and 'left' or 'lost'
local missing_for, keep = now - tonumber(ARGV[4]), tonumber(ARGV[5])
local stream = BASE .. 'dispatch:' .. name
if call('EXISTS', BASE .. 'lease:' .. name) == 1 then return {'alive', 0, 0, 0} end

local function mine(r, entry)
  return r and (r.state == DISPATCHED or r.state == RUNNING) and entry_of(r) == entry
end

local function lost_after(rec, r)
  local ok, spec = pcall(cmsgpack.unpack, string.sub(rec, 61, 60 + r.spec_length))
  return ok and type(spec) == 'table' and tonumber(spec.lost_after or 0) * 1000 or 0
end

local requeued, lost, kept, ids = 0, 0, 0, {}
local back = {}
for _, item in ipairs(call('XRANGE', stream, '-', '+', 'COUNT', ARGV[6])) do
  local entry, fields = item[1], item[2]
  local id = fields[1] == 'job' and fields[2] or ''
  local rec = call('GET', BASE .. 'job:' .. id)
  local r = rec and read(rec)
  if not mine(r, entry) then
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
      r.state, r.outcome, r.since, r.incarnation, r.entry_time, r.entry_number = PENDING, 0, now, NOBODY, 0, 0
      write_middle(id, r)
      back[#back + 1] = {id, r}
      requeued = requeued + 1
    end
  end
end
-- Last first, so that in front of the list the oldest stands first again.
for i = #back, 1, -1 do
  make_pending(back[i][2].class, back[i][2].priority, {back[i][1]}, true)
end
if call('XLEN', stream) == 0 then
  call('DEL', stream, BASE .. 'control:' .. name)
  call('HDEL', KEY.channels, name)
  call('HDEL', KEY.suspects, name)
end
return {why, requeued, lost, kept, unpack(ids)}
