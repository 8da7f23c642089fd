#!lua flags=no-writes,allow-oom
-- Which of these jobs are in the states or have the outcomes wanted, and match what else is asked. Reads only.
-- KEYS:
-- ARGV: base, states wanted (a word of '0' and '1', by number), outcomes likewise, node, channel, group ('' for any),
--       the incarnations of that node and channel (8 bytes each, one text), labels wanted (JSON array),
--       '1' to be told names, ids...
-- returns: flat, per job found: id, since when it is in its state (ms), name ('' where not asked for)
-- A node or channel matches where it was asked for, and where the job is or was.
local states, outcomes, node, channel, group, places = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local labels, names = cjson.decode(ARGV[8]), ARGV[9] == '1'
local placed = node ~= '' or channel ~= ''
local deep = placed or group ~= '' or #labels > 0 or names
local ONE = string.byte('1')
local here = {}
for at = 1, #places, 8 do here[string.sub(places, at, at + 7)] = true end

local function unpacked(text)
  local ok, value = pcall(cmsgpack.unpack, text)
  return ok and type(value) == 'table' and value or {}
end

local function fits(one)
  return (node == '' or one.node == node) and (channel == '' or one.channel == channel)
end

local function is_there(rec, r, spec)
  if fits(spec) then return true end
  if r.state == DISPATCHED or r.state == RUNNING then return here[r.incarnation] or false end
  return r.state == DONE and fits(unpacked(string.sub(rec, 61 + r.spec_length)))
end

local function has_labels(spec)
  local has_it = {}
  for _, label in ipairs(spec.labels or {}) do has_it[label] = true end
  for _, label in ipairs(labels) do
    if not has_it[label] then return false end
  end
  return true
end

local function matches(rec, r, spec)
  return (not placed or is_there(rec, r, spec)) and (group == '' or spec.group == group) and has_labels(spec)
end

local found = {}
for at = 10, #ARGV do
  local id = ARGV[at]
  local key = BASE .. 'job:' .. id
  local rec = deep and call('GET', key) or call('GETRANGE', key, 0, 59)
  local r = rec and read(rec)
  local wanted = r and (string.byte(states, r.state + 1) == ONE
    or (r.state == DONE and string.byte(outcomes, r.outcome + 1) == ONE))
  if wanted then
    local spec = deep and unpacked(string.sub(rec, 61, 60 + r.spec_length)) or {}
    if not deep or matches(rec, r, spec) then
      found[#found + 1] = id
      found[#found + 1] = r.since
      found[#found + 1] = names and spec.name or ''
    end
  end
end
return found
