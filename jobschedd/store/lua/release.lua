#!lua flags=allow-oom
-- Release held jobs. One whose turn came meanwhile stands in front of its list: it would have been dispatched.
-- KEYS:
-- ARGV: base, ids...
-- returns: per id 1 released | 2 was not held | 4 unknown | 5 a task that waits in its array
local replies, back = {}, {}
for at = 2, #ARGV do
  local id = ARGV[at]
  local r = read(call('GETRANGE', BASE .. 'job:' .. id, 0, 59))
  if array.is_todo(id) then
    replies[#replies + 1] = 5
  elseif not r then
    replies[#replies + 1] = 4
  elseif not has(r.flags, HELD) then
    replies[#replies + 1] = 2
  else
    if has(r.flags, PARKED) then back[#back + 1] = {id, r} end
    drop_hold(id, r)
    write_middle(id, r)
    replies[#replies + 1] = 1
  end
end
pending_again(back)
return replies
