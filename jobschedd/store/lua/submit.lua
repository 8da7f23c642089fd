#!lua
-- move: submit: NONE -> PENDING, SCHEDULED, WAITING, DISPATCHED
-- (DISPATCHED: it came alone, and channels are offered to its class, see offer.lua)
-- WITH: create offered
-- KEYS: operation workflows
-- ARGV: base, sequence of the call, memory of the call (ms), workflow ('': none), n groups; then per group: class text,
--       priority, delay (ms), at (ms since the epoch; 0: none), expires (ms from now), idempotency key, first id where
--       it was reserved (0: none), conditions ('12:ok 13:any'), n jobs, n records;
--       after the record of an array: tasks, limit of those at once (0: none), failures that stop it (0: none), bitmap
--       of the indices, n places; then per place: name, class text, record (then the indices are 1 to n)
-- returns: now (ms), then the first id of each group. A group with a key holds one job, and so does one with an array.
-- All or nothing: a condition on a job without a record refuses the call.
local last = call('GET', KEY.operation)
if last then
  local seen, answer = string.match(last, '^(%d+) (.*)$')
  if seen == ARGV[2] then return cjson.decode(answer) end
end
local refused = refusal()
if refused then return refused end

local FIXED, FIRST_GROUP = 9, 6
local now = now_ms()

local function remember(text)
  call('SET', KEY.operation, ARGV[2] .. ' ' .. text, 'PX', ARGV[3])
end

if ARGV[5] == '1' and ARGV[4] == '' then
  local number = dispatch_at_once(FIRST_GROUP, FIRST_GROUP + FIXED, now)
  if number then
    remember(string.format('[%.0f,%.0f]', now, number))
    return {now, number}
  end
end

local MOST_WORKFLOWS = 10000

local function words(text)
  local list = {}
  for word in string.gmatch(text, '%S+') do list[#list + 1] = word end
  return list
end

-- How many arguments stand behind the record of a group that is an array.
local function beside(at)
  return is_array(ARGV[at + FIXED]) and 5 + 3 * tonumber(ARGV[at + FIXED + 5]) or 0
end

local function each_group(look)
  local at = FIRST_GROUP
  for _ = 1, tonumber(ARGV[5]) do
    local count = tonumber(ARGV[at + 8])
    local problem = look(at, count)
    if problem then return problem end
    at = at + FIXED + count + beside(at)
  end
end

-- Ids that come with this call; those that others wait for. Before anything is written.
local new, awaited = {}, {}
local problem = each_group(function(at, count)
  local first = tonumber(ARGV[at + 6])
  if first == 0 then return end
  for i = 0, count - 1 do
    local id = string.format('%.0f', first + i)
    if call('EXISTS', BASE .. 'job:' .. id) == 1 then return 'IDTAKEN ' .. id end
    new[id] = true
  end
end) or each_group(function(at)
  if ARGV[at + 7] == '' or (ARGV[at + 5] ~= '' and known_under(ARGV[at + 5])) then return end
  for _, condition in ipairs(words(ARGV[at + 7])) do
    local parent = string.match(condition, '^(.+):%a+$')
    if not new[parent] and call('EXISTS', BASE .. 'job:' .. parent) == 0 then return 'NOPARENT ' .. parent end
    awaited[parent] = true
  end
end)
if problem then return redis.error_reply(problem) end

local answer, at = {now}, FIRST_GROUP
for _ = 1, tonumber(ARGV[5]) do
  local priority, delay, due = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  local expires, key, count = tonumber(ARGV[at + 4]), ARGV[at + 5], tonumber(ARGV[at + 8])
  local known = key ~= '' and known_under(key)
  if known then
    answer[#answer + 1] = known
  else
    if due == 0 then due = now + delay end
    if expires > 0 then expires = now + expires end
    answer[#answer + 1] = create({at = at + FIXED, count = count, class = class_number(ARGV[at]), priority = priority,
      due = due, expires = expires, key = key, first = tonumber(ARGV[at + 6]), conditions = words(ARGV[at + 7]),
      new = new, awaited = awaited}, now)
  end
  at = at + FIXED + count + beside(at)
end
if ARGV[4] ~= '' then
  call('ZADD', KEY.workflows, string.match(ARGV[4], '^%d+'), ARGV[4])
  call('ZREMRANGEBYRANK', KEY.workflows, 0, -1 - MOST_WORKFLOWS)
end
remember(cjson.encode(answer))
return answer
