#!lua
-- Ids for jobs that refer to each other: a submit (submit.lua) with these follows. Unused ones are no harm.
-- KEYS: next_id classes loss
-- ARGV: base, how many
-- returns: the first
if call('EXISTS', KEY.loss) == 1 then
  return redis.error_reply('DATALOST Redis has lost data of this namespace (' .. (call('HGET', KEY.loss, 'what') or '?')
    .. '): nothing is accepted until an operator decides; see jobsched doctor')
end
if call('EXISTS', KEY.next_id) == 0 and call('EXISTS', KEY.classes) == 1 then
  return redis.error_reply('TRYAGAIN the counter of job ids is gone; the leading master sets it right')
end
return call('INCRBY', KEY.next_id, ARGV[2]) - tonumber(ARGV[2]) + 1
