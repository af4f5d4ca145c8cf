-- Queue documents that are not waiting in the queue already.
-- KEYS: queue, documents that wait in it. ARGV: documents.
if redis.call('EXISTS', KEYS[1]) == 0 and redis.call('EXISTS', KEYS[2]) == 1 then
  redis.call('DEL', KEYS[2]) -- of a queue that is gone
end
for _, doc in ipairs(ARGV) do
  if redis.call('SADD', KEYS[2], doc) == 1 then
    redis.call('XADD', KEYS[1], '*', 'd', doc)
  end
end
