-- Forget a document's log, if it still ends where the caller says and nobody listens to its room.
-- KEYS: head, log. ARGV: position, channel. Returns: 1 if it is forgotten, 0 if it stands.
if redis.call('HGET', KEYS[1], 'pos') ~= ARGV[1] then return 0 end
if redis.call('PUBSUB', 'NUMSUB', ARGV[2])[2] > 0 then return 0 end
redis.call('DEL', KEYS[1], KEYS[2])
return 1
