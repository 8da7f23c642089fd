#!lua
-- move: again: DONE -> PENDING
-- (an array, because a user asked: its tasks that did not succeed, or all; one that has not ended only gets more to do)
-- KEYS:
-- ARGV: base, id, time of the end that is meant (ms; '': whichever), 'all' | 'failed' (those that did not succeed),
--       expires (ms from now) of tasks with a place; then per such task that may be meant: index, class text, record
-- returns: {1 goes on | 2 has not ended, or not with that end, or is being cancelled | 4 unknown, tasks that start again}
local now, id = now_ms(), ARGV[2]
local rec = call('GETRANGE', BASE .. 'job:' .. id, 0, 59)
local r = read(rec)
if not r or not has(r.flags, ARRAY) then return {4, 0} end
if ARGV[3] ~= '' and (r.state ~= DONE or r.since ~= tonumber(ARGV[3])) then return {2, 0} end
if #ARGV == 5 then
  local count = array.again(id, ARGV[4] == 'all', now)
  return count and {1, count} or {2, 0}
end

local tasks = {}
for at = 6, #ARGV, 3 do tasks[#tasks + 1] = {index = ARGV[at], class = class_number(ARGV[at + 1]), rec = ARGV[at + 2]} end
local count = array.places_again(id, tasks, ARGV[4] == 'all', tonumber(ARGV[5]), now)
return count and {1, count} or {2, 0}
