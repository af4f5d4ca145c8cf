-- Bring a book in, unless it is here already.
-- KEYS: as for judge.lua. ARGV: seconds that a book is kept, book (msgpack):
--       [[[set, [[type, value], ...]], ...], [[prize, as it is kept], ...]]
local prizes = KEYS[1]
if redis.call('HEXISTS', prizes, 'seeded') == 1 then return end
redis.call('DEL', unpack(KEYS))
local book = cmsgpack.unpack(ARGV[2])
for _, row in ipairs(book[1]) do
  for _, worth in ipairs(row[2]) do
    redis.call('ZADD', KEYS[1 + worth[1]], worth[2], row[1])
  end
end
for _, prize in ipairs(book[2]) do redis.call('HSET', prizes, prize[1], prize[2]) end
redis.call('HSET', prizes, 'seeded', '1')
for _, key in ipairs(KEYS) do redis.call('EXPIRE', key, ARGV[1]) end
