-- Shared by the moves that take what the leader offers (see offer.lua). With create.lua.

-- The channel that the leader offers to the next job of this class, while that is idle and nobody waits: taken. Its window,
-- or lack of a lease, says whether it still takes anything.
local function take_offer(class)
  local offers = BASE .. 'offers'
  local said = call('HMGET', offers, class, 'fence')
  if not said[1] or said[2] ~= call('GET', BASE .. 'leader') or call('EXISTS', BASE .. 'pending') == 1 then return nil end
  local slots, name = match(said[1], '^(%d+):(%x+)$')
  if not slots then return nil end
  local window = tonumber(call('HGET', BASE .. 'lease:' .. name, 'window') or 0)
  if call('XLEN', BASE .. 'dispatch:' .. name) >= math.min(window, tonumber(slots)) then return nil end
  call('HDEL', offers, class)
  return name
end

-- A lone job of which nothing need be looked up or told: what is asked for from ARGV[at] on (see submit.lua), its record
-- at ARGV[record_at]. Its id, or nil where it has to wait its turn.
local function dispatch_at_once(at, record_at, now)
  local delay, due, expires, key, first, after, count = unpack(ARGV, at + 2, at + 8)
  local rec = ARGV[record_at]
  if count ~= '1' or delay ~= '0' or due ~= '0' or expires ~= '0' or key ~= '' or first ~= '0' or after ~= '' then return nil end
  if sub(rec, 27, 28) ~= '\0\0' then return nil end
  local class = class_number(ARGV[at])
  local name = take_offer(class)
  if not name then return nil end
  local number = number_of(0, 1)
  local id = string.format('%.0f', number)
  local entry, entry_number = send_plainly(BASE .. 'dispatch:' .. name, id, '1', sub(rec, 61))
  call('SET', BASE .. 'job:' .. id, sub(rec, 1, 4) .. pack('<I4', class) .. sub(rec, 9, 12) .. pack('<I6I6', now, 0)
    .. middle(DISPATCHED, 0, 0, 1, now, from_hex(name), entry, entry_number) .. sub(rec, 57))
  ring('o:' .. class .. ':' .. name)
  return number
end
