#!lua flags=allow-oom
-- move: restore: NONE, PENDING, SCHEDULED, WAITING, DISPATCHED, RUNNING -> DISPATCHED
-- WITH: holding
-- (Redis lost data; a channel says that it has this order: running, ended, or not begun)
-- KEYS: leader announced next_id scheduled channels
-- ARGV: base, fence; then per announcement: its entry in the stream of them, incarnation, what its channel says of
--       itself, job, attempt, dispatch entry, flags, class text, priority, idempotency key, spec,
--       what it counts against, as for dispatch
-- returns: per announcement 1 restored | 0 known already, or superseded
if call('GET', KEY.leader) ~= ARGV[2] then return redis.error_reply('NOTLEADER another master leads') end
local now = now_ms()

local function has_entry(incarnation, entry)
  return #call('XRANGE', BASE .. 'dispatch:' .. incarnation, entry, entry) > 0
end

-- False where the stream has gone past this entry: then it was answered in this life of the store.
local function put_entry(incarnation, entry, id, attempt, flags, spec, gpus)
  if has_entry(incarnation, entry) then return true end
  local put = redis.pcall('XADD', BASE .. 'dispatch:' .. incarnation, entry, 'job', id, 'attempt', attempt, 'flags', flags, 'spec', spec, 'gpus', gpus)
  return type(put) ~= 'table' or not put.err
end

local function is_superseded(r, attempt, entry)
  if r.state == DONE or r.attempt > attempt then return true end
  if r.state == PENDING or r.state == SCHEDULED or r.state == WAITING then return false end
  return r.attempt == attempt and not is_entry(entry, r.entry_time, r.entry_number)
end

local function scope_of(spec)
  local ok, said = pcall(cmsgpack.unpack, spec)
  return ok and type(said) == 'table' and said.key_scope or ''
end

local function restore(at)
  local incarnation, id, attempt, entry = ARGV[at + 1], ARGV[at + 3], tonumber(ARGV[at + 4]), ARGV[at + 5]
  local flags, priority, key, spec = tonumber(ARGV[at + 6]), tonumber(ARGV[at + 8]), ARGV[at + 9], ARGV[at + 10]
  local time, number = string.match(entry, '^(%d+)-(%d+)$')
  local waits_in_array = array.is_todo(id)
  if waits_in_array and not array.is_behind(id, attempt) then return 0 end
  local rec = waits_in_array and array.bring_forth(id, now) or call('GET', BASE .. 'job:' .. id)
  local r = rec and read(rec)
  if rec and (not r or is_superseded(r, attempt, entry)) then return 0 end
  local is_known = r and r.attempt == attempt and is_entry(entry, r.entry_time, r.entry_number)
  if is_known and has_entry(incarnation, entry) then return 0 end
  if r then spec = string.sub(rec, 61, 60 + r.spec_length) end
  local terms = ARGV[at + 11] ~= '' and cjson.decode(ARGV[at + 11])
  local gpus = table.concat(terms and terms.g or {}, ',')
  if not put_entry(incarnation, entry, id, attempt, flags, spec, gpus) then return 0 end
  call('HSETNX', KEY.channels, incarnation, ARGV[at + 2])
  if r then
    if r.state == SCHEDULED then call('ZREM', KEY.scheduled, id) end
    drop_hold(id, r)
    if r.state == WAITING then forget_waiting(id, r) end
    local before = to_hex(r.incarnation)
    if (r.state == DISPATCHED or r.state == RUNNING) and before ~= incarnation then
      call('XDEL', BASE .. 'dispatch:' .. before, entry_of(r))
    end
    r.state, r.outcome, r.attempt, r.since, r.incarnation = DISPATCHED, 0, attempt, now, from_hex(incarnation)
    r.entry_time, r.entry_number = tonumber(time), tonumber(number)
    let_go(id, r)
    if terms then hold(id, r, terms, now) end
    write_middle(id, r)
    return 1
  end
  local new = {flags = flags, attempt = attempt}
  if terms then hold(id, new, terms, now) end
  call('SET', BASE .. 'job:' .. id,
    struct.pack('<BBBBI4I4I6I6', 1, priority + 100, 0, 0, class_number(ARGV[at + 7]), 0, tonumber(time), 0)
    .. middle(DISPATCHED, 0, new.flags, attempt, now, from_hex(incarnation), tonumber(time), tonumber(number))
    .. struct.pack('<I4', #spec) .. spec)
  if key ~= '' and scope_of(spec) ~= 'pending' then call('SET', BASE .. 'once:' .. key, id, 'NX') end
  local number = string.match(id, '^%d+') or '0'
  if tonumber(number) > tonumber(call('GET', KEY.next_id) or '0') then call('SET', KEY.next_id, number) end
  return 1
end

local replies, seen = {}, {}
for at = 3, #ARGV, 12 do
  replies[#replies + 1] = restore(at)
  call('XDEL', KEY.announced, ARGV[at])
  if not seen[ARGV[at + 1]] then
    seen[ARGV[at + 1]] = true
    ring('c:' .. ARGV[at + 1])
  end
end
return replies
