#!lua flags=allow-oom
-- A master says that it is there and what it is configured with, so that differences are noticed.
-- KEYS: configurations
-- ARGV: base, master, what it says (JSON), forget what is older than (ms)
-- returns: now (ms)
local now = now_ms()
call('HSET', KEY.configurations, ARGV[2], cjson.encode({at = now, says = ARGV[3]}))
local said = call('HGETALL', KEY.configurations)
for i = 1, #said, 2 do
  local ok, one = pcall(cjson.decode, said[i + 1])
  if not ok or type(one) ~= 'table' or (tonumber(one.at) or 0) < now - ARGV[4] then call('HDEL', KEY.configurations, said[i]) end
end
return now
