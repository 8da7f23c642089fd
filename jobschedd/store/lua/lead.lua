#!lua flags=allow-oom
-- KEYS: leader epoch
-- ARGV: base, instance, lease (ms), lowest epoch to use, 'acquire' | 'release', a dead instance to succeed at once ('': none)
-- returns: acquire: {1, epoch} or {0, holder}; release: {1} or {0}. Acquiring is idempotent for an instance.
local holder = call('GET', KEY.leader)
local instance, epoch
if holder then instance, epoch = string.match(holder, '^(.*):(%d+)$') end
if ARGV[5] == 'release' then
  if instance ~= ARGV[2] then return {0} end
  call('DEL', KEY.leader)
  return {1}
end
if instance == ARGV[2] then
  call('PEXPIRE', KEY.leader, ARGV[3])
  return {1, tonumber(epoch)}
end
if holder and (ARGV[6] == '' or instance ~= ARGV[6]) then return {0, holder} end
local last = tonumber(call('GET', KEY.epoch) or '0')
local next = math.max(last + 1, tonumber(ARGV[4]))
call('SET', KEY.epoch, string.format('%.0f', next))
call('SET', KEY.leader, ARGV[2] .. ':' .. string.format('%.0f', next), 'PX', ARGV[3])
return {1, next}
