-- Begin a document's log anew, unless somebody else has.
-- KEYS: head, log. ARGV: the epoch that is given up, the new one, the new one's position.
-- Returns: {epoch, position, created} of the head that stands.
local head, log = KEYS[1], KEYS[2]
if redis.call('HGET', head, 'epoch') == ARGV[1] then
  local created = redis.call('HGET', head, 'created')
  redis.call('DEL', head, log)
  redis.call('HSET', head, 'epoch', ARGV[2], 'pos', ARGV[3], 'created', created)
end
return redis.call('HMGET', head, 'epoch', 'pos', 'created')
