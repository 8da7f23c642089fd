#!lua flags=allow-oom
-- Repeat the hints of open requests to cancel: the first may have been lost, or the job has a new channel.
-- KEYS: leader cancelling
-- ARGV: base, fence, at most
-- returns: how many are still open; then tasks of cancelled arrays, and of those that stopped, that are to be cancelled
if call('GET', KEY.leader) ~= ARGV[2] then return redis.error_reply('NOTLEADER another master leads') end
local open, tasks = 0, {}
for _, id in ipairs(call('SRANDMEMBER', KEY.cancelling, ARGV[3])) do
  local rec = call('GETRANGE', BASE .. 'job:' .. id, 0, 59)
  local r = read(rec)
  if r and r.state ~= DONE and has(r.flags, ARRAY) then
    for _, task in ipairs(array.open_cancels(id, r, tonumber(ARGV[3]) - #tasks)) do tasks[#tasks + 1] = task end
    open = open + 1
  elseif r and (r.state == DISPATCHED or r.state == RUNNING) then
    hint('cancel', id, r)
    open = open + 1
  elseif not r or r.state == DONE then
    call('SREM', KEY.cancelling, id)
  else
    open = open + 1
  end
end
return {open, unpack(tasks)}
