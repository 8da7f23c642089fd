#!lua
-- move: retry: DONE -> PENDING
-- (with fresh budgets, because a user asked)
-- KEYS:
-- ARGV: base; then per job: id, time of the end that is meant (ms; '': whichever), so that a repeated call retries once
-- returns: per id: 1 pending again | 2 has not ended, or not with that end | 4 unknown
local now = now_ms()
local replies = {}
for at = 2, #ARGV, 2 do
  local id = ARGV[at]
  local key = BASE .. 'job:' .. id
  local rec = call('GET', key)
  local r = rec and read(rec)
  if not r then
    replies[#replies + 1] = 4
  elseif r.state ~= DONE or (ARGV[at + 1] ~= '' and r.since ~= tonumber(ARGV[at + 1])) then
    replies[#replies + 1] = 2
  else
    local flags = has(r.flags, CANCEL_REQUESTED) and r.flags - CANCEL_REQUESTED or r.flags
    call('SET', key, string.sub(rec, 1, 2) .. struct.pack('<BB', 0, 0) .. string.sub(rec, 5, 8) .. struct.pack('<I4', 0)
      .. string.sub(rec, 13, 18) .. struct.pack('<I6', 0)
      .. middle(PENDING, 0, flags, r.attempt, now, NOBODY, 0, 0) .. string.sub(rec, 57, 60 + r.spec_length))
    if has(r.flags, KEYED) then
      local ok, spec = pcall(cmsgpack.unpack, string.sub(rec, 61, 60 + r.spec_length))
      if ok and spec.key then call('PERSIST', BASE .. 'once:' .. spec.key) end
    end
    make_pending(r.class, r.priority, {id}, false)
    replies[#replies + 1] = 1
  end
end
return replies
