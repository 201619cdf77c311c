--[[ A script happens as a whole or not at all. Stands in front of the scripts of the protocol and of dead.lua.

Redis does not roll a script back: if its third write is refused, two stay, and a caller that repeats it finds the work half done.
So no function writes. It reads, decides, and plans its writes with `write`; `commit` proves that each of them is possible,
and then carries out all. What may refuse a write, and how it is met:
  the type of the key          asked for each key (HLEN, ZCARD, XLEN: they need no right beyond those of the writes)
  the rights of the user       asked for each command and key (redis.acl_check_cmd, Redis 7.0)
  memory, disk, replicas       Redis refuses the first write or none: within one script it lets all others pass
  the last id of a stream      XADD comes first, so that it is refused before anything is written; where there are two,
                               the stream is asked (XINFO)
A read after a planned write still sees the old value. ]]

-- The command that shows whether a key is of the type that a command needs, and the name of that type. Flat, since all
-- tables of a script are made again at each call.
local PROBES = {
  HSET = 'HLEN', HDEL = 'HLEN', HGETALL = 'HLEN', HEXISTS = 'HLEN', EXPIRE = 'EXISTS',
  ZADD = 'ZCARD', ZREM = 'ZCARD', ZREMRANGEBYSCORE = 'ZCARD',
  XADD = 'XLEN', XACK = 'XLEN', XCLAIM = 'XLEN', XDEL = 'XLEN', XTRIM = 'XLEN',
}
local TYPES = {HLEN = 'hash', ZCARD = 'sorted set', XLEN = 'stream', EXISTS = 'key'}
local LAST_MS = '18446744073709551615-'
-- Lua passes no more than some thousand arguments.
local MAX_ARGUMENTS = 1000
local planned = {}

-- One write: the command, its key, its arguments.
local function write(...) planned[#planned + 1] = {...} end

-- HSET of any number of fields, a flat list.
local function write_hash(key, fields)
  for start = 1, #fields, MAX_ARGUMENTS do
    write('HSET', key, unpack(fields, start, math.min(start + MAX_ARGUMENTS - 1, #fields)))
  end
end

-- Arguments of no meaning, for a question about rights: since Redis 8 it is an error with fewer than the command needs.
local ANY = {'0', '0', '0', '0'}

-- Why this write (or a read that follows the writes) would be refused, as an error; nil if it would not. `count`: of the
-- arguments behind the key.
local function refusal(command, key, count)
  if not redis.acl_check_cmd(command, key, unpack(ANY, 1, math.min(count, #ANY))) then
    return redis.error_reply('NOPERM the user may not run ' .. command .. ' on the key ' .. key .. ', so nothing was changed')
  end
  local probe = PROBES[command]
  local found = redis.pcall(probe, key)
  if type(found) ~= 'table' or not found.err then return nil end
  if not string.find(found.err, 'WRONGTYPE', 1, true) then return found end
  return redis.error_reply('WRONGTYPE the key ' .. key .. ' holds something else than a ' .. TYPES[probe] .. ', so nothing was changed')
end

-- The same for a stream that has given its last id.
local function exhausted(key)
  local info = redis.pcall('XINFO', 'STREAM', key)
  if info.err then return not string.find(info.err, 'no such key', 1, true) and info or nil end
  for n = 1, #info, 2 do
    if info[n] == 'last-generated-id' and string.sub(info[n + 1], 1, #LAST_MS) == LAST_MS then
      return redis.error_reply('ERR the stream ' .. key .. ' has given its last id, so nothing was changed')
    end
  end
  return nil
end

-- Returns the error that the first impossible write would get, nil if all are possible.
local function impossible()
  local proven, adds = {}, 0
  for _, each in ipairs(planned) do
    local what, refused = each[1] .. ' ' .. each[2], nil
    if not proven[what] then refused = refusal(each[1], each[2], #each - 2) end
    if refused then return refused end
    proven[what] = true
    adds = adds + (each[1] == 'XADD' and 1 or 0)
  end
  for _, each in ipairs(adds > 1 and planned or {}) do
    local refused = each[1] == 'XADD' and exhausted(each[2])
    if refused then return refused end
  end
  return nil
end

-- Stands in a planned write for the id that an XADD has got by then.
local ADDED = {}

local function carry_out(each, added)
  for n, argument in ipairs(each) do
    if argument == ADDED then each[n] = added end
  end
  return redis.call(unpack(each))
end

-- Carry out all that was planned, or nothing. Returns an error and nothing else; or nil and the id of the last XADD.
local function commit()
  local refused, added = impossible(), nil
  if refused then return refused end
  for _, each in ipairs(planned) do
    if each[1] == 'XADD' then added = carry_out(each) end
  end
  for _, each in ipairs(planned) do
    if each[1] ~= 'XADD' then carry_out(each, added) end
  end
  planned = {}
  return nil, added
end

-- The last line of a file: the answer of a function, or why nothing was changed. An error is the answer to nothing.
local function concluded(answer)
  if type(answer) == 'table' and answer.err then return answer end
  return commit() or answer
end
