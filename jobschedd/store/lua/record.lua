-- Shared by the moves: reading and writing a record by offset (layout: jobschedd/job.py, class Header).
local PENDING, SCHEDULED, WAITING, DISPATCHED, RUNNING, DONE = 1, 2, 3, 4, 5, 6
local SUCCEEDED, FAILED, CANCELLED, LOST, EXPIRED, SKIPPED = 1, 2, 4, 5, 6, 7
local CANCEL_REQUESTED, NO_RETRY_ON_LOSS, FOLLOWED, KEYED, AWAITED = 1, 2, 4, 8, 256
local HELD, PARKED, HOLDS = 64, 128, 2048
local ARRAY, TASK, HOOKED = 512, 1024, 4096
local BELL_LIMIT = 10000
local MANY_WAITERS = 4294967295
local NOBODY = string.rep('\0', 8)
local INBOX_TTL = 600000
local call = redis.call
local byte, char, sub, match = string.byte, string.char, string.sub, string.match
local pack, unpack_struct = struct.pack, struct.unpack
-- What array.lua adds: everything about job arrays.
local array = {}
-- What is remembered within one call: which outcomes hooks want to know of; lists that ids have left.
local hooked, lists_left

local function begin_call() hooked, lists_left = nil, {} end

local function now_ms()
  local t = call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- What every order and every end must know of a job (see is_plain). Reading no more than that, and into no table, is
-- a third of the work of all that a job without anything special costs here.
local PLAIN = '<BBxBI4I4xxxxxxI6BxI2I4xxxxxxxxxxxxxxI6I4I4'

-- It does not expire, and no flag says anything of it.
local function is_plain(version, expires, flags)
  return version == 1 and expires + flags == 0
end

-- nil for bytes that are no record of this version.
local function read(rec)
  if #rec < 60 or byte(rec) ~= 1 then return nil end
  local r = {}
  r.version, r.priority, r.tries, r.crashes, r.class, r.waiter, r.submitted, r.expires,
  r.state, r.outcome, r.flags, r.attempt, r.since, r.incarnation, r.entry_time, r.entry_number, r.spec_length =
    struct.unpack('<BBBBI4I4I6I6BBI2I4I6c8I6I4I4', rec)
  r.priority = r.priority - 100
  return r
end

-- The middle of the header: what a move rewrites in one piece, from this offset on.
local MIDDLE = '24'
local function middle(state, outcome, flags, attempt, since, incarnation, entry_time, entry_number)
  return pack('<BBI2I4I6c8I6I4', state, outcome, flags, attempt, since, incarnation, entry_time, entry_number)
end

local function has(flags, flag)
  return math.floor(flags / flag) % 2 == 1
end

-- A bell that nobody reads stays bounded; who reads a full one looks at everything again.
local function ring(text)
  if call('RPUSH', BASE .. 'bell', text) > BELL_LIMIT then call('RPOP', BASE .. 'bell') end
end

-- The one way out of what a job held while a channel had it. Repeated, or for a job that held nothing, it does nothing.
local function let_go(id, r)
  if not has(r.flags, HOLDS) then return end
  r.flags = r.flags - HOLDS
  local text = call('HGET', BASE .. 'holds', id)
  if not text then return end
  call('HDEL', BASE .. 'holds', id)
  local held = cmsgpack.unpack(text)
  for _, key in ipairs(held.limits) do
    call('SREM', BASE .. 'limit:' .. key, id)
    if call('SREM', BASE .. 'blocked', key) == 1 then ring('f:' .. key) end
  end
  if not held.place then return end
  call('HDEL', BASE .. 'used:' .. held.place, id)
  if call('SREM', BASE .. 'blocked', 'used:' .. held.place) == 1 then ring('f:used:' .. held.place) end
end

-- Whoever is with no channel holds nothing.
local function write_middle(id, r)
  if r.state ~= DISPATCHED and r.state ~= RUNNING then let_go(id, r) end
  call('SETRANGE', BASE .. 'job:' .. id, MIDDLE,
    middle(r.state, r.outcome, r.flags, r.attempt, r.since, r.incarnation, r.entry_time, r.entry_number))
end

local function write_tries(id, r)
  call('SETRANGE', BASE .. 'job:' .. id, 2, struct.pack('<BB', math.min(r.tries, 255), math.min(r.crashes, 255)))
end

local function entry_of(r)
  return string.format('%.0f-%.0f', r.entry_time, r.entry_number)
end

-- Whether this is the name of the dispatch entry with that time and number.
local function is_entry(name, time, number)
  local its_time, its_number = match(name, '^(%d+)-(%d+)$')
  return tonumber(its_time or -1) == time and tonumber(its_number) == number
end

-- Whatever a held job goes on to: it is held no more.
local function drop_hold(id, r)
  if has(r.flags, HELD) then
    call('HDEL', BASE .. 'held', id)
    r.flags = r.flags - HELD
  end
  if has(r.flags, PARKED) then r.flags = r.flags - PARKED end
end

-- The turn of a held job has come: it waits beside its list, so that a release need not look for it there.
local function park(id, r)
  if has(r.flags, PARKED) then return end
  r.flags = r.flags + PARKED
  write_middle(id, r)
end

-- A lone message brings the record along, unless it is long: whoever waits need not ask for it. Many that nobody takes
-- would be a second copy of all results.
local MOST_BROUGHT = 4096
local function tell_waiter(id, waiter, rec)
  local inbox = BASE .. 'inbox:' .. waiter
  local brings = #rec <= MOST_BROUGHT and call('EXISTS', inbox) == 0
  call('RPUSH', inbox, brings and id .. ':' .. rec or id)
  call('PEXPIRE', inbox, INBOX_TTL)
end

local function wake(id, waiter, rec)
  if waiter == 0 then return end
  if waiter ~= MANY_WAITERS then return tell_waiter(id, waiter, rec) end
  for _, one in ipairs(call('SMEMBERS', BASE .. 'waiters:' .. id)) do tell_waiter(id, one, rec) end
  call('DEL', BASE .. 'waiters:' .. id)
end

-- The key of a job that was submitted under one, and for how long it is taken: '' as long as its record lives,
-- 'running' until it has ended, 'pending' until a channel has it.
local function key_of(rec, r)
  local ok, spec = pcall(cmsgpack.unpack, string.sub(rec, 61, 60 + r.spec_length))
  if ok and type(spec) == 'table' and spec.key then return BASE .. 'once:' .. spec.key, spec.key_scope or '' end
end

local function free_key(id, once)
  if call('GET', once) == id then call('DEL', once) end
end

local function end_key(id, rec, r, keep)
  local once, scope = key_of(rec, r)
  if once and scope == '' then
    call('PEXPIRE', once, math.max(keep, 1))
  elseif once then
    free_key(id, once)
  end
end

-- A channel gets the job.
local function leave_key(id, rec, r)
  local once, scope = key_of(rec, r)
  if scope == 'pending' then free_key(id, once) end
end

-- It waits again; meanwhile another job may have taken the key.
local function take_key_again(id, rec, r)
  if not has(r.flags, KEYED) then return end
  local once, scope = key_of(rec, r)
  if scope == 'pending' then call('SET', once, id, 'NX') end
end

-- Those that wait for a job leave its list with its end, so that who comes later waits for the next one. The
-- dispatcher goes on from here (unblock.lua): there may be a million of them.
local function tell_dependents(parent, outcome, dependents)
  local number = string.format('%.0f', call('INCR', BASE .. 'unblocks'))
  if dependents then
    call('RPUSH', BASE .. 'unblocking:' .. number, dependents)
  elseif call('EXISTS', BASE .. 'dependents:' .. parent) == 1 then
    call('RENAME', BASE .. 'dependents:' .. parent, BASE .. 'unblocking:' .. number)
  else
    return
  end
  call('RPUSH', BASE .. 'unblocking', string.format('%s:%d:%s', number, outcome, parent))
  ring('unblock')
end

-- While a job waits for others, its entry says when it is due by a time of its own (0: it has none), and which time
-- of waiting this is: what was meant for an earlier one does not count. In place of an incarnation it counts for how
-- many it waits still, so that awaits:<id> may be lost. Returns when it is due.
local function forget_waiting(id, r)
  call('DEL', BASE .. 'awaits:' .. id)
  call('ZREM', BASE .. 'waiting', id)
  local due = r and r.entry_time or 0
  if r then r.incarnation, r.entry_time, r.entry_number = NOBODY, 0, 0 end
  return due
end

local function awaited_bytes(count) return pack('<I4I4', count, 0) end

-- Hooks are told of an end in the same step: which outcomes they want to know of is in `hooked`.
local EVENTS_LIMIT = 100000
local function tell_hooks(id, attempt, outcome, named)
  hooked = hooked or call('GET', BASE .. 'hooked') or ''
  if not named and (hooked == '' or not string.find(hooked, tostring(outcome), 1, true)) then return end
  local event = {'job', id, 'outcome', outcome, 'attempt', attempt}
  if named then event[7], event[8] = 'hooks', named end
  call('XADD', BASE .. 'events', 'MAXLEN', '~', EVENTS_LIMIT, '*', unpack(event))
end

-- The hooks that a job names for such an end, with spaces between; nil for none.
local function hooks_named_by(rec, r, outcome)
  if r.flags < HOOKED or not has(r.flags, HOOKED) or outcome == CANCELLED then return nil end
  local ok, spec = pcall(cmsgpack.unpack, sub(rec, 61, 60 + r.spec_length))
  local names = ok and type(spec) == 'table' and spec[outcome == SUCCEEDED and 'on_success' or 'on_failure']
  return type(names) == 'table' and #names > 0 and table.concat(names, ' ') or nil
end

-- The end of a job of which nothing else need be undone or told; ``keep`` (ms, as text) is more than 0. Returns its record.
local function finish_plain(id, rec, waiter, attempt, spec_length, outcome, result, keep, now)
  local whole = sub(rec, 1, 24) .. char(DONE, outcome) .. sub(rec, 27, 32) .. pack('<I6', now)
    .. sub(rec, 39, 60 + spec_length) .. result
  call('SET', BASE .. 'job:' .. id, whole, 'PX', keep)
  tell_hooks(id, attempt, outcome)
  wake(id, waiter, whole)
  return whole
end

-- The one way to every other end: the record gets its result and its time to live, whoever waits is told.
local function finish(id, rec, r, outcome, result, keep, now)
  let_go(id, r)
  if has(r.flags, HELD) or has(r.flags, PARKED) then drop_hold(id, r) end
  local flags = has(r.flags, AWAITED) and r.flags - AWAITED or r.flags
  if r.state == WAITING then forget_waiting(id, r) end
  local whole = string.sub(rec, 1, 24)
    .. middle(DONE, outcome, flags, r.attempt, now, r.incarnation, r.entry_time, r.entry_number)
    .. string.sub(rec, 57, 60 + r.spec_length) .. result
  if keep > 0 then
    call('SET', BASE .. 'job:' .. id, whole, 'PX', keep)
  else
    call('DEL', BASE .. 'job:' .. id)
  end
  if has(r.flags, CANCEL_REQUESTED) then call('SREM', BASE .. 'cancelling', id) end
  if r.expires > 0 then call('ZREM', BASE .. 'expiring', id) end
  if has(r.flags, KEYED) then end_key(id, rec, r, keep) end
  if flags ~= r.flags then tell_dependents(id, outcome) end
  tell_hooks(id, r.attempt, outcome, hooks_named_by(rec, r, outcome))
  wake(id, r.waiter, whole)
  if r.flags >= ARRAY and (has(r.flags, ARRAY) or has(r.flags, TASK)) then array.note_end(id, r, outcome, keep, now) end
end

-- An end that no channel reported. The collector learns of it on the result stream, for the history.
-- text: for people, where the cause does not say it all.
local function finish_unreported(id, rec, r, outcome, cause, keep, now, text)
  local result = cmsgpack.pack({outcome = outcome, cause = cause, ended = now / 1000, error = text})
  finish(id, rec, r, outcome, result, keep, now)
  call('XADD', BASE .. 'results', '*', 'ended', id)
end

local function to_hex(bytes)
  return (string.gsub(bytes, '.', function(char) return string.format('%02x', string.byte(char)) end))
end

local function from_hex(text)
  return (string.gsub(text, '..', function(pair) return string.char(tonumber(pair, 16)) end))
end

-- The order of a plain job, sent for the first time (or the attempt-th, which is text: a number costs the server as much
-- as all the rest of it). Returns time and number of its entry.
local function send_plainly(stream, id, attempt, spec)
  local entry = call('XADD', stream, '*', 'job', id, 'attempt', attempt, 'flags', '0', 'spec', spec)
  local time, number = match(entry, '^(%d+)-(%d+)$')
  return tonumber(time), tonumber(number)
end

-- A hint to whichever channel has the job: repeated by those who care, so it may get lost.
local function hint(what, id, r)
  local control = BASE .. 'control:' .. to_hex(r.incarnation)
  call('XADD', control, 'MAXLEN', '~', 1000, '*', what, id, 'attempt', r.attempt)
  call('PEXPIRE', control, 3600000)
end

-- The number of a class. None is ever given twice: a class that was forgotten comes back under another.
local function class_number(text)
  local number = call('HGET', BASE .. 'classes', text)
  if not number then
    local last = math.max(tonumber(call('GET', BASE .. 'next-class') or '0'), call('HLEN', BASE .. 'classes'))
    number = string.format('%.0f', last + 1)
    call('SET', BASE .. 'next-class', number)
    call('HSET', BASE .. 'classes', text, number)
  end
  return tonumber(number)
end

local function pending_list(class, priority)
  return BASE .. 'pending:' .. string.format('%d:%d', class, priority)
end

-- Into the list of its class and priority: at the end, or in front when it had left it before.
local function make_pending(class, priority, ids, in_front)
  local list = pending_list(class, priority)
  local before = call('LLEN', list)
  for first = 1, #ids, 5000 do
    call(in_front and 'LPUSH' or 'RPUSH', list, unpack(ids, first, math.min(first + 4999, #ids)))
  end
  if before == 0 then
    call('SADD', BASE .. 'pending', string.format('%d:%d', class, priority))
  end
  ring(string.format('p:%d:%d:%d', class, priority, before + #ids))
end

-- Many ids that become pending, each for the end of its list: gathered with line_up, put there with make_lines_pending.
local function line_up(lines, id, r)
  local name = r.class .. ':' .. r.priority
  if not lines[name] then
    lines[name] = {r.class, r.priority, {}}
    lines[#lines + 1] = lines[name]
  end
  table.insert(lines[name][3], id)
end

local function make_lines_pending(lines)
  for _, line in ipairs(lines) do make_pending(line[1], line[2], line[3], false) end
end

-- Back into the pending list: {id, r} in the order in which they stood there, to stand in front in that order.
local function pending_again(back)
  for i = #back, 1, -1 do make_pending(back[i][2].class, back[i][2].priority, {back[i][1]}, true) end
end

-- Whether an id that stands in the list of this class and priority does so rightly, and is no tombstone.
local function waits_in(r, class, priority)
  return r and r.state == PENDING and r.class == class and r.priority == priority
end

-- An id that ends or changes its priority while it waits stays behind in its list. Where nobody takes from that list,
-- this keeps it short.
local function drop_tombstones(class, priority)
  local list, dropped = pending_list(class, priority), 0
  while dropped < 1000 do
    local id = call('LINDEX', list, 0)
    local r = id and read(call('GETRANGE', BASE .. 'job:' .. id, 0, 59))
    if not id or waits_in(r, class, priority) or (r and array.waits_in(r, class, priority)) then break end
    call('LPOP', list)
    dropped = dropped + 1
  end
  if dropped == 0 then return end
  local left = call('LLEN', list)
  if left == 0 then call('SREM', BASE .. 'pending', string.format('%d:%d', class, priority)) end
  ring(string.format('p:%d:%d:%d', class, priority, left))
end

-- The time to expire may have passed unheeded while a channel had the job.
local function watch_expiry(id, r)
  if r.expires == 0 then return end
  call('ZADD', BASE .. 'expiring', r.expires, id)
  ring('s')
end

-- No channel has it any more, and nothing is charged: it waits again. ``back`` is for pending_again.
local function take_back(back, id, rec, r, now)
  r.state, r.outcome, r.since, r.incarnation, r.entry_time, r.entry_number = PENDING, 0, now, NOBODY, 0, 0
  write_middle(id, r)
  watch_expiry(id, r)
  take_key_again(id, rec, r)
  back[#back + 1] = {id, r}
end

-- Whether an outcome (0: nobody knows it any more) is what a job waits for.
local function meets(condition, outcome)
  if condition == 'any' then return true end
  if condition == 'ok' then return outcome == SUCCEEDED end
  return outcome > SUCCEEDED
end

-- The conditions of a job, {'12:ok', ...}, as its spec says them.
local function conditions_of(rec, r)
  local ok, spec = pcall(cmsgpack.unpack, string.sub(rec, 61, 60 + r.spec_length))
  return ok and type(spec) == 'table' and type(spec.after) == 'table' and spec.after or {}
end

local function dependent(id, condition, number)
  return string.format('%s:%s:%d', id, condition, number)
end

-- Registers a dependent with the job that it waits for, whose record r is (nil: it comes with this very call).
local function register(one, parent, r)
  call('RPUSH', BASE .. 'dependents:' .. parent, one)
  if r and not has(r.flags, AWAITED) then
    r.flags = r.flags + AWAITED
    call('SETRANGE', BASE .. 'job:' .. parent, 26, struct.pack('<I2', r.flags))
  end
end

-- What a job waits for, by {'12:ok', ...}: the number of this time of waiting, nil where nothing keeps it, and for how
-- many. new: ids whose records come with this call. What can never be met skips the job when the dispatcher looks at
-- it.
local function await_all(id, conditions, new, now)
  local number, count = nil, 0
  for _, one in ipairs(conditions) do
    local parent, condition = string.match(one, '^(.+):(%a+)$')
    local r = not new[parent] and read(call('GETRANGE', BASE .. 'job:' .. parent, 0, 59)) or nil
    local open = new[parent] or (r and r.state ~= DONE)
    if open or not meets(condition, r and r.outcome or 0) then
      number = number or call('INCR', BASE .. 'unblocks') % 4294967296
      count = count + call('SADD', BASE .. 'awaits:' .. id, parent)
      if open then
        register(dependent(id, condition, number), parent, r)
      else
        tell_dependents(parent, r and r.outcome or 0, dependent(id, condition, number))
      end
    end
  end
  if number then call('ZADD', BASE .. 'waiting', now, id) end
  return number, count
end

-- Many may leave one list in one call: its tombstones are dropped at the end of it.
local function leave_list(class, priority)
  lists_left[class] = lists_left[class] or {}
  lists_left[class][priority] = true
end

local function drop_what_was_left()
  for class, priorities in pairs(lists_left) do
    for priority in pairs(priorities) do drop_tombstones(class, priority) end
  end
  lists_left = {}
end

-- Somebody wants the end of a job that has not ended: 1 cancelled, or 2 asked of the channel that has it. After the
-- last of these in a call drop_what_was_left is to follow.
local function request_end(id, rec, r, keep, now)
  if r.state == DISPATCHED or r.state == RUNNING then
    if not has(r.flags, CANCEL_REQUESTED) then
      r.flags = r.flags + CANCEL_REQUESTED
      write_middle(id, r)
      call('SADD', BASE .. 'cancelling', id)
    end
    hint('cancel', id, r)
    return 2
  end
  if r.state == SCHEDULED then call('ZREM', BASE .. 'scheduled', id) end
  finish_unreported(id, rec, r, CANCELLED, 'cancelled', keep, now)
  if r.state == PENDING then leave_list(r.class, r.priority) end
  return 1
end
