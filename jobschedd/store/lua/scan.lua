#!lua flags=no-writes,allow-oom
-- Walk down the ids and pick those in the states or with the outcomes wanted. Reads only.
-- KEYS:
-- ARGV: base, first id to look at, how many ids, states wanted (a word of '0' and '1', by number), outcomes likewise
-- returns: ids found, highest first
local first, count, states, outcomes = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], ARGV[5]
local ONE = string.byte('1')
local found = {}
for number = first, math.max(1, first - count + 1), -1 do
  local id = string.format('%.0f', number)
  local pair = call('GETRANGE', BASE .. 'job:' .. id, 24, 25)
  if #pair == 2 then
    local state, outcome = string.byte(pair, 1, 2)
    if string.byte(states, state + 1) == ONE or (state == DONE and string.byte(outcomes, outcome + 1) == ONE) then
      found[#found + 1] = id
    end
  end
end
return found
