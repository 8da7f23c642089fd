#!lua flags=allow-oom
-- The jobs that were judged with their reports and are in no history yet: for who leads; where nobody does, who led last.
-- KEYS: leader epoch judged
-- ARGV: base, the asker's fence
-- returns: their ids and records, by turns
local leads = call('GET', KEY.leader)
local led_last = not leads and call('GET', KEY.epoch) == string.match(ARGV[2], '%d+$')
if leads ~= ARGV[2] and not led_last then return redis.error_reply('NOTLEADER another master leads') end
return call('HGETALL', KEY.judged)
