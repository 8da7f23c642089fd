#!lua flags=allow-oom
-- The leader offers channels to the next jobs of each class: a lone one goes, with its submit, to one of them that is idle
-- then, and does not wait for the dispatcher to wake up. What was offered before is withdrawn. Nothing is offered while the
-- bell has something to say: it may be why nothing should be. While offers stand, the ends of lone jobs that somebody waits
-- for are judged with their reports (see channel.lua).
-- KEYS: leader bell offers
-- ARGV: base, fence, how long records of successes are kept (ms); then per class: class, its channels, each as slots, colon, incarnation, semicolon
-- returns: 1 offered | 0 listen first
if call('GET', KEY.leader) ~= ARGV[2] then return redis.error_reply('NOTLEADER another master leads') end
call('DEL', KEY.offers)
if #ARGV == 3 or call('EXISTS', KEY.bell) == 1 then return 0 end
call('HSET', KEY.offers, 'fence', ARGV[2], 'keep', ARGV[3], unpack(ARGV, 4))
return 1
