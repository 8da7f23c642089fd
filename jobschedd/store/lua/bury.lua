#!lua flags=allow-oom
-- Keep a message that nobody can read, for people to look at; it leaves the result stream in the same step, so that
-- it is buried once. One that shares its entry with others stays until they are collected, and is known by its source.
-- KEYS: results dead
-- ARGV: base, entry of the result stream ('': it is not from there), reason, first bytes, source, 1 when it has the
--       entry for itself
-- returns: 1, or 0 when it was buried before
local LIMIT = 1000
if ARGV[6] ~= '1' then
  for _, letter in ipairs(call('XREVRANGE', KEY.dead, '+', '-', 'COUNT', LIMIT)) do
    if letter[2][6] == ARGV[5] then return 0 end
  end
elseif ARGV[2] ~= '' and call('XDEL', KEY.results, ARGV[2]) == 0 then
  return 0
end
call('XADD', KEY.dead, 'MAXLEN', '~', LIMIT, '*', 'reason', ARGV[3], 'sample', ARGV[4], 'source', ARGV[5])
return 1
