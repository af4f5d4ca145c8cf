-- Make a document's head, unless there is one.
-- KEYS: head, log. ARGV: epoch, position, created ("1" or "0").
-- Returns: {epoch, position, created} of the head that stands.
local head, log = KEYS[1], KEYS[2]
if redis.call('EXISTS', head) == 0 then
  local pos = tonumber(ARGV[2])
  -- A log that outlived its head: its records may be nowhere else, so the new epoch comes after.
  local last = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
  if last then
    pos = math.max(pos, tonumber(string.match(last[1], '^%d+')))
  else
    redis.call('DEL', log)
  end
  redis.call('HSET', head,
    'epoch', ARGV[1], 'pos', string.format('%.0f', pos), 'created', ARGV[3])
end
return redis.call('HMGET', head, 'epoch', 'pos', 'created')
