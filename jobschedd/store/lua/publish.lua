#!lua flags=allow-oom
-- move: publish: PENDING -> DISPATCHED, SCHEDULED, DONE
-- move: publish: PENDING, SCHEDULED -> RUNNING
-- move: publish: RUNNING -> DONE
-- WITH: holding
-- (pubsub. SCHEDULED: nobody was subscribed, to be sent again; DONE: expired, or cancelled on its way back; RUNNING: an
-- array, as a whole)
-- KEYS: leader pending scheduled published sent_channels listening
-- ARGV: base, fence, keep of ends that are no success (ms), 'resend' | 'fail'; then per assignment: class, priority,
--       channel, the Redis channel of it, window, at most, our own slave's incarnation ('': it has none), what its jobs count against
--       (see holding.lua)
-- returns: per assignment {dispatched, left in the list, unanswered, what bounds the rest, for how many ms, then of each that reached nobody: id, attempt, entry}
--          With 'fail' those count as dispatched, until somebody answers for them; after one with 'resend', the
--          channel's others stay where they are. Nothing at all when our collector does not hear the answers.
if call('GET', KEY.leader) ~= ARGV[2] then return redis.error_reply('NOTLEADER another master leads') end
local now, keep, resend = now_ms(), tonumber(ARGV[3]), ARGV[4] == 'resend'
local MOST_TOMBSTONES = 1000
local FIRST_DELAY, LONGEST_DELAY = 1000, 30000

-- What stands behind the spec while a job has not ended: which channel it went to, and what came of that.
local function note_of(rec, r)
  local ok, note = pcall(cmsgpack.unpack, string.sub(rec, 61 + r.spec_length))
  return ok and type(note) == 'table' and note or {}
end

local function write(id, rec, r, note)
  call('SET', BASE .. 'job:' .. id, string.sub(rec, 1, 24)
    .. middle(r.state, 0, r.flags, r.attempt, r.since, r.incarnation, r.entry_time, r.entry_number)
    .. string.sub(rec, 57, 60 + r.spec_length) .. cmsgpack.pack(note))
end

local function sent_again(id, rec, r, channel, wire)
  local failed = (tonumber(note_of(rec, r).failed) or 0) + 1
  local delay = math.min(LONGEST_DELAY, FIRST_DELAY * 2 ^ math.min(failed - 1, 10))
  local times = failed == 1 and 'once' or failed .. ' times'
  local text = string.format('nobody was subscribed to %s (%s so far); sent again in %d s', wire, times, delay / 1000)
  r.state, r.since, r.incarnation, r.entry_time, r.entry_number = SCHEDULED, now + delay, NOBODY, 0, 0
  write(id, rec, r, {outcome = 0, cause = 'no_receiver', error = text, channel = channel, failed = failed})
  call('ZADD', KEY.scheduled, r.since, id)
end

local function publish(id, rec, r, channel, wire, incarnation, failed, terms)
  r.state, r.attempt, r.since, r.incarnation = DISPATCHED, r.attempt + 1, now, incarnation
  r.entry_time, r.entry_number = now, call('INCR', KEY.published) % 4294967296
  local heard = call('PUBLISH', wire, id) > 0
  if not heard then
    failed[#failed + 1] = id
    failed[#failed + 1] = r.attempt
    failed[#failed + 1] = entry_of(r)
    if resend then
      sent_again(id, rec, r, channel, wire)
      return false
    end
  end
  if terms then hold(id, r, terms, now) end
  write(id, rec, r, {outcome = 0, cause = '', channel = channel})
  if has(r.flags, KEYED) then leave_key(id, rec, r) end
  call('ZADD', BASE .. 'sent:' .. channel, now, id)
  call('SADD', KEY.sent_channels, channel)
  return true
end

if call('GET', KEY.listening) ~= ARGV[2] then return {} end
local replies = {}
for at = 5, #ARGV, 8 do
  local class, priority, channel, wire = tonumber(ARGV[at]), tonumber(ARGV[at + 1]), ARGV[at + 2], ARGV[at + 3]
  local list = pending_list(class, priority)
  local incarnation = ARGV[at + 6] == '' and NOBODY or from_hex(ARGV[at + 6])
  local room = math.min(tonumber(ARGV[at + 4]) - call('ZCARD', BASE .. 'sent:' .. channel), tonumber(ARGV[at + 5]))
  local sent, spare, failed = 0, MOST_TOMBSTONES, {}
  local terms, by, wait
  if ARGV[at + 7] ~= '' then
    terms = cjson.decode(ARGV[at + 7])
    room, by, wait = bounded(room, terms, now)
  end
  while room > 0 and spare > 0 do
    local id = call('LPOP', list)
    if not id then break end
    local rec = call('GET', BASE .. 'job:' .. id)
    local r = rec and read(rec)
    if r and r.flags >= ARRAY and array.waits_in(r, class, priority) then
      -- One task takes the place of its array, which stands behind it again while it has more.
      local tasks, more = array.take(id, rec, r, 1, keep, now)
      if more > 0 then call('LPUSH', list, id) end
      if tasks[1] then id, rec, r = tasks[1].id, tasks[1].rec, tasks[1].r end
    end
    -- Anything else is the tombstone of a job that went another way.
    if not waits_in(r, class, priority) or has(r.flags, ARRAY) then
      spare = spare - 1
    elseif has(r.flags, HELD) then
      park(id, r)
      spare = spare - 1
    elseif has(r.flags, CANCEL_REQUESTED) then
      finish_unreported(id, rec, r, CANCELLED, 'cancelled', keep, now)
    elseif r.expires > 0 and r.expires <= now then
      finish_unreported(id, rec, r, EXPIRED, 'expired', keep, now)
    elseif r.flags >= TASK and has(r.flags, TASK) and array.stopped(id, now) then
      finish_unreported(id, rec, r, CANCELLED, 'max_failures', keep, now)
    elseif publish(id, rec, r, channel, wire, incarnation, failed, terms) then
      room, sent = room - 1, sent + 1
    else
      room, by = 0, nil
    end
  end
  if #failed > 0 and resend then ring('s') end
  local left = call('LLEN', list)
  if left == 0 then call('SREM', KEY.pending, ARGV[at] .. ':' .. ARGV[at + 1]) end
  if not by or room > 0 or left == 0 then by, wait = '', -1 end
  if by ~= '' then await_room(by, wait) end
  replies[#replies + 1] = {sent, left, call('ZCARD', BASE .. 'sent:' .. channel), by, wait, unpack(failed)}
end
return replies
