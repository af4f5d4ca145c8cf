-- What scores win in one book, and what the book is worth after them.
-- KEYS: prizes, then for each record type a sorted set of the sets' values.
-- ARGV: seconds that a book is kept, scores (msgpack): [[set, [[type, value, prize, barred], ...]]]
--       type: which sorted set, from 1; value: as text, to the last digit; barred: it may win
--       nothing new. A set loses the values of types that its score does not name.
-- Returns: nil if the book is not here, else [[score (from 1), type, "value previous"], ...]
local prizes = KEYS[1]
if redis.call('HEXISTS', prizes, 'seeded') == 0 then return false end

local function best_of_others(type, set)
  local top = redis.call('ZREVRANGE', KEYS[1 + type], 0, 1, 'WITHSCORES')
  if top[1] ~= set then return top[2] end
  return top[4]
end

local awards = {}
for score, given in ipairs(cmsgpack.unpack(ARGV[2])) do
  local set, values = given[1], given[2]
  local kept = {}
  for _, competing in ipairs(values) do
    local type, value, prize, barred = unpack(competing)
    kept[type] = value
    -- Numbers are compared as numbers and kept as text: Lua's own text of a number loses digits.
    local won = redis.call('HGET', prizes, prize)
    if won then
      if tonumber(string.match(won, '^%S+')) ~= tonumber(value) then won = nil end
    elseif not barred then
      local best = best_of_others(type, set)
      if not best or tonumber(value) > tonumber(best) then
        won = value .. ' ' .. (best or '')
        redis.call('HSET', prizes, prize, won)
      end
    end
    if won then awards[#awards + 1] = {score, type, won} end
  end
  for type = 1, #KEYS - 1 do
    if kept[type] then
      redis.call('ZADD', KEYS[1 + type], kept[type], set)
    else
      redis.call('ZREM', KEYS[1 + type], set)
    end
  end
end
for _, key in ipairs(KEYS) do redis.call('EXPIRE', key, ARGV[1]) end
return awards
