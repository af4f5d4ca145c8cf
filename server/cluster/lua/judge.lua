-- What scores win in one book, and what the book is worth after them.
-- KEYS: prizes, then for each record type a sorted set of the sets' values.
-- ARGV: seconds that a book is kept, origin, scores (msgpack):
--       [[set, [[type, value, prize, barred], ...], op], ...]
--       type: which sorted set, from 1; value: as text, to the last digit; barred: it may win
--       nothing. A set loses the values of types that its score does not name.
-- A prize is kept as "value previous origin op", "-" for none. What somebody else has claimed is
-- theirs. Who claimed it (the same origin, or the same operation anywhere) and is not barred has not
-- stored it: the claim stands for the same value, and is as if it had not been made for another.
-- Returns: nil if the book is not here, else [[score (from 1), type, prize as it is kept], ...]
local prizes = KEYS[1]
if redis.call('HEXISTS', prizes, 'seeded') == 0 then return false end

local function best_of_others(type, set)
  local top = redis.call('ZREVRANGE', KEYS[1 + type], 0, 1, 'WITHSCORES')
  if top[1] ~= set then return top[2] end
  return top[4]
end

local awards, origin, won_now = {}, ARGV[2], {}
for score, given in ipairs(cmsgpack.unpack(ARGV[3])) do
  local set, values, op = given[1], given[2], given[3]
  local kept = {}
  for _, competing in ipairs(values) do
    local type, value, prize, barred = unpack(competing)
    kept[type] = value
    -- Numbers are compared as numbers and kept as text: Lua's own text of a number loses digits.
    local won
    if not barred and not won_now[prize] then
      local claim = redis.call('HGET', prizes, prize)
      local claimed, by, during
      if claim then claimed, by, during = string.match(claim, '^(%S+) %S+ (%S+) (%S+)$') end
      if not claim or by == origin or (op ~= '-' and during == op) then
        if claim and tonumber(claimed) == tonumber(value) then
          won = claim
        else
          local best = best_of_others(type, set)
          if not best or tonumber(value) > tonumber(best) then
            won = value .. ' ' .. (best or '-') .. ' ' .. origin .. ' ' .. op
            redis.call('HSET', prizes, prize, won)
          elseif claim then
            redis.call('HDEL', prizes, prize)
          end
        end
      end
    end
    if won then
      won_now[prize] = true
      awards[#awards + 1] = {score, type, won}
    end
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
