#!lua flags=allow-oom
-- Hold jobs that wait: they keep their state, and nobody dispatches them before they are released. Of an array, what has
-- not started.
-- KEYS: held
-- ARGV: base, reason, by whom, ids...
-- returns: per id 1 held | 2 a channel has it | 3 has ended | 4 unknown | 5 a task that waits in its array
--          | 6 an array whose tasks wait by themselves
local said = cjson.encode({reason = ARGV[2], by = ARGV[3], since = now_ms() / 1000})
local replies = {}
for at = 4, #ARGV do
  local id = ARGV[at]
  local r = read(call('GETRANGE', BASE .. 'job:' .. id, 0, 59))
  local unfit = array.why_unfit(id, r)
  if not unfit then
    if not has(r.flags, HELD) then
      r.flags = r.flags + HELD
      write_middle(id, r)
    end
    call('HSET', KEY.held, id, said)
  end
  replies[#replies + 1] = unfit or 1
end
return replies
