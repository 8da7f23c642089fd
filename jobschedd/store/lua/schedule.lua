#!lua flags=allow-oom
-- What a user does to one schedule. Those that come from the leader's configuration are changed there.
-- WITH: schedules
-- KEYS:
-- ARGV: base, 'add' | 'replace' | 'remove' | 'pause' | 'resume', name; add, replace: definition, revision, timing;
--       pause: why and by whom (JSON)
-- returns: added | changed | unchanged | removed | paused | resumed, or why not: exists | configured | unknown | already
local verb, name, now = ARGV[2], ARGV[3], now_ms()
local known = call('HEXISTS', definitions(), name) == 1
local configured = call('HGET', state_of(name), 'origin') == 'config'
local word

if verb == 'add' or verb == 'replace' then
  if configured then return 'configured' end
  if known and verb == 'add' and call('HGET', state_of(name), 'revision') ~= ARGV[5] then return 'exists' end
  word = put(name, ARGV[4], ARGV[5], ARGV[6], 'user', now)
elseif not known then
  return 'unknown'
elseif verb == 'remove' then
  if configured then return 'configured' end
  remove(name)
  word = 'removed'
elseif verb == 'pause' then
  if call('HSETNX', state_of(name), 'paused', ARGV[4]) == 0 then return 'already' end
  word = 'paused'
else
  if call('HDEL', state_of(name), 'paused') == 0 then return 'already' end
  -- What passed meanwhile was meant not to run.
  call('HSET', state_of(name), 'cursor', string.format('%.0f', now))
  word = 'resumed'
end
if word ~= 'unchanged' then ring('t') end
return word
