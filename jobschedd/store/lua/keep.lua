#!lua flags=allow-oom
-- Which channels the leader keeps for jobs that need much of one: for its successor, and for people who ask.
-- KEYS: leader kept
-- ARGV: base, fence, which (JSON; '' for none)
-- returns: 1
if call('GET', KEY.leader) ~= ARGV[2] then return redis.error_reply('NOTLEADER another master leads') end
if ARGV[3] == '' then
  call('DEL', KEY.kept)
else
  call('SET', KEY.kept, ARGV[3])
end
return 1
