#!lua flags=allow-oom
-- Begin anew after data were lost, as an operator ordered: everything that counts goes on above what was ever known.
-- KEYS: leader identity mark epoch next_id loss abandoned rebuilt
-- ARGV: base, instance, 'rebuild' | 'accept', a new identity, highest id known
-- returns: {identity, mark, epoch, highest id}, or {} when that was not ordered
-- 'rebuild' gives the lost identity back, so that spools and registers count; loss stays until all is taken in.
-- 'accept' gives it up: what belongs to it stays outside.
if call('HGET', KEY.loss, 'order') ~= ARGV[3] then return {} end
local function highest(key, field, more)
  return math.max(tonumber(call('GET', key) or '0'), tonumber(call('HGET', KEY.loss, field) or '0'), more)
end
local lost, identity = call('HGET', KEY.loss, 'identity'), call('GET', KEY.identity)
if ARGV[3] == 'accept' then
  call('SADD', KEY.abandoned, lost)
  if not identity or identity == lost then identity = ARGV[4] end
else
  if identity and identity ~= lost then call('SADD', KEY.abandoned, identity) end
  call('SREM', KEY.abandoned, lost)
  identity = lost
end
local mark, epoch, id = highest(KEY.mark, 'mark', 0) + 1, highest(KEY.epoch, 'epoch', 0), highest(KEY.next_id, 'next_id', tonumber(ARGV[5]))
call('SET', KEY.identity, identity)
for key, number in pairs({[KEY.mark] = mark, [KEY.epoch] = epoch, [KEY.next_id] = id}) do
  call('SET', key, string.format('%.0f', number))
end
call('DEL', KEY.leader)
if ARGV[3] == 'accept' then
  call('DEL', KEY.loss)
else
  call('SET', KEY.rebuilt, string.format('%.0f', mark))
  call('HDEL', KEY.loss, 'admits')
  call('HSET', KEY.loss, 'rebuilder', ARGV[2])
end
return {identity, mark, epoch, id}
