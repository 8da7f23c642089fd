#!lua flags=allow-oom
-- The leader offers channels, one for the next job of a class: if the channel is idle then, that job goes there with its
-- submit, and does not wait for the dispatcher to wake up. What was offered before is withdrawn. Nothing is offered while
-- the bell has something to say: it may be why nothing should be.
-- KEYS: leader bell offers
-- ARGV: base, fence; then per offer: class, incarnation, slots of that channel
-- returns: 1 offered | 0 listen first
if call('GET', KEY.leader) ~= ARGV[2] then return redis.error_reply('NOTLEADER another master leads') end
call('DEL', KEY.offers)
if #ARGV == 2 or call('EXISTS', KEY.bell) == 1 then return 0 end
call('HSET', KEY.offers, 'fence', ARGV[2])
for at = 3, #ARGV, 3 do call('HSET', KEY.offers, ARGV[at], ARGV[at + 2] .. ':' .. ARGV[at + 1]) end
return 1
