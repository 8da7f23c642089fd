#!lua flags=allow-oom
-- KEYS: leader epoch together
-- ARGV: base, instance, lease (ms), lowest epoch to use, 'acquire' | 'release', a dead instance to succeed at once ('': none)
-- returns: acquire: {1, epoch} or {0, holder}; release: {1} or {0}. Acquiring is idempotent for an instance.
local holder = call('GET', KEY.leader)
local instance, epoch
if holder then instance, epoch = string.match(holder, '^(.*):(%d+)$') end
if ARGV[5] == 'release' then
  if instance ~= ARGV[2] then return {0} end
  call('DEL', KEY.leader, KEY.together)
  return {1}
end
-- Of an older version, whoever leads leaves this to what it was.
local function say_what_is_read(leads) call('SET', KEY.together, leads, 'PX', ARGV[3]) end
if instance == ARGV[2] then
  call('PEXPIRE', KEY.leader, ARGV[3])
  say_what_is_read(holder)
  return {1, tonumber(epoch)}
end
if holder and (ARGV[6] == '' or instance ~= ARGV[6]) then return {0, holder} end
local last = tonumber(call('GET', KEY.epoch) or '0')
local next = math.max(last + 1, tonumber(ARGV[4]))
call('SET', KEY.epoch, string.format('%.0f', next))
local leads = ARGV[2] .. ':' .. string.format('%.0f', next)
call('SET', KEY.leader, leads, 'PX', ARGV[3])
say_what_is_read(leads)
return {1, next}
