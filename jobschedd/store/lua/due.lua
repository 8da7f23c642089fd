#!lua flags=allow-oom
-- What a hook has to deliver now.
-- KEYS: queue
-- ARGV: base
-- returns: {the delivery that is due, or ''; ms until the next one is, -1 where there is none}
local first = call('ZRANGE', KEY.queue, 0, 0, 'WITHSCORES')
if #first == 0 then return {'', -1} end
local wait = tonumber(first[2]) - now_ms()
return {wait <= 0 and first[1] or '', math.max(0, wait)}
