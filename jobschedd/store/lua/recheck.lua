#!lua flags=allow-oom
-- After a loss of data a job may wait for one that is gone, or that does not know of it: nobody waits for ever.
-- Looks at those that were looked at longest ago; what can go on, or never will, is left to unblock.lua.
-- WITH: awaiting
-- KEYS: leader waiting unblocking
-- ARGV: base, fence, conditions to look at, at most (a job's are all looked at)
-- returns: {jobs looked at, mended}
if call('GET', KEY.leader) ~= ARGV[2] then return redis.error_reply('NOTLEADER another master leads') end
-- While ends are being told, what looks wrong is only on its way.
if call('EXISTS', KEY.unblocking) == 1 then return {0, 0} end
local now, left, looked, mended = now_ms(), tonumber(ARGV[3]), 0, 0

local function look_again(one, parent)
  local r = read(call('GETRANGE', BASE .. 'job:' .. parent, 0, 59))
  if not r or r.state == DONE then
    tell_dependents(parent, r and r.outcome or 0, one)
  elseif not has(r.flags, AWAITED) or call('EXISTS', BASE .. 'dependents:' .. parent) == 0 then
    register(one, parent, r)
  else
    return 0
  end
  return 1
end

-- The list of ends to tell was lost: who was to be told of them is told by us, and their lists tell nobody any more.
local LATEST = 1000
local function drop_what_tells_nobody()
  local told = {}
  for _, one in ipairs(call('LRANGE', KEY.unblocking, 0, -1)) do told[match(one, '^%d+')] = true end
  local last = tonumber(call('GET', BASE .. 'unblocks') or '0')
  for number = math.max(1, last - LATEST), last do
    local name = string.format('%.0f', number)
    if not told[name] then call('DEL', BASE .. 'unblocking:' .. name) end
  end
end

for _, id in ipairs(call('ZRANGE', KEY.waiting, 0, left - 1)) do
  if left <= 0 then break end
  looked = looked + 1
  local rec = call('GET', BASE .. 'job:' .. id)
  local r = rec and read(rec)
  if not r or r.state ~= WAITING then
    forget_waiting(id)
  else
    local open = 0
    if call('EXISTS', BASE .. 'awaits:' .. id) == 0 then mended = mended + await_again(id, rec, r) end
    for _, one in ipairs(conditions_of(rec, r)) do
      local parent, condition = string.match(one, '^(.+):(%a+)$')
      left = left - 1
      if call('SISMEMBER', BASE .. 'awaits:' .. id, parent) == 1 then
        open = open + 1
        mended = mended + look_again(dependent(id, condition, r.entry_number), parent)
      end
    end
    if open == 0 then
      -- It does not say what it waits for.
      call('SADD', BASE .. 'awaits:' .. id, '0')
      tell_dependents('0', 0, dependent(id, 'any', r.entry_number))
      mended = mended + 1
    end
    call('ZADD', KEY.waiting, now, id)
  end
end
if mended > 0 then drop_what_tells_nobody() end
return {looked, mended}
