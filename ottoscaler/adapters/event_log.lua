-- == event_log.py: entries of the event stream: read, tried again, accepted or refused, tidied.

-- Refuse an entry: dead letter, `Rejected` result where there is an event id of its own, acknowledgement. `letter` is that of
-- `add_dead_letter`, with task_id, digest and common. Returns {'dead', reason, detail}, or {'known'} where this entry has its
-- dead letter already.
local function refuse(task, letter)
  local event_id, stream_id = letter.event_id, letter.stream_id
  letter.attempts = 0
  local fresh = add_dead_letter(GROUP .. '|' .. stream_id, letter)
  write('XACK', STREAM, GROUP, stream_id)
  local answer = fresh and {'dead', letter.reason, letter.detail} or {'known'}
  -- in conflict with another event of that id: the result under it belongs to the other one
  if not fresh or event_id == '' or redis.call('EXISTS', task) == 1 then return answer end
  local at = rfc3339(now_ms())
  write('HSET', task, 'sid', stream_id, 'task_id', letter.task_id, 'digest', letter.digest, 'type', '', 'pod_count', 0,
    'received_at', at)
  publish_named(task_fields(), {kind = 'task', event_id = event_id, task_id = letter.task_id, outcome = 'failed',
    reason = 'Rejected', message = string.format(REJECTED, letter.reason, letter.detail), finished_at = at, received_at = at,
    pod_count = 0, succeeded = 0, failed = 0, cancelled = 0}, cjson.decode(letter.common))
  close_task(task, event_id)
  return answer
end

-- The same for an event that could be read, with another reason.
local function refuse_event(task, event, reason, detail)
  event.reason, event.detail = reason, detail
  return refuse(task, event)
end

-- Refuse an entry that is no event.
-- KEYS: task. ARGV: letter, a msgpack map of reason, detail, event_id ('' if none could be read), stream_id, task_id, digest,
-- raw (the fields as sent, JSON) and common. Returns {'dead', reason, detail}, where the reason may be Conflict, or {'known'}.
function F.dead_letter(packed)
  local task, letter = keys(), cmsgpack.unpack(packed)
  local _, known = fields_if_hash(task, 'digest')
  if known and known == letter.digest then
    write('XACK', STREAM, GROUP, letter.stream_id)
    return {'known'}
  end
  if known then letter.reason, letter.detail = 'Conflict', string.format(CONFLICT, letter.event_id) end
  return refuse(task, letter)
end

-- A task joins those of its concurrency key. It holds a place at once where none waits before it. Returns 1 or 0; nil where the
-- key's name holds something else than a sorted set.
local function join_key(event)
  local set = key_set(event.key)
  if not is_key_set(set) then return nil end
  local first = redis.call('ZRANGEBYSCORE', set, 0, 0, 'LIMIT', 0, 1)[1]
  local held, least = holders_of(set)
  local waits = first or #held + 1 > math.min(least, event.key_limit) or is_preceded(event.stream_id)
  write('ZADD', set, waits and 0 or 1, key_member(event.stream_id, event.key_limit, event.event_id))
  return waits and 0 or 1
end

-- Accept an event: store it as an open task of ours with a lease, and acknowledge its entry. From here on the task hash and
-- the set of open tasks are the truth, so both are written in the step that acknowledges.
-- KEYS: task, choices. ARGV: event, a msgpack map of stream_id, event_id, digest, event (checked, JSON), raw (as sent, JSON),
-- common, type, task_id, pod_count, process (`<consumer>/<incarnation>/`), lease_ms, supersedes ('' for none), not_after (ms, ''
-- for none), and key and key_limit of an event with a concurrency key.
-- Returns {'ok', owner, received_at}; {'again', owner, received_at} where this process had accepted it before, and its answer
-- was lost; {'known'}; or {'dead', reason, detail} where it is a dead letter by this. With a concurrency key 'ok' and 'again'
-- have a fourth value: 1 if the task holds a place, 0 if it waits for one.
function F.accept(packed)
  local event = cmsgpack.unpack(packed)
  local task, choices = keys()
  local stream_id, event_id, now = event.stream_id, event.event_id, now_ms()
  local is_hash, digest, first_id, owner, received_at = fields_if_hash(task, 'digest', 'sid', 'owner', 'received_at')
  if not is_hash then return refuse_event(task, event, 'Conflict', string.format(NOT_A_TASK, task)) end
  -- of a task that was taken up from its pods the digest is empty: what comes under its id is taken for the same event
  if digest and digest ~= '' and digest ~= event.digest then
    return refuse_event(task, event, 'Conflict', string.format(CONFLICT, event_id))
  end
  if digest then
    write('XACK', STREAM, GROUP, stream_id)
    local ours = first_id == stream_id and owner and string.match(owner, '^(.*/)%d+$') == event.process
    local set, member = key_of(task, event_id)
    -- a key of another type waits to be mended by a person, and holds up no other event until then
    local holds = set and (is_key_set(set) and tonumber(redis.call('ZSCORE', set, member) or 0) or 0)
    return ours and {'again', owner, received_at, holds} or {'known'}
  end
  if tonumber(string.match(stream_id, '^%d+')) < now - TTL * 1000 then
    return refuse_event(task, event, 'TooOld', string.format(TOO_OLD, TTL))
  end
  local holds = event.key and join_key(event)
  if event.key and not holds then
    return refuse_event(task, event, 'Conflict', string.format(NOT_A_KEY, key_set(event.key)))
  end
  owner, received_at = event.process .. '1', rfc3339(now)
  if event.type == 'scale_down' or event.supersedes ~= '' then write('ZADD', choices, 0, place(stream_id) .. event_id) end
  write('HSET', task, 'sid', stream_id, 'type', event.type, 'task_id', event.task_id, 'pod_count', event.pod_count,
    'digest', event.digest, 'event', event.event, 'raw', event.raw, 'common', event.common, 'state', 'waiting',
    'owner', owner, 'tenure', 1, 'tries', 1, 'received_at', received_at)
  if event.supersedes ~= '' then write('HSET', task, 'superseding', 'todo') end
  if holds then write('HSET', task, 'key', event.key, 'key_limit', event.key_limit) end
  if event.not_after ~= '' then write('HSET', task, 'not_after', event.not_after) end
  write('ZADD', OPEN, now + event.lease_ms, event_id)
  write('XACK', STREAM, GROUP, stream_id)
  return {'ok', owner, received_at, holds}
end

-- Returns {id, fields, 0}; {id, false, 0} for one that was trimmed away; {id, head, size} for one of more than `most` bytes,
-- where the head has its first fields and its ids. And how many bytes that is.
local function measured(entry, stream_id, most, room)
  if not entry then return {stream_id, false, 0}, 0 end
  local size, flat, head, open = 0, entry[2], {}, true
  for _, part in ipairs(flat) do size = size + #part end
  if size <= most then return {stream_id, flat, 0}, size end
  local kept = 0
  for n = 1, #flat, 2 do
    local length = #flat[n] + #flat[n + 1]
    open = open and kept + length <= room
    if open or (flat[n] == 'event_id' or flat[n] == 'task_id') and length <= 200 then
      append_all(head, {flat[n], flat[n + 1]})
      kept = kept + length
    end
  end
  return {stream_id, head, size}, kept
end

-- Some entries behind an id, where a read was refused because its reply was too large.
-- KEYS: none. ARGV: after (an id), count, most (bytes of an entry that is brought whole), room (bytes of the head of a larger
-- one), total (bytes of all; the last entry may go beyond). Returns a list of what `measured` returns.
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

-- Entries that were read and not accepted: our own, or those of all consumers that are idle, which become ours by this. Not
-- more than `total` bytes, but for the last entry: a process may have died of them.
-- KEYS: none. ARGV: consumer, own ('1' or '0'), min_idle_ms, count, most, room, total. Returns the same as `peek`.
function F.claim_pending(consumer, own, min_idle_ms, count, most, room, total)
  local found, answer, sum = nil, {}, 0
  if own == '1' then found = redis.call('XPENDING', STREAM, GROUP, '-', '+', count, consumer)
  else found = redis.call('XPENDING', STREAM, GROUP, 'IDLE', min_idle_ms, '-', '+', count) end
  for _, item in ipairs(found) do
    if sum > tonumber(total) then break end
    local stream_id, size = item[1], nil
    local entry = redis.call('XRANGE', STREAM, stream_id, stream_id)[1]
    -- XCLAIM would silently drop an entry that was trimmed away: it stays pending until it is a dead letter
    if entry and own == '0' then write('XCLAIM', STREAM, GROUP, consumer, 0, stream_id, 'JUSTID') end
    answer[#answer + 1], size = measured(entry, stream_id, tonumber(most), tonumber(room))
    sum = sum + size
  end
  return answer
end

-- One more try at an entry that was read and not accepted; counted before it is made, so that a try that ends the process
-- counts as well.
-- KEYS: none. ARGV: consumer, stream_id. Returns the number of tries, 0 if the entry is not pending any more.
function F.count_try(consumer, stream_id)
  local item = redis.call('XPENDING', STREAM, GROUP, stream_id, stream_id, 1)[1]
  if not item then return 0 end
  local tries = item[4]
  -- XCLAIM would drop an entry that was trimmed away
  if #redis.call('XRANGE', STREAM, stream_id, stream_id) == 0 then return tries end
  write('XCLAIM', STREAM, GROUP, consumer, 0, stream_id, 'RETRYCOUNT', tries + 1, 'JUSTID')
  return tries + 1
end

-- A consumer stops: what it has read and not accepted counts as idle for so long that the next replica that looks takes it.
-- This counts no try.
-- KEYS: none. ARGV: consumer, idle_ms, count (the most that are returned). Returns 'ok'.
function F.release_pending(consumer, idle_ms, count)
  local found = redis.pcall('XPENDING', STREAM, GROUP, '-', '+', count, consumer)
  -- without the group, since Redis was wiped, there is nothing to hand over
  if found.err then return string.find(found.err, 'NOGROUP', 1, true) and 'ok' or found end
  for _, item in ipairs(found) do
    local stream_id, tries = item[1], item[4]
    -- XCLAIM would drop an entry that was trimmed away
    if #redis.call('XRANGE', STREAM, stream_id, stream_id) > 0 then
      write('XCLAIM', STREAM, GROUP, consumer, 0, stream_id, 'IDLE', idle_ms, 'RETRYCOUNT', tries, 'JUSTID')
    end
  end
  return 'ok'
end

-- Remove consumers that have nothing pending and gave no sign of life for so long: neither by a read nor by a renewal (a
-- process that has no room reads nothing, and lives). One that has announced itself and does not say when it was seen is of
-- an earlier release: it stays as long as it is remembered.
-- KEYS: the key of each consumer. ARGV: gone_ms, and the names of these consumers. Returns the names of those removed.
function F.remove_consumers(gone_ms, ...)
  local seen_at, now, gone = {}, now_ms(), {}
  for n, name in ipairs({...}) do
    local _, seen, incarnation = fields_if_hash(nth_key(n), 'seen', 'boot')
    seen_at[name] = tonumber(seen or (incarnation and now or 0))
  end
  for _, flat in ipairs(redis.call('XINFO', 'CONSUMERS', STREAM, GROUP)) do
    local found = map_of(flat)
    local seen, idle_ms = seen_at[found.name], tonumber(gone_ms)
    if seen and found.pending == 0 and found.idle >= idle_ms and now - seen >= idle_ms then
      -- at once, not planned: each removal is whole by itself, and where one is refused so are all
      redis.call('XGROUP', 'DELCONSUMER', STREAM, GROUP, found.name)
      gone[#gone + 1] = found.name
    end
  end
  return gone
end

-- Is entry a older than entry b? By number, never as texts.
local function is_older(a, b)
  local a_ms, a_number = string.match(a, '^(%d+)-(%d+)$')
  local b_ms, b_number = string.match(b, '^(%d+)-(%d+)$')
  if #a_ms ~= #b_ms then return #a_ms < #b_ms end
  if a_ms ~= b_ms then return a_ms < b_ms end
  return #a_number < #b_number or #a_number == #b_number and a_number < b_number
end

-- Trim the event stream below the first entry that some group has not acknowledged or not read. By whole nodes of the stream
-- ('~'), since a limit is possible only so.
-- KEYS: none. ARGV: keep (how many entries stay at least). Returns how many entries are gone.
function F.trim(keep)
  local length, floor = redis.call('XLEN', STREAM), nil
  for _, group in ipairs(length > tonumber(keep) and groups_of(STREAM) or {}) do
    local first = group.pending > 0 and redis.call('XPENDING', STREAM, group.name)[2] or group['last-delivered-id']
    if not floor or is_older(first, floor) then floor = first end
  end
  if not floor then return 0 end
  write('XTRIM', STREAM, 'MINID', '~', floor, 'LIMIT', length - keep)
  return commit() or length - redis.call('XLEN', STREAM)
end

-- The age of an entry, ms. Its id may be one that its producer made up.
local function age_ms(id, now)
  local ms = tonumber(string.match(id, '^(%d+)-') or now)
  return math.max(0, now - ms)
end

-- How many entries of a stream a group has not read. Redis has no count where entries behind the group's position were deleted:
-- then they are counted up to the limit, since each is read for that.
local function unread_of(stream, group, limit)
  if group.lag then return group.lag end
  return #redis.call('XRANGE', stream, '(' .. group['last-delivered-id'], '+', 'COUNT', limit)
end

-- The groups of a stream, none where there is no stream.
local function groups_if_any(stream) return redis.call('EXISTS', stream) == 1 and groups_of(stream) or {} end

-- How much the streams hold.
-- KEYS: none. ARGV: limit (up to how many entries are counted one by one). Returns unread, pending, age of the oldest of these
-- (ms), results, age of the oldest (ms), results that the slowest group has not read, dead letters.
function F.stream_levels(limit)
  local now, unread, pending, oldest_ms = now_ms(), 0, 0, 0
  for _, group in ipairs(groups_if_any(STREAM)) do
    if group.name == GROUP then
      unread, pending = unread_of(STREAM, group, limit), group.pending
      local next_unread = redis.call('XRANGE', STREAM, '(' .. group['last-delivered-id'], '+', 'COUNT', 1)[1]
      if next_unread then oldest_ms = age_ms(next_unread[1], now) end
      if pending > 0 then oldest_ms = math.max(oldest_ms, age_ms(redis.call('XPENDING', STREAM, GROUP)[2], now)) end
    end
  end
  local first, results_unread = redis.call('XRANGE', RESULTS, '-', '+', 'COUNT', 1)[1], 0
  for _, group in ipairs(groups_if_any(RESULTS)) do
    -- our own exporter of traces is not one of the readers that results are kept for
    if group.name ~= GROUP .. TRACE_GROUP then results_unread = math.max(results_unread, unread_of(RESULTS, group, limit)) end
  end
  return {unread, pending, oldest_ms, redis.call('XLEN', RESULTS), first and age_ms(first[1], now) or 0, results_unread,
    redis.call('XLEN', DEAD)}
end
