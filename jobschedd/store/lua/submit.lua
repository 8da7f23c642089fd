#!lua
-- move: submit: NONE -> PENDING, SCHEDULED
-- WITH: create
-- KEYS: operation
-- ARGV: base, sequence of the call, memory of the call (ms), n groups; then per group: class text, priority,
--       delay (ms), at (ms since the epoch; 0: none), expires (ms from now), idempotency key, n jobs, n records
-- returns: now (ms), then the first id of each group. A group with a key holds one job.
local last = call('GET', KEY.operation)
if last then
  local seen, answer = string.match(last, '^(%d+) (.*)$')
  if seen == ARGV[2] then return cjson.decode(answer) end
end
local refused = refusal()
if refused then return refused end

local now = now_ms()
local answer, at = {now}, 5
for _ = 1, tonumber(ARGV[4]) do
  local priority, delay, due = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  local expires, key, count = tonumber(ARGV[at + 4]), ARGV[at + 5], tonumber(ARGV[at + 6])
  local known = key ~= '' and known_under(key)
  if known then
    answer[#answer + 1] = known
  else
    if due == 0 then due = now + delay end
    if expires > 0 then expires = now + expires end
    answer[#answer + 1] = create(at + 7, count, class_number(ARGV[at]), priority, due, expires, key, now)
  end
  at = at + 7 + count
end
call('SET', KEY.operation, ARGV[2] .. ' ' .. cjson.encode(answer), 'PX', ARGV[3])
return answer
