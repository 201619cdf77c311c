--[[ The protocol by which nothing is lost: every write of the controller, one function each.

A call is one atomic step, and idempotent: whoever got no answer calls again. Commands of Redis 7.0 / Valkey only.
No function writes: it reads first, and then plans its writes (`write`, see atomic.lua), so that all of them happen or none.
  KEYS  1 event stream, 2 open (zset: event id -> end of lease, ms), 3 result stream, 4 dead letter stream,
        5 buried (zset: marker -> ms), 6… task hashes, where needed then
          choices (zset of equal scores: the place of each event that is accepted and has its victims still to choose)
  ARGV  1 function, 2 group, 3 RESULT_MAXLEN, 4 TASK_TTL_S, 5… the function's own

A task hash has, besides what operators read (state, task_id, pod_count, received_at, owner, why, next_at, worker:<i>):
  sid, type, digest, raw (the fields as sent), event (the same, checked), common (fields of every result, a flat list),
  tries, tenure, cancels, done, succeeded, failed, cancelled, first_failed, first_cancelled,
  attempt:<i> = "<attempt>:<infra retries used>[:r|:s]" (r: that attempt's pod was refused and is not there, s: it was seen),
  doom:<i> (why its pod is to be ended), spared:<i> (the drains it survived), outcome:<i> (exactly if its result is stored),
  victims, survivors (of a scale_down), superseding ("todo" until older events were dealt with). ]]

local STREAM, OPEN, RESULTS, DEAD, BURIED = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local GROUP, MAXLEN, TTL = ARGV[2], ARGV[3], tonumber(ARGV[4])
local MAX_TRIES = 10
-- As many again for ending what is poison; then nobody is able to, and it is closed here.
local LAST_TRY = 20
-- No replica gives leases that are so many times as long as another's.
local LEASES_AHEAD = 10

local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- RFC 3339 in UTC; days to civil date as in https://howardhinnant.github.io/date_algorithms.html#civil_from_days
local function stamp(ms)
  local s = math.floor(ms / 1000)
  local z = math.floor(s / 86400) + 719468
  local era = math.floor(z / 146097)
  local doe = z - era * 146097
  local yoe = math.floor((doe - math.floor(doe / 1460) + math.floor(doe / 36524) - math.floor(doe / 146096)) / 365)
  local doy = doe - (365 * yoe + math.floor(yoe / 4) - math.floor(yoe / 100))
  local mp = math.floor((5 * doy + 2) / 153)
  local month = mp < 10 and mp + 3 or mp - 9
  local year = yoe + era * 400 + (month <= 2 and 1 or 0)
  return string.format('%04d-%02d-%02dT%02d:%02d:%02d.%03dZ', year, month, doy - math.floor((153 * mp + 2) / 5) + 1,
    math.floor(s % 86400 / 3600), math.floor(s % 3600 / 60), s % 60, ms % 1000)
end

-- Returns attempt, infra retries used, and the flag: '' where no pod of it was ever seen.
local function stored_attempt(text)
  local attempt, infra, flag = string.match(text or '0:0', '^(%d+):(%d+):?([rs]?)')
  return tonumber(attempt), tonumber(infra), flag
end

-- An owner is <consumer>/<boot>/<tenure>. Only the consumer may contain a slash, so it is cut from the right: compared by
-- their beginnings, consumer x would take the tasks of consumer x/y for its own.
local function consumer_and_boot(owner)
  return string.match(owner or '', '^(.*)/([^/]*)/%d+$')
end

-- HMGET; nil where the key holds something else than a hash: nobody but us has any business under these names.
local function fields_of(key, ...)
  local found = redis.pcall('HMGET', key, ...)
  if not found.err then return found end
  if not string.find(found.err, 'WRONGTYPE', 1, true) then error(found) end
  return nil
end

local function wrong_type(key) return 'the key ' .. key .. ' holds something else than a task' end

local function publish(fields)
  write('XADD', RESULTS, 'MAXLEN', '~', MAXLEN, '*', unpack(fields))
end

local function append_pairs(fields, list)
  for _, value in ipairs(list) do fields[#fields + 1] = value end
  return fields
end

local function close_task(task, eid)
  write('ZREM', OPEN, eid)
  write('HSET', task, 'state', 'finished', 'why', '', 'next_at', '')
  write('HDEL', task, 'owner')
  write('EXPIRE', task, TTL)
end

-- Once for each marker, as long as TASK_TTL_S: the dead letter. Returns whether it is written by this.
local function dead_letter(marker, reason, detail, eid, sid, attempts, raw)
  local now = now_ms()
  local earlier = redis.call('ZSCORE', BURIED, marker)
  if earlier and tonumber(earlier) >= now - TTL * 1000 then return false end
  write('XADD', DEAD, '*', 'dead_reason', reason, 'dead_detail', detail, 'event_id', eid, 'stream_id', sid,
    'group', GROUP, 'attempts', attempts, 'at', stamp(now), 'event', raw)
  write('ZADD', BURIED, now, marker)
  write('ZREMRANGEBYSCORE', BURIED, '-inf', '(' .. (now - TTL * 1000))
  return true
end

-- Returns {'dead', reason, detail}, or {'known'} where there was a dead letter of this entry.
local function bury(task, sid, reason, detail, eid, task_id, digest, raw, common)
  local fresh = dead_letter(GROUP .. '|' .. sid, reason, detail, eid, sid, 0, raw)
  write('XACK', STREAM, GROUP, sid)
  local answer = fresh and {'dead', reason, detail} or {'known'}
  -- in conflict with another event of that id: the result under it belongs to the other one
  if not fresh or eid == '' or redis.call('EXISTS', task) == 1 then return answer end
  local at = stamp(now_ms())
  write('HSET', task, 'sid', sid, 'task_id', task_id, 'digest', digest, 'type', '', 'pod_count', 0, 'received_at', at)
  publish(append_pairs({'kind', 'task', 'event_id', eid, 'task_id', task_id, 'outcome', 'failed', 'reason', 'Rejected',
    'message', reason .. ': ' .. detail, 'finished_at', at, 'received_at', at, 'pod_count', 0, 'succeeded', 0, 'failed', 0,
    'cancelled', 0}, cjson.decode(common)))
  close_task(task, eid)
  return answer
end

-- How many workers ended how, with the first reasons: read once, counted on by `store_result`, written by `write_tally`.
local TALLY = {'done', 'succeeded', 'failed', 'cancelled', 'first_failed', 'first_cancelled'}

local function tally_of(task)
  local found, tally = redis.call('HMGET', task, unpack(TALLY)), {}
  for n, name in ipairs(TALLY) do tally[name] = n <= 4 and tonumber(found[n] or 0) or found[n] end
  return tally
end

local function write_tally(task, tally)
  local fields = {}
  for _, name in ipairs(TALLY) do
    if tally[name] then append_pairs(fields, {name, tally[name]}) end
  end
  write_hash(task, fields)
end

local function tell_task(task, eid, tally)
  local t = redis.call('HMGET', task, 'task_id', 'pod_count', 'received_at', 'common')
  local count = tonumber(t[2])
  local outcome, reason = 'succeeded', 'Completed'
  if tally.failed > 0 then outcome, reason = 'failed', tally.first_failed
  elseif tally.succeeded < count then outcome, reason = 'cancelled', tally.first_cancelled end
  local message = string.format('%d of %d workers completed', tally.succeeded, count)
  if outcome == 'succeeded' then message = string.format('All %d workers completed successfully', count) end
  publish(append_pairs({'kind', 'task', 'event_id', eid, 'task_id', t[1], 'outcome', outcome, 'reason', reason,
    'message', message, 'finished_at', stamp(now_ms()), 'received_at', t[3], 'pod_count', count, 'succeeded', tally.succeeded,
    'failed', tally.failed, 'cancelled', tally.cancelled}, cjson.decode(t[4])))
  close_task(task, eid)
  return message
end

-- Returns the flat list of what every result of a task carries, empty where somebody has damaged it.
local function common_of(text)
  local good, common = pcall(cjson.decode, text or '[]')
  return good and type(common) == 'table' and common or {}
end

-- The hash has `common` once, and not again with each worker: a large event would be there as often as it has workers.
local function store_result(task, tally, i, fields, map, common)
  local own = {}
  for name, value in pairs(map) do own[name] = value end
  for n = 1, #common, 2 do own[common[n]] = nil end
  local kind = (map.outcome == 'succeeded' or map.outcome == 'cancelled') and map.outcome or 'failed'
  write('HSET', task, 'outcome:' .. i, map.outcome, 'worker:' .. i, cjson.encode(own))
  tally.done, tally[kind] = tally.done + 1, tally[kind] + 1
  if kind ~= 'succeeded' then tally['first_' .. kind] = tally['first_' .. kind] or map.reason end
  publish(fields)
end

-- Once for each event. Returns whether it is written by this.
local function poison_letter(task, eid, detail, tries)
  local t = redis.call('HMGET', task, 'sid', 'raw', 'poisoned')
  -- the marker among those of all dead letters ends after TASK_TTL_S, and a task may be open for longer
  if t[3] then return false end
  write('HSET', task, 'poisoned', '1')
  return dead_letter(GROUP .. '|poison|' .. eid, 'Poison', detail, eid, t[1] or '', tries, t[2] or '{}')
end

-- The last resort: nobody can carry this task on, nor end it. All that has no result gets one; the sweep ends the pods.
local function close_poisoned(task, eid)
  local t = redis.call('HMGET', task, 'pod_count', 'task_id', 'common', 'received_at')
  local good, common = pcall(cjson.decode, t[3] or '[]'), common_of(t[3])
  local tally = tally_of(task)
  for i = 1, tonumber(t[1]) or 0 do
    if redis.call('HEXISTS', task, 'outcome:' .. i) == 0 then
      local map = {kind = 'worker', event_id = eid, task_id = t[2] or '', outcome = 'failed', reason = 'Poison', fault = 'infra',
        message = 'the controller failed on this event ' .. LAST_TRY .. ' times', index = tostring(i), exit_code = '', pod = '',
        attempt = string.match(redis.call('HGET', task, 'attempt:' .. i) or '0', '^%d+') or '0', pod_uid = '', node = '',
        created_at = '', scheduled_at = '', started_at = '', finished_at = stamp(now_ms())}
      for n = 1, #common, 2 do map[common[n]] = common[n + 1] end
      local fields = {}
      for name, value in pairs(map) do append_pairs(fields, {name, value}) end
      store_result(task, tally, i, fields, map, common)
    end
  end
  write_tally(task, tally)
  if good and tonumber(t[1]) and t[3] and t[4] then tell_task(task, eid, tally) else close_task(task, eid) end
end

-- Where an event stands among the choices. Of one width, so that places sort as the ids of the stream do.
local function place(sid)
  local ms, number = string.match(sid, '^(%d+)%-?(%d*)$')
  return string.rep('0', 20 - #ms) .. ms .. '-' .. string.rep('0', 20 - #number) .. number .. '|'
end

-- What comes before the choice of this entry: {'entry', id} of one that is unread or not accepted, {'event', place} of one
-- that is accepted and has not chosen; nil if nothing does, and then nothing ever will.
local function in_front(sid, choices)
  local last
  for _, flat in ipairs(redis.call('XINFO', 'GROUPS', STREAM)) do
    local group = {}
    for n = 1, #flat, 2 do group[flat[n]] = flat[n + 1] end
    if group.name == GROUP then last = group['last-delivered-id'] end
  end
  if not last then error({err = 'NOGROUP no consumer group ' .. GROUP}) end
  local entry = redis.call('XRANGE', STREAM, '(' .. last, '(' .. sid, 'COUNT', 1)[1]
    or redis.call('XPENDING', STREAM, GROUP, '-', '(' .. sid, 1)[1]
  if entry then return {'entry', entry[1]} end
  local first = redis.call('ZRANGEBYLEX', choices, '-', '(' .. place(sid), 'LIMIT', 0, 1)[1]
  return first and {'event', first} or nil
end

-- Of a claim's candidates those that become victims, up to the count: their tasks are open, they have no result, and no
-- earlier choice has them. Returns victims, survivors, and for each task the indices to mark and its number of marks so far.
-- Reads some hundred fields at once: a call for each of a hundred thousand candidates would hold Redis up.
local function select_victims(claim, first_key)
  local victims, survivors, marks, cancels = {}, {}, {}, {}
  local total, at = #claim.tasks, 1
  local function enough() return claim.count > 0 and #victims >= claim.count end
  while at <= total and not enough() do
    local till, asked, found, row = math.min(at + 499, total), {}, {}, {}
    for n = at, till do
      local k, i = claim.tasks[n], claim.indices[n]
      local names = asked[k] or {'owner', 'cancels'}
      asked[k], row[n] = names, #names + 1
      names[#names + 1], names[#names + 2] = 'outcome:' .. i, 'doom:' .. i
    end
    for k, names in pairs(asked) do
      found[k] = redis.call('HMGET', KEYS[first_key + k], unpack(names))
      cancels[k] = found[k][2] or 0
    end
    for n = at, till do
      local k, doom = claim.tasks[n], found[claim.tasks[n]][row[n] + 1]
      local free = found[k][1] and not found[k][row[n]] and not (doom and cjson.decode(doom).attempt == 0)
      if enough() then
        survivors[#survivors + 1] = claim.pods[n]
      elseif free then
        victims[#victims + 1] = {claim.events[k], claim.indices[n], claim.pods[n]}
        marks[k] = marks[k] or {}
        table.insert(marks[k], claim.indices[n])
      end
    end
    at = till + 1
  end
  for n = at, total do survivors[#survivors + 1] = claim.pods[n] end
  return victims, survivors, marks, cancels
end

local function encode_list(list) return #list > 0 and cjson.encode(list) or '[]' end

local F = {}

function F.bury(sid, reason, detail, eid, task_id, digest, raw, common)
  local known = (fields_of(KEYS[6], 'digest') or {})[1]
  if known and known == digest then
    write('XACK', STREAM, GROUP, sid)
    return {'known'}
  end
  if known then reason, detail = 'Conflict', 'event_id ' .. eid .. ' was used before, with other content' end
  return bury(KEYS[6], sid, reason, detail, eid, task_id, digest, raw, common)
end

function F.accept(sid, eid, digest, event, raw, common, kind, task_id, pod_count, base, lease_ms, supersedes)
  local task = KEYS[6]
  local known = fields_of(task, 'digest', 'sid', 'owner', 'state', 'received_at')
  if not known then return bury(task, sid, 'Conflict', wrong_type(task), eid, task_id, digest, raw, common) end
  if known[1] and known[1] ~= '' and known[1] ~= digest then
    return bury(task, sid, 'Conflict', 'event_id ' .. eid .. ' was used before, with other content', eid, task_id, digest, raw, common)
  end
  local now = now_ms()
  if known[1] then
    write('XACK', STREAM, GROUP, sid)
    local ours = known[2] == sid and known[3] and string.match(known[3], '^(.*/)%d+$') == base
    return ours and {'again', known[3], known[5]} or {'known'}
  end
  if tonumber(string.match(sid, '^%d+')) < now - TTL * 1000 then
    return bury(task, sid, 'TooOld', 'the entry is older than TASK_TTL_S, ' .. TTL .. ' s', eid, task_id, digest, raw, common)
  end
  local at = stamp(now)
  if kind == 'scale_down' or supersedes ~= '' then write('ZADD', KEYS[7], 0, place(sid) .. eid) end
  write('HSET', task, 'sid', sid, 'type', kind, 'task_id', task_id, 'pod_count', pod_count, 'digest', digest, 'event', event,
    'raw', raw, 'common', common, 'state', 'waiting', 'owner', base .. '1', 'tenure', 1, 'tries', 1,
    'received_at', at)
  if supersedes ~= '' then write('HSET', task, 'superseding', 'todo') end
  write('ZADD', OPEN, now + lease_ms, eid)
  write('XACK', STREAM, GROUP, sid)
  return {'ok', base .. '1', at}
end

-- Redis was wiped: a task is stored again, as its owner knows it or as its pods tell. A JSON list, since a script takes no
-- more than some thousand arguments.
-- `undecided` is the entry's id if it has its victims still to choose, else empty.
function F.restore(eid, lease_ms, fields, undecided)
  local task = KEYS[6]
  if redis.call('HLEN', task) > 0 then return 'known' end
  local now = now_ms()
  if undecided ~= '' then write('ZADD', KEYS[7], 0, place(undecided) .. eid) end
  write('HSET', task, 'received_at', stamp(now))
  write_hash(task, cjson.decode(fields))
  write('ZADD', OPEN, now + lease_ms, eid)
  return 'ok'
end

-- Whoever uses a prefix takes the tasks under it: KEYS[6] holds the one group that it belongs to. Returns that.
function F.reserve()
  local held = redis.call('HGET', KEYS[6], 'group')
  if not held then write('HSET', KEYS[6], 'group', GROUP) end
  return held or GROUP
end

-- A replica that does not see the pods would start everything again: KEYS[6] holds the one cluster and namespace that
-- the queue belongs to. Returns that.
function F.reserve_cluster(cluster)
  local held = redis.call('HGET', KEYS[6], 'cluster')
  if not held then write('HSET', KEYS[6], 'cluster', cluster) end
  return held or cluster
end

-- What the controller does with each key, in the order of KEYS, and then: the group's, the consumer's, a task, the choices. Without
-- what tidies the stream (XTRIM and others): it can do without.
local NEEDED = {
  {'stream', {'XREADGROUP', 'XREAD', 'XRANGE', 'XPENDING', 'XACK', 'XCLAIM', 'XGROUP CREATE', 'XINFO GROUPS', 'XLEN'}},
  {'sorted set', {'ZADD', 'ZREM', 'ZSCORE', 'ZRANGE', 'ZRANGEBYSCORE', 'ZCARD'}},
  {'stream', {'XADD', 'XINFO STREAM', 'XLEN'}},
  {'stream', {'XADD', 'XINFO STREAM', 'XLEN'}},
  {'sorted set', {'ZADD', 'ZREMRANGEBYSCORE', 'ZSCORE', 'ZCARD'}},
  {'hash', {'HGET', 'HSET', 'HLEN'}},
  {'hash', {'HGET', 'HSET', 'HLEN', 'EXPIRE', 'EXISTS'}},
  {'hash', {'HGET', 'HMGET', 'HGETALL', 'HEXISTS', 'HLEN', 'HSET', 'HDEL', 'EXPIRE', 'EXISTS'}},
  {'sorted set', {'ZADD', 'ZREM', 'ZRANGEBYLEX', 'ZCARD'}},
}
local KIND_PROBES = {stream = 'XLEN', ['sorted set'] = 'ZCARD', hash = 'HLEN'}

local function permitted(command, key)
  local name, part = string.match(command, '^(%S+) ?(%S*)$')
  if name == 'XREADGROUP' then return redis.acl_check_cmd(name, 'GROUP', GROUP, 'c', 'STREAMS', key, '>') end
  if name == 'XREAD' then return redis.acl_check_cmd(name, 'STREAMS', key, '0') end
  if part ~= '' then return redis.acl_check_cmd(name, part, key) end
  return redis.acl_check_cmd(name, key)
end

-- Changes nothing. Gets the keys as arguments: a script that names a key to which the user has no right is not run at all,
-- and the server does not say which key it was. For each key with which something is wrong: the key, what it holds something else than ('' where it does
-- not), and the commands that the user may not run on it. Last the same for commands that are about no key.
function F.examine(...)
  local found, keys = {}, {...}
  for n, needed in ipairs(NEEDED) do
    local missing, kind = {}, ''
    for _, command in ipairs(needed[2]) do
      if not permitted(command, keys[n]) then missing[#missing + 1] = command end
    end
    local told = redis.pcall(KIND_PROBES[needed[1]], keys[n])
    if type(told) == 'table' and string.find(told.err or '', 'WRONGTYPE', 1, true) then kind = needed[1] end
    if kind ~= '' or #missing > 0 then found[#found + 1] = {keys[n], kind, table.concat(missing, ', ')} end
  end
  if not redis.acl_check_cmd('TIME') then found[#found + 1] = {'', '', 'TIME'} end
  return found
end

-- Has this consumer read entries that are not accepted?
local function is_reading(consumer)
  local found = redis.pcall('XPENDING', STREAM, GROUP, '-', '+', 1, consumer)
  return not found.err and #found > 0
end

-- One process for each consumer: KEYS[6] holds the boot that announced itself last, and whether the one before it left entries
-- that it had read and not accepted. Returns the boot that is in our place.
function F.announce(boot, anew, consumer)
  local held = redis.call('HGET', KEYS[6], 'boot')
  if anew == '0' and held and held ~= boot then return held end
  if held ~= boot then
    write('HSET', KEYS[6], 'boot', boot, 'reading', anew == '1' and is_reading(consumer) and 1 or 0)
  end
  write('HSET', KEYS[6], 'seen', now_ms())
  write('EXPIRE', KEYS[6], TTL)
  return ''
end

-- Event ids whose lease has run out, by the clock by which it was given. One that ends later than any may was given before
-- that clock was set back (or on a master whose clock was ahead): it ends one lease from now, as after a renewal. Its owner
-- renews it by then, if it lives; else its task would wait for as long as the clock was set back.
function F.expired(lease_ms)
  local now = now_ms()
  for _, eid in ipairs(redis.call('ZRANGEBYSCORE', OPEN, now + LEASES_AHEAD * lease_ms, '+inf')) do
    write('ZADD', OPEN, 'XX', now + lease_ms, eid)
  end
  return redis.call('ZRANGEBYSCORE', OPEN, '-inf', now)
end

-- For each task its id, its owner, and '1' if the owner is at work on it, or has failed on it. Of the others, which only wait for
-- their pods, the tries are forgotten: nobody dies of what it only waits for.
function F.renew(lease_ms, ...)
  local asked, answer = {...}, {}
  local now = now_ms()
  local till = now + lease_ms
  for n = 1, #asked, 3 do
    local task = KEYS[5 + (n + 2) / 3]
    local t = fields_of(task, 'owner', 'cancels', 'tries') or {}
    if t[1] == asked[n + 1] then
      -- who has an owner is open: also where somebody has removed it from the set, by which nobody would take it over
      write('ZADD', OPEN, till, asked[n])
      local tries = tonumber(t[3] or 0)
      if asked[n + 2] == '0' and tries > 0 and tries < MAX_TRIES then write('HSET', task, 'tries', 0) end
      answer[#answer + 1] = {'ok', t[2] or '0'}
    elseif redis.call('EXISTS', task) == 1 then
      answer[#answer + 1] = {'lost', t[1] or ''}
    else
      answer[#answer + 1] = {'forgotten', ''}
    end
  end
  return answer
end

function F.release(...)
  local pairs_ = {...}
  for n = 1, #pairs_, 2 do
    local task = KEYS[5 + (n + 1) / 2]
    if (fields_of(task, 'owner') or {})[1] == pairs_[n + 1] then
      write('ZADD', OPEN, 'XX', 0, pairs_[n])
      write('HSET', task, 'tries', 0)
    end
  end
  return 'ok'
end

-- A scale_down is over by this, and tells whom it had chosen: those that were marked do end. A scale_up has workers whose
-- pods have to be ended first.
local function poison(task, eid)
  local t = redis.call('HMGET', task, 'pod_count', 'type', 'task_id', 'common', 'victims', 'survivors')
  if t[2] == 'scale_down' then
    local pods = {}
    for _, victim in ipairs(cjson.decode(t[5] or '[]')) do pods[#pods + 1] = victim[3] end
    publish(append_pairs({'kind', 'scale_down', 'event_id', eid, 'task_id', t[3], 'outcome', 'failed', 'reason', 'Poison',
      'message', 'taken up ' .. MAX_TRIES .. ' times without any progress', 'finished_at', stamp(now_ms()),
      'victims', #pods > 0 and cjson.encode(pods) or '[]', 'survivors', t[6] or '[]', 'pod_count', #pods}, cjson.decode(t[4])))
    close_task(task, eid)
    return
  end
  local text = cjson.encode({reason = 'Poison', outcome = 'failed', fault = 'infra', attempt = 0, drain = false, by = '',
    message = 'the controller failed on this event ' .. MAX_TRIES .. ' times'})
  for i = 1, tonumber(t[1]) or 0 do
    if redis.call('HEXISTS', task, 'outcome:' .. i) == 0 then write('HSET', task, 'doom:' .. i, text) end
  end
end

-- An event that has its victims still to choose keeps its place among the choices: earlier releases gave it none.
local function keep_place(task, eid, choices)
  local t = redis.call('HMGET', task, 'sid', 'type', 'victims', 'superseding')
  local undecided = t[4] == 'todo' or (t[2] == 'scale_down' and not t[3])
  if t[1] and undecided then write('ZADD', choices, 0, place(t[1]) .. eid) end
end

-- May the owner that is taken from have failed on this task? Not one that gave it up (a lease of 0). One that died over an entry that it had read died of that: the tries of entries are counted as well (F.retry). An
-- earlier boot of our own consumer left its entries to us, and by now we may have accepted them: `own` is where that was noted.
local function has_failed(lease, whose, own)
  if tonumber(lease) == 0 then return false end
  if own then return redis.call('HGET', own, 'reading') ~= '1' end
  return not is_reading(whose)
end

-- Returns {'ok', owner, task}; {'none'}; or {'dead', reason, detail} when it becomes a dead letter by this. What has pods is
-- then to be taken once more: whoever cannot even read the task hears of it all the same.
function F.take(eid, consumer, boot, lease_ms, same_consumer)
  local task, base = KEYS[6], consumer .. '/' .. boot .. '/'
  local lease, found = redis.call('ZSCORE', OPEN, eid), fields_of(task, 'owner', 'tenure', 'tries')
  if not lease then return {'none'} end
  if not found then
    -- It stays open: the key may be mended, and then the task goes on.
    local fresh = dead_letter(GROUP .. '|poison|' .. eid, 'Poison', wrong_type(task), eid, '', 0, '{}')
    return fresh and {'dead', 'Poison', wrong_type(task)} or {'none'}
  end
  local owner = found[1]
  if not owner then
    write('ZREM', OPEN, eid)
    return {'none'}
  end
  local now = now_ms()
  -- taken or accepted by this very process, which did not hear of it: told again
  local whose, held_by = consumer_and_boot(owner)
  local earlier = whose == consumer and held_by ~= boot
  if whose == consumer and held_by == boot and tonumber(lease) > now then
    return {'ok', owner, redis.call('HGETALL', task)}
  end
  if tonumber(lease) > now and not (same_consumer == '1' and earlier) then return {'none'} end
  local tenure = tonumber(found[2] or 0) + 1
  local failed = has_failed(lease, whose, whose == consumer and KEYS[7])
  local tries = tonumber(found[3] or 0) + (failed and 1 or 0)
  write('HSET', task, 'owner', base .. tenure, 'tenure', tenure, 'tries', tries)
  local fresh, detail = false, 'taken up ' .. MAX_TRIES .. ' times without any progress'
  if tries >= MAX_TRIES then fresh = poison_letter(task, eid, detail, tries)
  else keep_place(task, eid, KEYS[8]) end
  write('ZADD', OPEN, fresh and 0 or now + lease_ms, eid)
  if tries >= LAST_TRY then close_poisoned(task, eid) elseif tries >= MAX_TRIES then poison(task, eid) end
  -- The answer is what the task is like by then.
  local refused = refusal('HGETALL', task) or refusal('HEXISTS', task) or commit()
  if refused then return refused end
  if fresh then return {'dead', 'Poison', detail} end
  if redis.call('HEXISTS', task, 'owner') == 0 then return {'none'} end
  return {'ok', base .. tenure, redis.call('HGETALL', task)}
end

function F.intend(eid, owner, i, attempt, infra, worker)
  local task = KEYS[6]
  local t = redis.call('HMGET', task, 'owner', 'outcome:' .. i, 'attempt:' .. i, 'doom:' .. i)
  if t[2] then return {'has_result'} end
  if t[1] ~= owner then return {'not_ours'} end
  local stored, _, flag = stored_attempt(t[3])
  attempt = tonumber(attempt)
  if t[4] then
    local doomed = cjson.decode(t[4]).attempt
    if doomed == 0 or doomed >= attempt then return {'cancelled', t[4], stored} end
    write('HDEL', task, 'doom:' .. i)
  end
  if attempt < stored then return {'old_attempt', false, stored} end
  -- an attempt that is stored again, and of which no pod was seen, is no progress: its creator may have died of it
  local again = stored == attempt
  local text = attempt .. ':' .. infra .. (again and flag == 's' and ':s' or '')
  write('HSET', task, 'attempt:' .. i, text, 'worker:' .. i, worker, 'state', 'running', 'why', '', 'next_at', '')
  if not again or flag ~= '' then write('HSET', task, 'tries', 0) end
  return {'ok', false, attempt}
end

function F.refused(eid, owner, i, attempt, worker)
  local task = KEYS[6]
  local t = redis.call('HMGET', task, 'owner', 'attempt:' .. i, 'outcome:' .. i)
  if t[1] ~= owner then return {'not_ours'} end
  local stored, infra, flag = stored_attempt(t[2])
  if stored == tonumber(attempt) and flag ~= 's' and not t[3] then
    write('HSET', task, 'attempt:' .. i, stored .. ':' .. infra .. ':r', 'worker:' .. i, worker)
  end
  return {'ok'}
end

function F.check(eid, owner, i, attempt)
  local t = redis.call('HMGET', KEYS[6], 'owner', 'outcome:' .. i, 'doom:' .. i, 'attempt:' .. i)
  if t[2] then return {'has_result'} end
  if t[1] ~= owner then return {'not_ours'} end
  local stored, infra, flag = stored_attempt(t[4])
  if stored == tonumber(attempt) and flag ~= 's' then
    write('HSET', KEYS[6], 'attempt:' .. i, stored .. ':' .. infra .. ':s', 'tries', 0)
  end
  return {'ok', t[3]}
end

local function is_among(list, name) return string.find(' ' .. (list or '') .. ' ', ' ' .. name .. ' ', 1, true) ~= nil end

local function with_name(list, name)
  if is_among(list, name) then return list end
  return list and list .. ' ' .. name or name
end

function F.doom(eid, owner, i, text)
  local task = KEYS[6]
  local t = redis.call('HMGET', task, 'owner', 'outcome:' .. i, 'attempt:' .. i, 'doom:' .. i, 'spared:' .. i, 'cancels')
  if t[2] then return {'has_result'} end
  if not t[1] or (owner ~= '' and t[1] ~= owner) then return {'not_ours'} end
  local new, old = cjson.decode(text), t[4] and cjson.decode(t[4])
  if new.attempt ~= 0 and new.attempt ~= stored_attempt(t[3]) then return {'old_attempt'} end
  if new.drain and is_among(t[5], new.by) then return {'ok', t[4]} end
  local stays = old and (old.attempt == 0 and (new.attempt ~= 0 or new.drain or not old.drain) or old.attempt > 0 and new.attempt == old.attempt)
  if stays then return {'ok', t[4]} end
  write('HSET', task, 'doom:' .. i, text)
  if new.attempt == 0 then write('HSET', task, 'cancels', tonumber(t[6] or 0) + 1) end
  return {'ok', text}
end

function F.withdraw(eid, owner, i, text)
  local task = KEYS[6]
  local t = redis.call('HMGET', task, 'owner', 'outcome:' .. i, 'doom:' .. i, 'spared:' .. i)
  if t[2] then return {'has_result'} end
  if t[1] ~= owner then return {'not_ours'} end
  local want, have = cjson.decode(text), t[3] and cjson.decode(t[3])
  if not have or have.attempt ~= want.attempt or have.reason ~= want.reason or have.by ~= want.by then return {'ok', t[3]} end
  write('HDEL', task, 'doom:' .. i)
  if want.drain then write('HSET', task, 'spared:' .. i, with_name(t[4], want.by)) end
  return {'ok', false}
end

function F.record(eid, owner, i, attempt, ...)
  local task = KEYS[6]
  local t = redis.call('HMGET', task, 'owner', 'outcome:' .. i, 'attempt:' .. i, 'doom:' .. i, 'pod_count', 'tries',
    'common', 'spared:' .. i)
  if t[2] then return {'known'} end
  if t[1] ~= owner then return {'not_ours'} end
  local fields, map = {...}, {}
  for n = 1, #fields, 2 do map[fields[n]] = fields[n + 1] end
  local stored, doom = stored_attempt(t[3]), t[4] and cjson.decode(t[4])
  attempt = tonumber(attempt)
  if stored ~= 0 and stored ~= attempt and not (doom and doom.attempt == 0) then return {'old_attempt', false, stored} end
  if doom and doom.attempt ~= 0 and doom.attempt ~= attempt then doom = nil end
  -- Started, and not deleted (which may well be the doom's doing): a doom of what has not started had no part in this end.
  local spares = doom and (doom.drain or doom.before_start) and (map.started_at or '') ~= '' and map.reason ~= 'PodDeleted'
    and map.reason ~= doom.reason
  if spares and doom.drain then write('HSET', task, 'spared:' .. i, with_name(t[8], doom.by)) end
  local wins = doom and map.outcome ~= 'succeeded' and not spares
  if wins then
    for _, name in ipairs({'outcome', 'reason', 'fault', 'message'}) do map[name] = doom[name] end
    for n = 1, #fields, 2 do fields[n + 1] = map[fields[n]] end
  end
  -- a worker on which our own code failed time and again makes its event a dead letter too
  local dead = map.reason == 'Poison' and poison_letter(task, eid, map.message, t[6] or 0) and map.message or ''
  local tally = tally_of(task)
  store_result(task, tally, i, fields, map, common_of(t[7]))
  write('HSET', task, 'tries', 0)
  write_tally(task, tally)
  return {'ok', wins and t[4], attempt, tally.done == tonumber(t[5]) and tell_task(task, eid, tally) or '', dead}
end

function F.note_states(eid, owner, ...)
  local task, list = KEYS[6], {...}
  if redis.call('HGET', task, 'owner') ~= owner then return 'not_ours' end
  for n = 1, #list, 2 do
    if redis.call('HEXISTS', task, 'outcome:' .. list[n]) == 0 then write('HSET', task, 'worker:' .. list[n], list[n + 1]) end
  end
  return 'ok'
end

function F.note_why(eid, owner, why, next_at)
  if redis.call('HGET', KEYS[6], 'owner') ~= owner then return 'not_ours' end
  write('HSET', KEYS[6], 'why', why, 'next_at', next_at)
  return 'ok'
end

function F.blocker(sid) return in_front(sid, KEYS[6]) or {} end

-- A place is given up if its event has nothing more to choose (it was closed as poison, or its task is gone). Returns the
-- owner of an event that has.
function F.clear_place(eid, at)
  local t = fields_of(KEYS[6], 'sid', 'owner', 'type', 'victims', 'superseding') or {}
  local undecided = t[5] == 'todo' or (t[3] == 'scale_down' and not t[4])
  if t[2] and undecided and place(t[1]) .. eid == at then return t[2] end
  write('ZREM', KEYS[7], at)
  return ''
end

-- Victims are chosen and marked in one step and in the order of the stream: KEYS[7] is choices, and from KEYS[8] on are the
-- tasks of the candidates. `text` is the claim: doom, count, tasks (their numbers), indices and pods of the candidates, and
-- the event ids of the tasks. `others` are further survivors, as the inside of a JSON list: they are not even read here. If
-- there are further candidates among them (`partial`), and those that came do not suffice, nothing happens: {'more'}.
function F.choose(eid, owner, text, others, partial)
  local task, choices = KEYS[6], KEYS[7]
  local t = redis.call('HMGET', task, 'owner', 'sid', 'type', 'victims', 'survivors', 'superseding')
  if t[1] ~= owner then return {'not_ours'} end
  local decided = t[4] or t[6] == 'done'
  local blocker = not decided and in_front(t[2], choices)
  if blocker then return {blocker[1], t[2]} end
  if decided then
    write('ZREM', choices, place(t[2]) .. eid)
    return {'ok', t[4] or '[]', t[5] or '[]'}
  end
  local claim = cjson.decode(text)
  local victims, survivors, marks, cancels = select_victims(claim, 7)
  if partial == '1' and #victims < claim.count then return {'more'} end
  write('ZREM', choices, place(t[2]) .. eid)
  local chosen, spared = encode_list(victims), encode_list(survivors)
  if others ~= '' then spared = (#survivors > 0 and string.sub(spared, 1, -2) .. ',' or '[') .. others .. ']' end
  if t[3] == 'scale_down' then
    write('HSET', task, 'victims', chosen, 'survivors', spared, 'state', 'running', 'tries', 0)
  else
    write('HSET', task, 'superseding', 'done')
  end
  for k, indices in pairs(marks) do
    local fields = {'cancels', cancels[k] + #indices}
    for _, i in ipairs(indices) do append_pairs(fields, {'doom:' .. i, claim.doom}) end
    write_hash(KEYS[7 + k], fields)
  end
  return {'ok', chosen, spared}
end

function F.finish(eid, owner, ...)
  local t = redis.call('HMGET', KEYS[6], 'owner', 'state', 'common')
  if t[2] == 'finished' then return {'known'} end
  if t[1] ~= owner then return {'not_ours'} end
  publish(append_pairs({...}, cjson.decode(t[3])))
  close_task(KEYS[6], eid)
  return {'ok'}
end

-- Returns {id, fields, 0}; {id, false, 0} for one that was trimmed away; {id, head, size} for one of more than `most` bytes,
-- where the head has its first fields and its ids. And how many bytes that is.
local function measured(entry, sid, most, room)
  if not entry then return {sid, false, 0}, 0 end
  local size, fields, head, open = 0, entry[2], {}, true
  for _, part in ipairs(fields) do size = size + #part end
  if size <= most then return {sid, fields, 0}, size end
  local kept = 0
  for n = 1, #fields, 2 do
    local length = #fields[n] + #fields[n + 1]
    open = open and kept + length <= room
    if open or (fields[n] == 'event_id' or fields[n] == 'task_id') and length <= 200 then
      append_pairs(head, {fields[n], fields[n + 1]})
      kept = kept + length
    end
  end
  return {sid, head, size}, kept
end

function F.peek(after, count, most, room, total)
  local answer, sum = {}, 0
  repeat
    local entry = redis.call('XRANGE', STREAM, '(' .. after, '+', 'COUNT', 1)[1]
    if not entry then break end
    local size
    answer[#answer + 1], size = measured(entry, entry[1], tonumber(most), tonumber(room))
    sum, after = sum + size, entry[1]
  until #answer >= tonumber(count) or sum > tonumber(total)
  return answer
end

-- At most `total` bytes, but for the last entry: a process may have died of them.
function F.pending(consumer, own, min_idle_ms, count, most, room, total)
  local found, sum
  if own == '1' then found = redis.call('XPENDING', STREAM, GROUP, '-', '+', count, consumer)
  else found = redis.call('XPENDING', STREAM, GROUP, 'IDLE', min_idle_ms, '-', '+', count) end
  local answer = {}
  sum = 0
  for _, item in ipairs(found) do
    if sum > tonumber(total) then break end
    local entry = redis.call('XRANGE', STREAM, item[1], item[1])[1]
    -- XCLAIM would silently drop an entry that was trimmed away: it is left pending until it is buried
    if entry and own == '0' then write('XCLAIM', STREAM, GROUP, consumer, 0, item[1], 'JUSTID') end
    local size
    answer[#answer + 1], size = measured(entry, item[1], tonumber(most), tonumber(room))
    sum = sum + size
  end
  return answer
end

-- One more try at an entry that was read and not accepted. Returns how often it was tried, 0 if it is not pending any more.
function F.retry(consumer, sid)
  local item = redis.call('XPENDING', STREAM, GROUP, sid, sid, 1)[1]
  if not item then return 0 end
  -- XCLAIM would drop an entry that was trimmed away
  if #redis.call('XRANGE', STREAM, sid, sid) == 0 then return item[4] end
  write('XCLAIM', STREAM, GROUP, consumer, 0, sid, 'RETRYCOUNT', item[4] + 1, 'JUSTID')
  return item[4] + 1
end

-- A consumer stops: what it has read and not accepted counts as idle for so long that whoever looks next takes it.
-- A try is not counted by this.
function F.hand_over(consumer, idle_ms, count)
  local found = redis.pcall('XPENDING', STREAM, GROUP, '-', '+', count, consumer)
  -- without the group, since Redis was wiped, there is nothing to hand over
  if found.err then return string.find(found.err, 'NOGROUP', 1, true) and 'ok' or found end
  for _, item in ipairs(found) do
    -- XCLAIM would drop an entry that was trimmed away
    if #redis.call('XRANGE', STREAM, item[1], item[1]) > 0 then
      write('XCLAIM', STREAM, GROUP, consumer, 0, item[1], 'IDLE', idle_ms, 'RETRYCOUNT', item[4], 'JUSTID')
    end
  end
  return 'ok'
end

local function pairs_in(flat)
  local map = {}
  for n = 1, #flat, 2 do map[flat[n]] = flat[n + 1] end
  return map
end

-- Of these consumers, KEYS[6…] are theirs, remove those that have nothing pending and gave no sign of life for so long:
-- neither by a read nor by a renewal (a process whose room is full reads nothing, and lives). One that has announced itself
-- and does not say when it was seen is of an earlier release: it stays as long as it is remembered. Returns their names.
function F.remove_consumers(gone_ms, ...)
  local seen, now, gone = {}, now_ms(), {}
  for n, name in ipairs({...}) do
    local told = fields_of(KEYS[5 + n], 'seen', 'boot') or {}
    seen[name] = tonumber(told[1] or (told[2] and now or 0))
  end
  for _, flat in ipairs(redis.call('XINFO', 'CONSUMERS', STREAM, GROUP)) do
    local told = pairs_in(flat)
    if seen[told.name] and told.pending == 0 and told.idle >= tonumber(gone_ms) and now - seen[told.name] >= tonumber(gone_ms) then
      -- at once, not planned: each removal is whole by itself, and where one is refused so are all
      redis.call('XGROUP', 'DELCONSUMER', STREAM, GROUP, told.name)
      gone[#gone + 1] = told.name
    end
  end
  return gone
end

-- Trim the event stream below the first entry that some group has not acknowledged or not read, but leave so many. By
-- whole nodes of the stream ('~'), since a limit is possible only so. Returns how many entries are gone.
function F.trim(keep)
  local length, floor = redis.call('XLEN', STREAM), nil
  local function older(a, b)
    local ams, an = string.match(a, '^(%d+)-(%d+)$')
    local bms, bn = string.match(b, '^(%d+)-(%d+)$')
    if #ams ~= #bms then return #ams < #bms end
    if ams ~= bms then return ams < bms end
    return #an < #bn or #an == #bn and an < bn
  end
  for _, flat in ipairs(length > tonumber(keep) and redis.call('XINFO', 'GROUPS', STREAM) or {}) do
    local told = pairs_in(flat)
    local first = told.pending > 0 and redis.call('XPENDING', STREAM, told.name)[2] or told['last-delivered-id']
    if not floor or older(first, floor) then floor = first end
  end
  if not floor then return 0 end
  write('XTRIM', STREAM, 'MINID', '~', floor, 'LIMIT', length - keep)
  return commit() or length - redis.call('XLEN', STREAM)
end

-- What is about a task that has to be there: where it is not, Redis was wiped, and its owner will restore it.
local OF_A_TASK = {intend = 1, refused = 1, check = 1, doom = 1, withdraw = 1, record = 1, choose = 1, finish = 1}
if OF_A_TASK[ARGV[1]] and redis.call('EXISTS', KEYS[6]) == 0 then
  return redis.error_reply('FORGOTTEN the task of event ' .. ARGV[5] .. ' is unknown: was Redis wiped?')
end

return concluded(F[ARGV[1]](unpack(ARGV, 5)))
