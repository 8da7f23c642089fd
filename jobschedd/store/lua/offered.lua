-- Shared by the moves that take what the leader offers (see offer.lua). With create.lua.

-- How loaded a channel of so many slots is, from 0 to below 1; 1 where it has none to spare. Its window, or lack of a
-- lease, says whether it still takes anything.
local function load_of(name, slots)
  local window = tonumber(call('HGET', BASE .. 'lease:' .. name, 'window') or 0)
  local entries = call('XLEN', BASE .. 'dispatch:' .. name)
  return entries < math.min(window, slots) and entries / slots or 1
end

-- Of the channels that the leader offers to jobs of this class, while nobody waits, the least loaded that is not busy;
-- equals take turns.
local function take_offer(class)
  local offers = BASE .. 'offers'
  local said = call('HMGET', offers, class, 'fence', 'turn')
  if not said[1] or said[2] ~= call('GET', BASE .. 'leader') or call('EXISTS', BASE .. 'pending') == 1 then return nil end
  local channels = {}
  for slots, name in string.gmatch(said[1], '(%d+):(%x+);') do channels[#channels + 1] = {name, tonumber(slots)} end
  local turn, least, found = tonumber(said[3] or 0) or 0, 1, nil
  for number = 1, #channels do
    local name, slots = unpack(channels[(turn + number) % #channels + 1])
    local load = load_of(name, slots)
    if load < least then least, found = load, name end
    if load == 0 then break end
  end
  if found and #channels > 1 then call('HSET', offers, 'turn', turn + 1) end
  return found
end

-- The dispatcher need not wake up for this: it hears of it before it places anything.
local function murmur(text)
  local murmurs = BASE .. 'murmurs'
  if call('RPUSH', murmurs, text) < 1000 then return end
  call('RPOP', murmurs)
  ring(text)
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
  murmur('o:' .. class .. ':' .. name)
  return number
end
