#!lua flags=allow-oom
-- Ask for live output of a job: a flag for its next dispatch, a hint for the channel that has it now.
-- KEYS:
-- ARGV: base, id
-- returns: the state (0: unknown job). While live output is over its budget nobody is shown more of it.
local id = ARGV[2]
local rec = call('GET', BASE .. 'job:' .. id)
if not rec then return array.is_todo(id) and PENDING or 0 end
local r = read(rec)
if not r then return 0 end
if r.state == DONE then return r.state end
if call('EXISTS', BASE .. 'quiet') == 1 then return r.state end
if not has(r.flags, FOLLOWED) then
  r.flags = r.flags + FOLLOWED
  write_middle(id, r)
end
if r.state == DISPATCHED or r.state == RUNNING then
  hint('follow', id, r)
end
return r.state
