-- Shared by those that judge reports. With record.lua.

-- Nearly every report is the end of such a job. Returns its record then; false: this one is not.
local function succeed_plainly(id, rec, attempt, entry, result, keep, now)
  if #rec < 60 then return false end
  local version, _, _, _, waiter, expires, state, flags, its_attempt, time, number, spec_length =
    unpack_struct(PLAIN, rec)
  if not is_plain(version, expires, flags) or (state ~= DISPATCHED and state ~= RUNNING) then return false end
  if its_attempt ~= tonumber(attempt) or not is_entry(entry, time, number) then return false end
  return finish_plain(id, rec, waiter, its_attempt, spec_length, SUCCEEDED, result, keep, now)
end
