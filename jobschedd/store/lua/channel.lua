#!lua name=jobsched_channel_4
-- What a slave may do, as functions: they run under the slave's own rights, and it needs none to load scripts.

-- A bell that nobody reads stays bounded; who reads a full one looks at everything again.
local function ring(bell, text)
  if redis.call('RPUSH', bell, text) > 10000 then redis.call('RPOP', bell) end
end

-- While nothing waits for room, the dispatcher need not wake up for this: it hears of it with whatever comes next. Who
-- lacks the rights to these keys rings.
local function murmur(bell, quiet, pending, text)
  if redis.pcall('EXISTS', pending) == 0 then
    local murmurs = redis.pcall('RPUSH', quiet, text)
    if type(murmurs) == 'number' and murmurs < 1000 then return end
    redis.pcall('RPOP', quiet)  -- of which it is not told twice
  end
  ring(bell, text)
end

-- Reports that share an entry of the result stream, and the bytes beyond which one stands in it alone: entries cost the
-- server and the collector more than what is in them.
local MOST_TOGETHER, MOST_BYTES_TOGETHER = 32, 65536

-- Whether the collector of whoever leads reads such entries: one of an older version would read the last report only.
-- Who lacks the rights to these keys has each report in an entry of its own.
local function may_be_together(leader, together)
  local leads = redis.pcall('GET', leader)
  return type(leads) == 'string' and redis.pcall('GET', together) == leads
end

-- What the moves know of records. As theirs, made at the first call.
local BASE, records
local function make_records()
-- SHARED: record succeed
return {begin_call = begin_call, succeed_plainly = succeed_plainly, now_ms = now_ms}
end

-- Ends that stand in the hash of those that were judged here: a collector that cannot write them down gets the next as
-- reports, which nothing can make it forget. Bytes of a record there.
local MOST_JUDGED, MOST_BYTES_JUDGED = 1000, 4096

-- Somebody waits for a job that succeeded at its first attempt, and nothing else is to be looked up or told: the verdict
-- is given here, while a leader says how long to keep that (see offer.lua). The collector only writes the history; it
-- is woken for the first of those that stand there for it. Returns whether that is all that was to be done.
local function judge_at_once(base, leader, results, entry, job, result)
  local leads, keep = unpack(redis.call('HMGET', base .. 'offers', 'fence', 'keep'))
  if not keep or leads ~= redis.call('GET', leader) then return false end
  local rec, judged = redis.call('GET', base .. 'job:' .. job), base .. 'judged'
  if not rec or string.sub(rec, 9, 12) == '\0\0\0\0' or #rec + #result > MOST_BYTES_JUDGED then return false end
  if redis.call('HLEN', judged) >= MOST_JUDGED then return false end
  if not records then records = make_records() end
  BASE = base
  records.begin_call()
  local whole = records.succeed_plainly(job, rec, 1, entry, result, keep, records.now_ms())
  if not whole then return false end
  redis.call('HSET', judged, job, whole)
  if redis.call('HLEN', judged) == 1 then redis.call('XADD', results, '*', 'ended', job, 'judged', '1') end
  return true
end

local function hand_in(results, reports)
  if #reports > 0 then redis.call('XADD', results, '*', unpack(reports)) end
end

-- report: hand in what happened to dispatch entries. An entry's report leaves the node at most once: only
-- whoever takes the entry away may say how it ended, and a requeue takes it away too.
-- KEYS: dispatch stream, results, bell, lease
-- ARGV: incarnation, window ('' when unchanged), keys of what waits, of murmurs, of the leader and of who reads reports
--       together; of a lone report that may be judged at once what keys of records begin with, the job and its result,
--       else three times ''; then pairs: entry ('' for news that end nothing), report
-- returns: per pair 1 (handed in) or 0 (the entry was no longer ours)
local function report(keys, args)
  local answers, taken, together, bytes = {}, 0, {}, 0
  local most = #args > 11 and may_be_together(args[5], args[6]) and MOST_TOGETHER or 1
  for at = 10, #args, 2 do
    local entry, packed, ours = args[at], args[at + 1], 1
    if entry ~= '' then
      ours = redis.call('XDEL', keys[1], entry)
      taken = taken + ours
    end
    if ours == 1 then
      bytes = bytes + #packed
      if #together == 2 * most or bytes > MOST_BYTES_TOGETHER then
        hand_in(keys[2], together)
        together, bytes = {}, #packed
      end
      together[#together + 1] = 'report'
      together[#together + 1] = packed
    end
    answers[#answers + 1] = ours
  end
  local judged = false
  if args[7] ~= '' and taken == 1 then
    -- Should anything be wrong with what it needs, the report is handed in as any other.
    local _, answer = pcall(judge_at_once, args[7], args[5], keys[2], args[10], args[8], args[9])
    judged = answer == true
  end
  if not judged then hand_in(keys[2], together) end
  if args[2] ~= '' and redis.call('EXISTS', keys[4]) == 1 then
    redis.call('HSET', keys[4], 'window', args[2])
    murmur(keys[3], args[4], args[3], 'w:' .. args[1] .. ':' .. args[2] .. ':' .. taken)
  elseif taken > 0 then
    murmur(keys[3], args[4], args[3], 'r:' .. args[1] .. ':' .. taken)
  end
  return answers
end

-- register: announce a channel incarnation, or announce it again after its lease was lost.
-- KEYS: channels, owners, lease, bell, prefix of leases
-- ARGV: incarnation, channel (node/name), what it says of itself (JSON), window, lease (ms), home
-- returns: 'ok', or what the living owner of that name says of itself: one name is one daemon
local function register(keys, args)
  local other = redis.call('HGET', keys[2], args[2])
  if other and other ~= args[1] then
    local home = redis.call('HGET', keys[5] .. other, 'home')
    if home and home ~= args[6] then return redis.call('HGET', keys[1], other) or 'unknown' end
  end
  redis.call('HSET', keys[1], args[1], args[3])
  redis.call('HSET', keys[2], args[2], args[1])
  redis.call('HSET', keys[3], 'window', args[4], 'home', args[6])
  redis.call('PEXPIRE', keys[3], args[5])
  ring(keys[4], 'c:' .. args[1])
  return 'ok'
end

-- leave: give an incarnation's lease up. Its entries were not started, or were reported before.
-- KEYS: lease, bell, channels
-- ARGV: incarnation
local function leave(keys, args)
  redis.call('DEL', keys[1])
  if redis.call('HEXISTS', keys[3], args[1]) == 1 then redis.call('HSET', keys[3], args[1], 'left') end
  ring(keys[2], 'l:' .. args[1])
  return 'ok'
end

-- take: pubsub: may this channel run the job whose id it heard? Whoever takes a dispatch first has it.
-- KEYS: taken, answer
-- ARGV: id, incarnation, memory of the taking (ms), key of the record, key of what was sent to this channel
-- (Those two are no KEYS because a slave may only read them, and FCALL asks for the right to write all KEYS.)
-- returns: the record; 'taken' when another has it, or it was answered; false when no job of ours was meant
local function take(keys, args)
  local rec = redis.call('GET', args[4])
  if rec and #rec < 60 then rec = false end
  local state = rec and string.byte(rec, 25)
  local attempt, dispatch
  if rec then
    attempt = string.sub(rec, 29, 32)
    dispatch = attempt .. string.sub(rec, 47, 56)
  end
  local waits = (state == 4 or state == 5) and redis.call('ZSCORE', args[5], args[1])
  local taken = redis.call('HMGET', keys[1], 'dispatch', 'by')
  if taken[1] and (not rec or string.sub(taken[1], 1, 4) == attempt) then
    local repeated = waits and taken[2] == args[2] and redis.call('HGET', keys[2], 'dispatch') ~= dispatch
    return repeated and rec or 'taken'
  end
  if not waits then return false end
  redis.call('HSET', keys[1], 'dispatch', dispatch, 'by', args[2])
  redis.call('PEXPIRE', keys[1], args[3])
  return rec
end

-- answer: pubsub: leave a report on a job, then say its id.
-- KEYS: answer
-- ARGV: report, attempt (4 bytes) and entry (10 bytes) of its dispatch, memory of the answer (ms), Redis channel, id
-- returns: how many heard it
local function answer(keys, args)
  redis.call('HSET', keys[1], 'report', args[1], 'dispatch', args[2])
  redis.call('PEXPIRE', keys[1], args[3])
  return redis.call('PUBLISH', args[4], args[5])
end

redis.register_function{function_name = 'jobsched_take_4', callback = take, flags = {'allow-oom'}}
redis.register_function{function_name = 'jobsched_answer_4', callback = answer, flags = {'allow-oom'}}
redis.register_function{function_name = 'jobsched_report_4', callback = report, flags = {'allow-oom'}}
redis.register_function{function_name = 'jobsched_register_4', callback = register, flags = {'allow-oom'}}
redis.register_function{function_name = 'jobsched_leave_4', callback = leave, flags = {'allow-oom'}}
