#!lua flags=allow-oom
-- Give jobs that wait another priority: at the end of that line. The id in the old list is a tombstone. Of an array, what
-- has not started.
-- KEYS:
-- ARGV: base, priority, ids...
-- returns: per id 1 done | 2 to 6 as hold
local priority = tonumber(ARGV[2])
local byte = string.char(priority + 100)
local replies, lists = {}, {}

local function stands_in_line(id, r)
  if has(r.flags, PARKED) then return false end
  if has(r.flags, ARRAY) and call('HGET', array.key(id), 'parked') == '1' then return false end
  return r.state == PENDING or r.state == RUNNING
end

local function stand_anew(id, r)
  lists[r.class] = lists[r.class] or {}
  table.insert(lists[r.class], id)
  drop_tombstones(r.class, r.priority)
end

for at = 3, #ARGV do
  local id = ARGV[at]
  local key = BASE .. 'job:' .. id
  local r = read(call('GETRANGE', key, 0, 59))
  local unfit = array.why_unfit(id, r)
  if not unfit and r.priority ~= priority then
    call('SETRANGE', key, 1, byte)
    if stands_in_line(id, r) then stand_anew(id, r) end
  end
  replies[#replies + 1] = unfit or 1
end
for class, ids in pairs(lists) do make_pending(class, priority, ids, false) end
return replies
