-- Append a record to a document's log, and tell who listens to its channel.
-- KEYS: head, log, then one key for each answer.
-- ARGV: epoch, origin, n, creates ("1" or "0"), record, channel, seconds that answers are kept,
--       whose the guards are from now on, the answers, then for each guard its name and the
--       position that the writer has seen.
-- Returns: {"ok", position}, or the name of what stands in the way and which one.
local head, log = KEYS[1], KEYS[2]
local epoch, origin, n, creates, record, channel, kept_s, owner = unpack(ARGV, 1, 8)
local answers = #KEYS - 2
local by_origin = 'o:' .. origin

local stood = redis.call('HMGET', head, 'epoch', 'pos', 'created', by_origin)
if not stood[1] then return {'unfounded'} end
if stood[1] ~= epoch then return {'epoch', stood[1]} end
if stood[4] then
  local last_n, last_pos = string.match(stood[4], '^(%d+):(%d+)$')
  if tonumber(n) <= tonumber(last_n) then return {'ok', tonumber(last_pos)} end
end
for i = 1, answers do
  if redis.call('EXISTS', KEYS[2 + i]) == 1 then return {'repeated', i} end
end
if creates == '1' and stood[3] == '1' then return {'exists'} end
if creates ~= '1' and stood[3] ~= '1' then return {'missing'} end

local pos = string.format('%.0f', tonumber(stood[2]) + 1)
local guards = {}
for i = 9 + answers, #ARGV, 2 do
  local name = 'g:' .. ARGV[i]
  local set = redis.call('HGET', head, name)
  if set then
    local set_pos, set_by = string.match(set, '^(%d+):(.*)$')
    if set_by ~= origin and tonumber(set_pos) > tonumber(ARGV[i + 1]) then
      return {'outpaced', ARGV[i]}
    end
  end
  guards[#guards + 1] = name
end

-- First what may be refused (no memory, a position that is taken): a script is not rolled back.
redis.call('XADD', log, pos .. '-0', 'r', record, 'o', origin, 'n', n)
redis.call('HSET', head, 'pos', pos, 'created', '1', by_origin, n .. ':' .. pos)
for _, name in ipairs(guards) do
  redis.call('HSET', head, name, pos .. ':' .. owner)
end
for i = 1, answers do
  redis.call('SET', KEYS[2 + i], ARGV[8 + i], 'EX', kept_s)
end
redis.call('PUBLISH', channel,
  cmsgpack.pack({1, 'u', tonumber(pos), epoch, origin, tonumber(n), record}))
return {'ok', tonumber(pos)}
