#!lua flags=allow-oom
-- The leader's configuration owns the schedules that came from one: put what it has, remove what it has no more.
-- WITH: schedules
-- KEYS: leader
-- ARGV: base, fence; then per schedule: name, definition, revision, timing
-- returns: {word, name} for each that was added, changed, taken (a user's before) or removed
if call('GET', KEY.leader) ~= ARGV[2] then return redis.error_reply('NOTLEADER another master leads') end
local now, own, changes = now_ms(), {}, {}
for at = 3, #ARGV, 4 do
  local name = ARGV[at]
  own[name] = true
  local before = call('HGET', state_of(name), 'origin')
  local word = put(name, ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], 'config', now)
  if before == 'user' then word = 'taken' end
  if word ~= 'unchanged' then changes[#changes + 1] = {word, name} end
end
for _, name in ipairs(call('HKEYS', definitions())) do
  if not own[name] and call('HGET', state_of(name), 'origin') == 'config' then
    remove(name)
    changes[#changes + 1] = {'removed', name}
  end
end
return changes
