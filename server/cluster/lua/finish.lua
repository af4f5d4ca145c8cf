-- Take tasks that are done out of the queue. KEYS: queue. ARGV: group, then ids.
for i = 2, #ARGV do
  redis.call('XACK', KEYS[1], ARGV[1], ARGV[i])
  redis.call('XDEL', KEYS[1], ARGV[i])
end
