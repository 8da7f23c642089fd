#!lua flags=allow-oom
-- What only the history is to know: reports on attempts that are over, whose jobs go on.
-- KEYS: leader results
-- ARGV: base, fence, reports...
-- returns: 1
if call('GET', KEY.leader) ~= ARGV[2] then return redis.error_reply('NOTLEADER another master leads') end
for at = 3, #ARGV do call('XADD', KEY.results, '*', 'report', ARGV[at]) end
return 1
