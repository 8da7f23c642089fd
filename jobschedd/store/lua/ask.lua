#!lua flags=allow-oom
-- Put a question to every master that is there. A list that nobody reads stays short, and goes away.
-- KEYS: masters
-- ARGV: base, question, for how long it waits (ms)
-- returns: "<instance> <node>" of each that was asked
local MOST = 100
call('ZREMRANGEBYSCORE', KEY.masters, '-inf', now_ms())
local masters = call('ZRANGE', KEY.masters, 0, -1)
for _, master in ipairs(masters) do
  local list = BASE .. 'questions:' .. string.match(master, '^%S+')
  call('RPUSH', list, ARGV[2])
  call('LTRIM', list, -MOST, -1)
  call('PEXPIRE', list, ARGV[3])
end
return masters
