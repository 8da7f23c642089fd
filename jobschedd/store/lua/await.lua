#!lua flags=allow-oom
-- Register a client to be told of the end of jobs.
-- KEYS:
-- ARGV: base, number of the client, ids...
-- returns: per id the record when the job has ended, false when there is none; else the attempt (at least) whose end is
--          news, '' where that is not known: what the inbox brings may be older than this call
local client = tonumber(ARGV[2])
local replies = {}
for at = 3, #ARGV do
  local id = ARGV[at]
  local key = BASE .. 'job:' .. id
  local rec = call('GET', key)
  local reply = false
  if array.is_todo(id) then
    -- Its record, once it has one, finds them there.
    reply = ''
    call('SADD', BASE .. 'waiters:' .. id, client)
    call('PEXPIRE', BASE .. 'waiters:' .. id, 86400000)
  elseif rec then
    local r = read(rec)
    if not r or r.state == DONE then
      reply = rec
    else
      reply = r.state < DISPATCHED and r.attempt + 1 or r.attempt
      if r.waiter == 0 then
        call('SETRANGE', key, 8, struct.pack('<I4', client))
      elseif r.waiter ~= client then
        if r.waiter ~= MANY_WAITERS then
          call('SADD', BASE .. 'waiters:' .. id, r.waiter)
          call('SETRANGE', key, 8, struct.pack('<I4', MANY_WAITERS))
        end
        call('SADD', BASE .. 'waiters:' .. id, client)
        call('PEXPIRE', BASE .. 'waiters:' .. id, 86400000)
      end
    end
  end
  replies[#replies + 1] = reply
end
return replies
