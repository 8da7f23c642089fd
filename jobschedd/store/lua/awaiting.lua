-- Shared by the moves that look at what a job waits for still.

local function write_awaited(id, count)
  call('SETRANGE', BASE .. 'job:' .. id, 38, awaited_bytes(count))
end

-- awaits:<id> is gone: it waits for all whose end has not come, or is not known to have counted; what counts is judged
-- anew. Parents without a record have counted, where the others account for all that it waits for. told: a parent whose
-- end is just being told.
local function await_again(id, rec, r, told)
  local open, forgotten = {}, {}
  for _, one in ipairs(conditions_of(rec, r)) do
    local parent = string.match(one, '^(.+):%a+$')
    local known = parent == told or read(call('GETRANGE', BASE .. 'job:' .. parent, 0, 59))
    table.insert(known and open or forgotten, parent)
  end
  local count = struct.unpack('<I4', r.incarnation)
  if count == 0 or count > #open then
    for _, parent in ipairs(forgotten) do open[#open + 1] = parent end
  end
  for _, parent in ipairs(open) do call('SADD', BASE .. 'awaits:' .. id, parent) end
  if #open > 0 then write_awaited(id, #open) end
  return #open
end
