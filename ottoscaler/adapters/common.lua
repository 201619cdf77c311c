--[[ The protocol by which nothing is lost: every write of the controller to Redis is one function of these files.

scripts.py joins them in this order: constants (generated from ottoscaler/core), atomic.lua, common.lua, then preflight.lua,
event_log.lua, leases.lua, attempts.lua, scale_downs.lua, result_log.lua or page_reader.lua, and call.lua. Each of the seven
belongs to the Python module of the same name, which sends a script with this one alone: Redis makes all functions and tables
of a script again at each call, and those of the other six cost as much as `check` itself. Each function belongs to the method of the
same name.

A call is one atomic step, and idempotent: a caller that got no answer calls again. Commands of Redis 7.0 / Valkey only.
No function writes: it reads first, and then plans its writes (`write`, see atomic.lua), so that all of them happen or none.

  KEYS  1 event stream, 2 open (zset: event id -> end of lease, ms), 3 result stream, 4 dead letter stream,
        5 buried (zset: marker of a dead letter -> ms), 6... the function's own: `keys()`
  ARGV  1 function, 2 consumer group, 3 RESULT_MAXLEN, 4 TASK_TTL_S, 5... the function's own: its parameters

A task hash has, besides what operators read (state, task_id, pod_count, received_at, owner, why, code, since, next_at, worker:<i>):
  sid (the entry's id), type, digest, raw (the fields as sent), event (the same, checked), common (fields of every result, a
  flat JSON list), tries, tenure (the epoch), cancels, done, succeeded, failed, cancelled, first_failed, first_cancelled,
  output_bytes (how large the outputs in all worker:<i> are),
  key, key_limit (concurrency key and limit, of a task that has one),
  attempt:<i> = "<attempt>:<infra retries used>[:r|:s]" (r: that attempt's pod was refused and is not there, s: it was seen),
  oom:<i> (attempts before that one that ended as OOMKilled; there where it is not 0),
  doom:<i> (the termination: why its pod is to be ended), spared:<i> (the drains that it survived),
  not_after (ms, where the event has it), expired (the workers that had not started by then are marked),
  log:<i> (how far the log of its pod was acknowledged, see core/log_progress.py),
  intent:<i>:<attempt> (when that attempt was stored, ms), ended:<i>:<attempt> (how it ended, JSON, if another followed), gone:<i>
  (when its pod was seen to be gone, ms): of these three something is there only where traces are on,
  outcome:<i> (there exactly if its result is stored), victims, survivors (of a scale_down), superseding ("todo" until older
  events were dealt with), poisoned (its dead letter is written).
Releases overlap during a rollout, so the names of fields and what they hold never change. ]]

local STREAM, OPEN, RESULTS, DEAD, BURIED = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local GROUP, MAXLEN, TTL = ARGV[2], ARGV[3], tonumber(ARGV[4])

-- The functions that can be called, and those among them that are about a task which has to be there.
local F, OF_A_TASK = {}, {}

-- The keys of the called function, behind those that every function gets: up to three that have names, and the n-th of a
-- list. Not `unpack`, which fails where there are some thousand.
local function keys() return KEYS[6], KEYS[7], KEYS[8] end
local function nth_key(n) return KEYS[5 + n] end

-- The fields of a hash in the order asked for; false for one that is not there.
local function fields(key, ...) return unpack(redis.call('HMGET', key, ...)) end

-- The same where the key may hold something other than a hash, which only a person can have put there. Returns first
-- whether it is a hash (or nothing): a script that failed on such a key would fail for all tasks of the same call.
local function fields_if_hash(key, ...)
  local found = redis.pcall('HMGET', key, ...)
  if not found.err then return true, unpack(found) end
  if not string.find(found.err, 'WRONGTYPE', 1, true) then error(found) end
  return false
end

-- What these fields of each task hold: a list, with false for one that is not there; an empty one for a key that is no task.
-- `names` has one text for each key of the function, with a space between two names.
local function fields_of_tasks(names)
  local found = {}
  for n, text in ipairs(names) do
    local wanted = {}
    for name in string.gmatch(text, '%S+') do wanted[#wanted + 1] = name end
    local row = {fields_if_hash(nth_key(n), unpack(wanted))}
    table.remove(row, 1)
    found[n] = row
  end
  return found
end

-- The clock of Redis: replicas and their nodes have different ones, and a lease is compared with the time by which it was given.
local function now_ms()
  local seconds, micros = unpack(redis.call('TIME'))
  return seconds * 1000 + math.floor(micros / 1000)
end

-- RFC 3339 in UTC, by the clock of Redis, which no caller knows: so this arithmetic is here and not in Python. Days to civil
-- date as in https://howardhinnant.github.io/date_algorithms.html#civil_from_days
local function rfc3339(ms)
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

local function append_all(list, more)
  for _, value in ipairs(more) do list[#list + 1] = value end
  return list
end

-- A map of a flat list of names and values.
local function map_of(flat)
  local map = {}
  for n = 1, #flat, 2 do map[flat[n]] = flat[n + 1] end
  return map
end

-- The groups of a stream, which has to be there, as XINFO shows them.
local function groups_of(stream)
  local groups = {}
  for n, flat in ipairs(redis.call('XINFO', 'GROUPS', stream)) do groups[n] = map_of(flat) end
  return groups
end

-- JSON of a list; cjson writes an empty one as an object.
local function json_list(list) return #list > 0 and cjson.encode(list) or '[]' end

-- Returns attempt, infra retries used, and the flag: '' where no pod of it was ever seen.
local function stored_attempt(text)
  local attempt, infra_used, flag = string.match(text or '0:0', '^(%d+):(%d+):?([rs]?)')
  return tonumber(attempt), tonumber(infra_used), flag
end

-- Where an event stands among the choices. Of one width, so that places sort as the ids of the stream do.
local function place(stream_id)
  local ms, number = string.match(stream_id, '^(%d+)%-?(%d*)$')
  return string.rep('0', 20 - #ms) .. ms .. '-' .. string.rep('0', 20 - #number) .. number .. '|'
end

-- What ends a worker that has not started by the event's not_after (ms), JSON. It spares a worker that has started.
local function not_after_termination(not_after)
  return string.format(NOT_AFTER, rfc3339(tonumber(not_after)))
end

-- One entry of the result stream: a flat list of names and values.
local function publish(flat)
  write('XADD', RESULTS, 'MAXLEN', '~', MAXLEN, '*', unpack(flat))
end

-- The same from values by name, for the fields that core/results.py lists; what has no value is empty. `common` is the flat
-- list of what every result of the event carries.
local function publish_named(names, values, common)
  local flat = {}
  for _, name in ipairs(names) do append_all(flat, {name, values[name] or ''}) end
  publish(append_all(flat, common))
end

-- What every result of a task carries, as a flat list; empty where it was damaged from outside.
local function common_of(text)
  local good, common = pcall(cjson.decode, text or '[]')
  return good and type(common) == 'table' and common or {}
end

-- A concurrency key is a sorted set of all its open tasks: 0 for one that waits, 1 for one that holds a place. A member is
-- '<place of the entry>|<limit>|<event id>', so that members of one score are in the order of the stream. All of a key is in
-- this one set, of which no clock removes anything: a step changes it as a whole, and whatever dies between two steps, the
-- set says which tasks hold one. Its name, and that of a task, are made of the prefix: a script that closes a task cannot be
-- given the names of what it lets start, and all names of a prefix have its hash tag.
local function key_set(key) return string.sub(OPEN, 1, -1 - #'open') .. 'key:' .. key end
local function task_of(event_id) return string.sub(OPEN, 1, -1 - #'open') .. 'task:' .. event_id end
local function key_member(stream_id, limit, event_id) return place(stream_id) .. limit .. '|' .. event_id end

-- Returns the entry's id, the limit and the event id of a member.
local function member_parts(member)
  local ms, number, limit, event_id = string.match(member, '^0*(%d+)%-0*(%d+)|(%d+)|(.*)$')
  return ms .. '-' .. number, tonumber(limit), event_id
end

-- A task without a hash was removed by a person; what is no hash may be mended, and counts as open.
local function is_open(event_id)
  local is_hash, owner = fields_if_hash(task_of(event_id), 'owner')
  return owner or not is_hash
end

-- Only a person can have put something else there.
local function is_key_set(set)
  local found = redis.pcall('ZCARD', set)
  if type(found) == 'number' then return true end
  if not string.find(found.err, 'WRONGTYPE', 1, true) then error(found) end
  return false
end

-- Has some replica read an older entry, and not accepted it? It may have the same key, and would come first.
local function is_preceded(stream_id)
  local found = redis.pcall('XPENDING', STREAM, GROUP, '-', '(' .. stream_id, 1)
  return not found.err and #found > 0
end

-- The members that hold a place, without `leaving`, and the least of their limits. With `check_open` those of tasks that are not
-- open any more lose it.
local function holders_of(set, leaving, check_open)
  local held, least = {}, math.huge
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', set, 1, 1)) do
    local _, limit, event_id = member_parts(member)
    if check_open and not is_open(event_id) then
      write('ZREM', set, member)
    elseif member ~= leaving then
      held[#held + 1], least = member, math.min(least, limit)
    end
  end
  return held, least
end

-- Give places to those that wait, in the order of the stream, until the first that has to wait on. `leaving` is a member that
-- leaves in this step. Returns the members that hold a place then, and how many of those that waited were passed.
local function admit_next(set, leaving, check_open)
  local held, least = holders_of(set, leaving, check_open)
  local passed = 0
  while true do
    local member = redis.call('ZRANGEBYSCORE', set, 0, 0, 'LIMIT', passed, 1)[1]
    if not member then break end
    local stream_id, limit, event_id = member_parts(member)
    if member ~= leaving then
      if not is_open(event_id) then
        write('ZREM', set, member)
      elseif #held + 1 > math.min(least, limit) or is_preceded(stream_id) then
        break
      else
        write('ZADD', set, 1, member)
        held[#held + 1], least = member, math.min(least, limit)
      end
    end
    passed = passed + 1
  end
  return held, passed
end

-- The set of a task's concurrency key and its member there; nil for a task without one.
local function key_of(task, event_id)
  local key, limit, stream_id = fields(task, 'key', 'key_limit', 'sid')
  if key then return key_set(key), key_member(stream_id, limit, event_id) end
end

-- Every task that is closed goes through here: it gives up its place, and the next of its key gets it in the same step.
local function close_task(task, event_id)
  local set, member = key_of(task, event_id)
  if set then
    write('ZREM', set, member)
    -- of another type: the reads would fail without a name, and the commit refuses this write and names the key
    if is_key_set(set) then admit_next(set, member) end
  end
  write('ZREM', OPEN, event_id)
  write('HSET', task, 'state', 'finished', 'why', '', 'next_at', '', 'code', '', 'since', '')
  write('HDEL', task, 'owner')
  write('EXPIRE', task, TTL)
end

-- Write a dead letter, once for each marker, which is remembered as long as TASK_TTL_S: a caller that got no answer, and
-- another replica with the same entry, come with the same marker. Returns whether this call writes it.
local function add_dead_letter(marker, letter)
  local now = now_ms()
  local earlier = redis.call('ZSCORE', BURIED, marker)
  if earlier and tonumber(earlier) >= now - TTL * 1000 then return false end
  write('XADD', DEAD, '*', 'dead_reason', letter.reason, 'dead_detail', letter.detail, 'event_id', letter.event_id,
    'stream_id', letter.stream_id, 'group', GROUP, 'attempts', letter.attempts, 'at', rfc3339(now), 'event', letter.raw)
  write('ZADD', BURIED, now, marker)
  write('ZREMRANGEBYSCORE', BURIED, '-inf', '(' .. (now - TTL * 1000))
  return true
end

-- The dead letter of an event on which the controller failed again and again, once. Returns whether this call writes it.
local function add_poison_letter(task, event_id, detail, tries)
  local stream_id, raw, poisoned = fields(task, 'sid', 'raw', 'poisoned')
  -- the marker among those of all dead letters ends after TASK_TTL_S, and a task may be open for longer
  if poisoned then return false end
  write('HSET', task, 'poisoned', '1')
  return add_dead_letter(GROUP .. '|poison|' .. event_id, {reason = 'Poison', detail = detail, event_id = event_id,
    stream_id = stream_id or '', attempts = tries, raw = raw or '{}'})
end

-- How many workers ended how, with the first reasons, and how large the outputs in the hash are: read once, counted on by
-- `store_result`, written by `write_tally`.
-- A planned write is not seen by a later read, so several results in one call must count on in memory.
local TALLY = {'done', 'succeeded', 'failed', 'cancelled', 'first_failed', 'first_cancelled', 'output_bytes'}

local function tally_of(task)
  local found, tally = redis.call('HMGET', task, unpack(TALLY)), {}
  for n, name in ipairs(TALLY) do tally[name] = n <= 4 and tonumber(found[n] or 0) or found[n] end
  return tally
end

local function write_tally(task, tally)
  local flat = {}
  for _, name in ipairs(TALLY) do
    if tally[name] then append_all(flat, {name, tally[name]}) end
  end
  write_hash(task, flat)
end

-- One worker's result: `flat` is published, `map` is the same by name. The hash has `common` once, and not again with each
-- worker: a large event would be there as often as it has workers. Outputs beyond MAX_TASK_BYTES are in the stream alone.
local function store_result(task, tally, i, flat, map, common)
  local own = {}
  for name, value in pairs(map) do own[name] = value end
  for n = 1, #common, 2 do own[common[n]] = nil end
  if (own.output or '') ~= '' then
    local used = tonumber(tally.output_bytes or 0) + #own.output
    if used > MAX_TASK_BYTES then own.output = CUT else tally.output_bytes = used end
  end
  local kind = (map.outcome == 'succeeded' or map.outcome == 'cancelled') and map.outcome or 'failed'
  write('HSET', task, 'outcome:' .. i, map.outcome, 'worker:' .. i, cjson.encode(own))
  tally.done, tally[kind] = tally.done + 1, tally[kind] + 1
  if kind ~= 'succeeded' then tally['first_' .. kind] = tally['first_' .. kind] or map.reason end
  publish(flat)
end

-- Publish the result of a task of which all workers have theirs. Returns its message.
local function finish_task(task, event_id, tally)
  local task_id, pod_count, received_at, common = fields(task, 'task_id', 'pod_count', 'received_at', 'common')
  local count = tonumber(pod_count)
  local outcome, reason, message = 'succeeded', 'Completed', string.format(ALL_COMPLETED, count)
  if tally.failed > 0 then outcome, reason = 'failed', tally.first_failed
  elseif tally.succeeded < count then outcome, reason = 'cancelled', tally.first_cancelled end
  if outcome ~= 'succeeded' then message = string.format(SOME_COMPLETED, tally.succeeded, count) end
  publish_named(task_fields(), {kind = 'task', event_id = event_id, task_id = task_id, outcome = outcome, reason = reason,
    message = message, finished_at = rfc3339(now_ms()), received_at = received_at, pod_count = count,
    succeeded = tally.succeeded, failed = tally.failed, cancelled = tally.cancelled}, cjson.decode(common))
  close_task(task, event_id)
  return message
end
