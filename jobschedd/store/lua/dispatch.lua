#!lua flags=allow-oom
-- move: dispatch: PENDING -> DISPATCHED, DONE
-- move: dispatch: PENDING, SCHEDULED -> RUNNING
-- move: dispatch: RUNNING -> DONE
-- (DONE: expired, or cancelled on its way back; RUNNING: an array, as a whole, when its first task goes out)
-- WITH: holding
-- KEYS: leader pending offers
-- ARGV: base, fence, keep of ends that are no success (ms); then per assignment: class, priority, incarnation, at most,
--       what its jobs count against (see holding.lua)
-- returns: per assignment {dispatched, left in the list (at least), entries in the stream, window (-1: no lease), what
--          bounds the rest ('': room, or nothing), for how many ms (-1: until somebody lets go)}
if call('GET', KEY.leader) ~= ARGV[2] then return redis.error_reply('NOTLEADER another master leads') end
local now, keep = now_ms(), tonumber(ARGV[3])
-- Who was idle may not be any more.
call('DEL', KEY.offers)
-- Ids that one assignment looks at beyond its room: a million tombstones must not hold up the server.
local MOST_TOMBSTONES = 1000

local function note_order(id, flags, attempt, incarnation, time, number)
  call('SETRANGE', BASE .. 'job:' .. id, MIDDLE, middle(DISPATCHED, 0, flags, attempt, now, incarnation, time, number))
end

local function order(id, rec, r, stream, incarnation, terms)
  if has(r.flags, KEYED) then leave_key(id, rec, r) end
  r.attempt = r.attempt + 1
  local gpus = terms and hold(id, r, terms, now) or {}
  local fields = {'job', id, 'attempt', r.attempt, 'flags', r.flags, 'spec', string.sub(rec, 61, 60 + r.spec_length)}
  if r.crashes > 0 then
    fields[9], fields[10] = 'crashes', r.crashes
  end
  if #gpus > 0 then
    fields[#fields + 1] = 'gpus'
    fields[#fields + 1] = table.concat(gpus, ',')
  end
  local time, number = match(call('XADD', stream, '*', unpack(fields)), '^(%d+)-(%d+)$')
  note_order(id, r.flags, r.attempt, incarnation, tonumber(time), tonumber(number))
end

-- Nearly every job is one of which nothing need be looked up or told. False: this one is not.
local function order_plainly(id, rec, class, priority, stream, incarnation)
  if #rec < 60 then return false end
  local version, its_priority, crashes, its_class, _, expires, state, flags, attempt, _, _, spec_length =
    unpack_struct(PLAIN, rec)
  if not is_plain(version, expires, flags) or crashes > 0 then return false end
  if state ~= PENDING or its_class ~= class or its_priority - 100 ~= priority then return false end
  attempt = attempt + 1
  note_order(id, 0, attempt, incarnation,
    send_plainly(stream, id, attempt == 1 and '1' or attempt, sub(rec, 61, 60 + spec_length)))
  return true
end

-- Those that did not fit stand in front again, in their order.
local function put_back(list, ids, from)
  for i = #ids, from, -1 do call('LPUSH', list, ids[i]) end
end

local replies = {}
for at = 4, #ARGV, 5 do
  local class, priority, name = tonumber(ARGV[at]), tonumber(ARGV[at + 1]), ARGV[at + 2]
  local list = pending_list(class, priority)
  local stream = BASE .. 'dispatch:' .. name
  local lease = BASE .. 'lease:' .. name
  local window = tonumber(call('HGET', lease, 'window') or -1) or -1
  local entries = call('XLEN', stream)
  local room, sent, slots = window - entries, 0, 1
  local incarnation, spare, behind_marker = from_hex(name), MOST_TOMBSTONES, 0
  local terms, by, wait
  if ARGV[at + 4] ~= '' then
    terms = cjson.decode(ARGV[at + 4])
    slots = terms.s or 1
  end
  room = math.min(math.floor(room / slots), tonumber(ARGV[at + 3]))
  if terms then room, by, wait = bounded(room, terms, now) end
  local allowed = room
  while room > 0 and spare > 0 do
    local ids = call('LPOP', list, room)
    if not ids then break end
    spare = spare - #ids
    for i, id in ipairs(ids) do
      local rec = call('GET', BASE .. 'job:' .. id)
      local plain = rec and not terms and order_plainly(id, rec, class, priority, stream, incarnation)
      local r = rec and not plain and read(rec)
      -- Anything else is the tombstone of a job that went another way.
      if plain then
        room, sent, spare = room - 1, sent + 1, spare + 1
      elseif r and r.flags >= ARRAY and array.waits_in(r, class, priority) then
        local tasks, more = array.take(id, rec, r, room, keep, now)
        for _, task in ipairs(tasks) do order(task.id, task.rec, task.r, stream, incarnation, terms) end
        room, sent, spare = room - #tasks, sent + #tasks, spare + #tasks
        if more > 0 or room == 0 then
          put_back(list, ids, i + 1)
          if more > 0 then
            call('LPUSH', list, id)
            behind_marker = more - 1
          end
          room = 0
          break
        end
      elseif waits_in(r, class, priority) then
        if has(r.flags, HELD) then
          park(id, r)
        elseif has(r.flags, CANCEL_REQUESTED) then
          finish_unreported(id, rec, r, CANCELLED, 'cancelled', keep, now)
        elseif r.expires > 0 and r.expires <= now then
          finish_unreported(id, rec, r, EXPIRED, 'expired', keep, now)
        elseif r.flags >= TASK and has(r.flags, TASK) and array.stopped(id, now) then
          finish_unreported(id, rec, r, CANCELLED, 'max_failures', keep, now)
        else
          order(id, rec, r, stream, incarnation, terms)
          room, sent, spare = room - 1, sent + 1, spare + 1
        end
      end
    end
  end
  -- An entry stands for one slot. The others are off the window until the channel, once it has the order, says its own.
  if slots > 1 and sent > 0 then window = call('HINCRBY', lease, 'window', -sent * (slots - 1)) end
  local left = call('LLEN', list)
  if left == 0 then call('SREM', KEY.pending, ARGV[at] .. ':' .. ARGV[at + 1]) end
  left = left + behind_marker
  if not by or sent < allowed or left == 0 then by, wait = '', -1 end
  if by ~= '' then await_room(by, wait) end
  replies[#replies + 1] = {sent, left, entries + sent, window, by, wait}
end
return replies
