-- == preflight.py: what the controller asks before it reads the first event.

-- A prefix belongs to one group, because each replica takes over all tasks under its prefix, of any group.
-- KEYS: the key of the group. ARGV: none. Returns the group that the prefix belongs to: ours, unless another came first.
function F.reserve_prefix()
  local group = keys()
  local held = redis.call('HGET', group, 'group')
  if not held then write('HSET', group, 'group', GROUP) end
  return held or GROUP
end

-- A queue belongs to one cluster and namespace, because a replica that does not see the pods would start everything again.
-- KEYS: the key of the group. ARGV: cluster. Returns the cluster that the queue belongs to: this one, unless another came first.
function F.bind_queue_to_cluster(cluster)
  local group = keys()
  local held = redis.call('HGET', group, 'cluster')
  if not held then write('HSET', group, 'cluster', cluster) end
  return held or cluster
end

-- How many arguments each of these commands needs behind its key: see ANY. A function, so that no other call pays for the table.
local function arguments_needed()
  return {
    HSET = 2, HDEL = 1, HGETALL = 0, HEXISTS = 1, HGET = 1, HMGET = 1, HLEN = 0, EXPIRE = 1, EXISTS = 0,
    ZADD = 2, ZREM = 1, ZREMRANGEBYSCORE = 2, ZSCORE = 1, ZRANGE = 2, ZRANGEBYSCORE = 2, ZRANGEBYLEX = 2, ZCARD = 0,
    XADD = 3, XACK = 2, XCLAIM = 4, XRANGE = 2, XPENDING = 1, XGROUP = 2, XINFO = 0, XLEN = 0,
  }
end

local function is_permitted(command, key, counts)
  local name, part = string.match(command, '^(%S+) ?(%S*)$')
  if name == 'XREADGROUP' then return redis.acl_check_cmd(name, 'GROUP', GROUP, 'c', 'STREAMS', key, '>') end
  if name == 'XREAD' then return redis.acl_check_cmd(name, 'STREAMS', key, '0') end
  if part ~= '' then return redis.acl_check_cmd(name, part, key, unpack(ANY, 1, counts[name])) end
  return redis.acl_check_cmd(name, key, unpack(ANY, 1, counts[name]))
end

-- What the controller does with each key, in the order of KEYS, and then: the group's, the consumer's, a task, the choices,
-- the tasks of a concurrency key.
-- Without what tidies the stream (XTRIM and others): it can do without. A function, so that no other call pays for the table.
local function needed()
  return {
    {'stream', {'XREADGROUP', 'XREAD', 'XRANGE', 'XPENDING', 'XACK', 'XCLAIM', 'XGROUP CREATE', 'XINFO GROUPS', 'XLEN'}},
    {'sorted set', {'ZADD', 'ZREM', 'ZSCORE', 'ZRANGE', 'ZRANGEBYSCORE', 'ZCARD'}},
    {'stream', {'XADD', 'XINFO STREAM', 'XLEN'}},
    {'stream', {'XADD', 'XINFO STREAM', 'XLEN'}},
    {'sorted set', {'ZADD', 'ZREMRANGEBYSCORE', 'ZSCORE', 'ZCARD'}},
    {'hash', {'HGET', 'HSET', 'HLEN'}},
    {'hash', {'HGET', 'HSET', 'HLEN', 'EXPIRE', 'EXISTS'}},
    {'hash', {'HGET', 'HMGET', 'HGETALL', 'HEXISTS', 'HLEN', 'HSET', 'HDEL', 'EXPIRE', 'EXISTS'}},
    {'sorted set', {'ZADD', 'ZREM', 'ZRANGEBYLEX', 'ZCARD'}},
    {'sorted set', {'ZADD', 'ZREM', 'ZRANGEBYSCORE', 'ZSCORE', 'ZCARD'}},
  }
end

-- What is wrong with which key. Changes nothing. Gets the keys as arguments: a script that names a key to which the user has
-- no right is not run at all, and the server does not say which key it was.
-- KEYS: none. ARGV: the keys, in the order of `needed`.
-- Returns for each key with which something is wrong {key, kind, commands}: the kind that it should hold ('' where it holds
-- that) and the commands that the user may not run on it; last the same for commands that are about no key.
function F.key_problems(...)
  local found, names, counts = {}, {...}, arguments_needed()
  local probes = {stream = 'XLEN', ['sorted set'] = 'ZCARD', hash = 'HLEN'}
  for n, need in ipairs(needed()) do
    local kind, commands = unpack(need)
    local missing, wanted = {}, ''
    for _, command in ipairs(commands) do
      if not is_permitted(command, names[n], counts) then missing[#missing + 1] = command end
    end
    local reply = redis.pcall(probes[kind], names[n])
    if type(reply) == 'table' and string.find(reply.err or '', 'WRONGTYPE', 1, true) then wanted = kind end
    if wanted ~= '' or #missing > 0 then found[#found + 1] = {names[n], wanted, table.concat(missing, ', ')} end
  end
  if not redis.acl_check_cmd('TIME') then found[#found + 1] = {'', '', 'TIME'} end
  return found
end
