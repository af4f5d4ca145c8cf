-- Since when this Redis has been keeping what it has: written once, and gone with everything else.
-- KEYS: the note. ARGV: a name for it, in case there is none; "1" if nothing can have been lost.
-- Returns: {name, how long ago it was written, in ms}.
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local note = redis.call('GET', KEYS[1])
if not note then
  local since_ms = ARGV[2] == '1' and 0 or now_ms
  note = ARGV[1] .. ' ' .. string.format('%.0f', since_ms)
  redis.call('SET', KEYS[1], note)
end
local name, since_ms = string.match(note, '^(%S+) (%d+)$')
return {name, string.format('%.0f', math.max(0, now_ms - since_ms))}
