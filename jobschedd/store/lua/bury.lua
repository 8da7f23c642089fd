#!lua flags=allow-oom
-- Keep a message that nobody can read, for people to look at; it leaves the result stream in the same step, so that
-- it is buried once.
-- KEYS: results dead
-- ARGV: base, entry of the result stream ('': it is not from there), reason, first bytes, source
-- returns: 1, or 0 when the entry was gone
if ARGV[2] ~= '' and call('XDEL', KEY.results, ARGV[2]) == 0 then return 0 end
call('XADD', KEY.dead, 'MAXLEN', '~', 1000, '*', 'reason', ARGV[3], 'sample', ARGV[4], 'source', ARGV[5])
return 1
