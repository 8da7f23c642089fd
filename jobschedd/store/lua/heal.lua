#!lua flags=allow-oom
-- Let go of what is held by jobs that are with no channel any more: a record may have gone another way than by a move
-- (deleted by hand, written by an older version, rolled back).
-- KEYS: leader holds
-- ARGV: base, fence, cursor, about how many
-- returns: {next cursor, let go}
if call('GET', KEY.leader) ~= ARGV[2] then return redis.error_reply('NOTLEADER another master leads') end
local page, healed = call('HSCAN', KEY.holds, ARGV[3], 'COUNT', ARGV[4]), 0
for i = 1, #page[2], 2 do
  local id = page[2][i]
  local r = read(call('GETRANGE', BASE .. 'job:' .. id, 0, 59))
  if not r or (r.state ~= DISPATCHED and r.state ~= RUNNING) then
    if r and has(r.flags, HOLDS) then write_middle(id, r) else let_go(id, {flags = HOLDS}) end
    healed = healed + 1
  elseif not has(r.flags, HOLDS) then
    r.flags = r.flags + HOLDS
    write_middle(id, r)
  end
end
return {page[1], healed}
