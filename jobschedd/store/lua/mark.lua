#!lua flags=allow-oom
-- Is this the store that a master knows? Its identity, and a mark that the leader moves on and that never goes back.
-- KEYS: leader identity mark epoch next_id classes loss abandoned
-- ARGV: base, instance, node, identity known ('': none), mark known, epoch known, highest id known, mark when it last
--       led, an identity for a store that never had one
-- returns: {'ok', identity, mark, epoch, highest id, 1 when it leads, 1 when the counter of ids was mended} or {what happened}: then nobody leads
local ID_MARGIN = 100000
local identity, mark = call('GET', KEY.identity), tonumber(call('GET', KEY.mark) or '0')
local known, known_mark = ARGV[4], tonumber(ARGV[5])
local leads = string.match(call('GET', KEY.leader) or '', '^(.*):%d+$') == ARGV[2]

local function what_happened()
  if known == '' then return nil end
  if not identity then return 'emptied' end
  if identity == known then return mark < known_mark and 'rolled back' or nil end
  return call('SISMEMBER', KEY.abandoned, known) == 0 and 'replaced' or nil
end

-- What any of the masters knows at most; and who led last, because that one has the newest history.
local function tell(what)
  call('HSETNX', KEY.loss, 'since', now_ms())
  call('HSET', KEY.loss, 'what', what, 'identity', known)
  call('HDEL', KEY.loss, 'rebuilder', 'admits')
  for field, value in pairs({mark = ARGV[5], epoch = ARGV[6], next_id = ARGV[7]}) do
    if tonumber(value) > tonumber(call('HGET', KEY.loss, field) or '-1') then call('HSET', KEY.loss, field, value) end
  end
  if tonumber(ARGV[8]) > tonumber(call('HGET', KEY.loss, 'led') or '-1') then
    call('HSET', KEY.loss, 'led', ARGV[8], 'by', ARGV[3])
  end
end

local what = what_happened()
if what then
  tell(what)
elseif call('EXISTS', KEY.loss) == 1 and call('HGET', KEY.loss, 'rebuilder') ~= ARGV[2] then
  what = call('HGET', KEY.loss, 'what')
end
if what then
  if leads then call('DEL', KEY.leader) end
  return {what}
end

if not identity then
  identity = ARGV[9]
  call('SET', KEY.identity, identity)
end
if leads or mark == 0 then mark = call('INCR', KEY.mark) end
-- The counter of ids alone was lost: it goes on above whatever was given since a master last looked.
local next_id, highest, mended = tonumber(call('GET', KEY.next_id) or '-1'), tonumber(ARGV[7]), 0
if math.max(next_id, 0) < highest or (next_id < 0 and call('EXISTS', KEY.classes) == 1) then
  next_id, mended = highest + ID_MARGIN, 1
  call('SET', KEY.next_id, string.format('%.0f', next_id))
end
return {'ok', identity, mark, tonumber(call('GET', KEY.epoch) or '0'), math.max(next_id, 0), leads and 1 or 0, mended}
