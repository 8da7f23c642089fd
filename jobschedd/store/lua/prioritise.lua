#!lua flags=allow-oom
-- Give jobs that wait another priority: at the end of that line. The id in the old list is a tombstone.
-- KEYS:
-- ARGV: base, priority, ids...
-- returns: per id 1 done | 2 a channel has it | 3 has ended | 4 unknown
local priority = tonumber(ARGV[2])
local byte = string.char(priority + 100)
local replies, lists = {}, {}

local function stand_anew(id, r)
  if has(r.flags, PARKED) then return end
  lists[r.class] = lists[r.class] or {}
  table.insert(lists[r.class], id)
  drop_tombstones(r.class, r.priority)
end

for at = 3, #ARGV do
  local id = ARGV[at]
  local key = BASE .. 'job:' .. id
  local r = read(call('GETRANGE', key, 0, 59))
  if not r then
    replies[#replies + 1] = 4
  elseif r.state == DONE then
    replies[#replies + 1] = 3
  elseif r.state == DISPATCHED or r.state == RUNNING then
    replies[#replies + 1] = 2
  else
    if r.priority ~= priority then
      call('SETRANGE', key, 1, byte)
      if r.state == PENDING then stand_anew(id, r) end
    end
    replies[#replies + 1] = 1
  end
end
for class, ids in pairs(lists) do make_pending(class, priority, ids, false) end
return replies
