#!lua flags=allow-oom
-- Hold jobs that wait: they keep their state, and nobody dispatches them before they are released.
-- KEYS: held
-- ARGV: base, reason, by whom, ids...
-- returns: per id 1 held | 2 a channel has it | 3 has ended | 4 unknown
local said = cjson.encode({reason = ARGV[2], by = ARGV[3], since = now_ms() / 1000})
local replies = {}
for at = 4, #ARGV do
  local id = ARGV[at]
  local r = read(call('GETRANGE', BASE .. 'job:' .. id, 0, 59))
  if not r then
    replies[#replies + 1] = 4
  elseif r.state == DONE then
    replies[#replies + 1] = 3
  elseif r.state == DISPATCHED or r.state == RUNNING then
    replies[#replies + 1] = 2
  else
    if not has(r.flags, HELD) then
      r.flags = r.flags + HELD
      write_middle(id, r)
    end
    call('HSET', KEY.held, id, said)
    replies[#replies + 1] = 1
  end
end
return replies
