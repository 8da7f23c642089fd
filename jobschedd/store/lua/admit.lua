#!lua flags=allow-oom
-- Say what is full, for whoever submits or follows; without a leader that repeats it, it is forgotten.
-- KEYS: leader full usage
-- ARGV: base, fence, what is full ('' for nothing), whether the live output is ('1'), for how long that holds (ms),
--       what was measured (JSON)
if call('GET', KEY.leader) ~= ARGV[2] then return redis.error_reply('NOTLEADER another master leads') end
local hold = ARGV[5]
if ARGV[3] == '' then call('DEL', KEY.full) else call('SET', KEY.full, ARGV[3], 'PX', hold) end
if ARGV[4] == '1' then
  call('SET', BASE .. 'quiet', '1', 'PX', hold)
else
  call('DEL', BASE .. 'quiet')
end
call('SET', KEY.usage, ARGV[6], 'PX', 60000)
return 1
