-- == leases.py: which replica owns a task, and for how long.

-- No replica gives leases that are this many times as long as another's.
local LEASES_AHEAD = 10

-- An owner is <consumer>/<incarnation>/<epoch>. Only the consumer may contain a slash, so it is cut from the right: compared
-- by their beginnings, consumer x would take the tasks of consumer x/y for its own.
local function process_of(owner)
  return string.match(owner or '', '^(.*)/([^/]*)/%d+$')
end

-- Has this consumer read entries that are not accepted?
local function is_reading(consumer)
  local found = redis.pcall('XPENDING', STREAM, GROUP, '-', '+', 1, consumer)
  return not found.err and #found > 0
end

-- One process for each consumer: this one from now on (`first`), or as long as no other has announced itself. Notes whether
-- the process before it left entries that it had read and not accepted.
-- KEYS: consumer. ARGV: incarnation, first ('1' at the start, '0' with a renewal), name (of the consumer).
-- Returns the incarnation that has taken our place, '' if none has.
function F.announce(incarnation, first, name)
  local consumer = keys()
  local held = redis.call('HGET', consumer, 'boot')
  if first == '0' and held and held ~= incarnation then return held end
  if held ~= incarnation then
    write('HSET', consumer, 'boot', incarnation, 'reading', first == '1' and is_reading(name) and 1 or 0)
  end
  write('HSET', consumer, 'seen', now_ms())
  write('EXPIRE', consumer, TTL)
  return ''
end

-- Open tasks without a lease that runs, by the clock by which it was given. A lease that ends later than any may was given
-- before that clock was set back (or on a master with a clock ahead): it ends one lease from now, as after a renewal. Its
-- owner renews it by then, if it lives; otherwise its task would wait for as long as the clock was set back.
-- KEYS: none. ARGV: lease_ms. Returns event ids.
function F.expired(lease_ms)
  local now = now_ms()
  for _, event_id in ipairs(redis.call('ZRANGEBYSCORE', OPEN, now + LEASES_AHEAD * lease_ms, '+inf')) do
    write('ZADD', OPEN, 'XX', now + lease_ms, event_id)
  end
  return redis.call('ZRANGEBYSCORE', OPEN, '-inf', now)
end

-- Does a task hold a place of its concurrency key? Its owner's death changes nothing of that. A set that a person has removed
-- is written again: a worker was created only with a place. A task that has started is a holder, whatever the set says: an
-- older version that knows no keys may have started it. Returns 1 or 0, nil for a task without a key.
local function keep_key(task, event_id)
  local set, member = key_of(task, event_id)
  if not set then return nil end
  -- it may be mended, and until then nothing of it starts
  if not is_key_set(set) then return 0 end
  local score = tonumber(redis.call('ZSCORE', set, member) or nil)
  local started = redis.call('HGET', task, 'state') ~= 'waiting'
  if score == 1 or (score and not started) then return score end
  score = started and 1 or 0
  write('ZADD', set, score, member)
  return score
end

-- Mark the workers that have not started by the event's not_after, once. A pod that has started clears its mark; one that is
-- being ended for another reason keeps that. Returns how many marks the task was ever given.
local function expire(task, pod_count, not_after, cancels)
  local text, marked = not_after_termination(not_after), 0
  for i = 1, tonumber(pod_count) do
    local outcome, termination = fields(task, 'outcome:' .. i, 'doom:' .. i)
    if not outcome and not termination then
      write('HSET', task, 'doom:' .. i, text)
      marked = marked + 1
    end
  end
  write('HSET', task, 'expired', '1', 'cancels', cancels + marked)
  return cancels + marked
end

-- Extend leases. Of a task that its owner only waits for the tries are forgotten: no process dies of what it only waits for.
-- KEYS: the tasks. ARGV: lease_ms, and for each task its event id, its owner, and '1' if the owner is at work on it or has
-- failed on it. Returns for each task {'ok', number of cancels, ms that are left until not_after or ''}, {'lost', owner, ''},
-- or {'forgotten', '', ''}.
function F.renew(lease_ms, ...)
  local asked, answer = {...}, {}
  local now = now_ms()
  local till = now + lease_ms
  for n = 1, #asked / 3 do
    local task = nth_key(n)
    local event_id, owner, at_work = unpack(asked, 3 * n - 2, 3 * n)
    local _, held_by, cancels, tries, key, not_after, expired, pod_count = fields_if_hash(task, 'owner', 'cancels', 'tries',
      'key', 'not_after', 'expired', 'pod_count')
    if held_by == owner then
      if key then keep_key(task, event_id) end
      -- a task that has an owner is open: also where an operator has removed it from the set, and no replica could take it over
      write('ZADD', OPEN, till, event_id)
      tries = tonumber(tries or 0)
      if at_work == '0' and tries > 0 and tries < MAX_TRIES then write('HSET', task, 'tries', 0) end
      local left = ''
      if not_after and not expired then
        left = not_after - now
        if left <= 0 then cancels, left = expire(task, pod_count, not_after, tonumber(cancels or 0)), '' end
      end
      answer[n] = {'ok', cancels or '0', left}
    elseif redis.call('EXISTS', task) == 1 then
      answer[n] = {'lost', held_by or '', ''}
    else
      answer[n] = {'forgotten', '', ''}
    end
  end
  return answer
end

-- End the leases of these tasks at once. No try counts: they are handed over in order.
-- KEYS: the tasks. ARGV: for each task its event id and its owner. Returns 'ok'.
function F.release(...)
  local asked = {...}
  for n = 1, #asked / 2 do
    local task = nth_key(n)
    local event_id, owner = unpack(asked, 2 * n - 1, 2 * n)
    local _, held_by = fields_if_hash(task, 'owner')
    if held_by == owner then
      write('ZADD', OPEN, 'XX', 0, event_id)
      write('HSET', task, 'tries', 0)
    end
  end
  return 'ok'
end

-- Redis was wiped: store a task again, as its owner knows it or as its pods say. As JSON, since a script takes no more than
-- some thousand arguments.
-- KEYS: task, choices. ARGV: event_id, lease_ms, fields (a flat JSON list), undecided (the entry's id if the event has its
-- victims still to choose, '' otherwise), holds (1 if it holds a place of its concurrency key, 0 if it waits for one; '' if
-- it has no key). Returns 'known', where nothing changes, or 'ok'.
function F.restore(event_id, lease_ms, flat, undecided, holds)
  local task, choices = keys()
  if redis.call('HLEN', task) > 0 then return 'known' end
  local now, known = now_ms(), map_of(cjson.decode(flat))
  if holds ~= '' then write('ZADD', key_set(known.key), holds, key_member(known['sid'], known.key_limit, event_id)) end
  if undecided ~= '' then write('ZADD', choices, 0, place(undecided) .. event_id) end
  write('HSET', task, 'received_at', rfc3339(now))
  write_hash(task, cjson.decode(flat))
  write('ZADD', OPEN, now + lease_ms, event_id)
  return 'ok'
end

-- End a task on which the controller has failed too often. A scale_down is over by this, and its result names the workers
-- that it had chosen: they have their terminations, and end. A scale_up has workers with pods that have to be ended first.
local function poison(task, event_id)
  local pod_count, kind, task_id, common, victims, survivors = fields(task, 'pod_count', 'type', 'task_id', 'common',
    'victims', 'survivors')
  if kind == 'scale_down' then
    local pods = {}
    for _, victim in ipairs(cjson.decode(victims or '[]')) do pods[#pods + 1] = victim[3] end
    publish_named(scale_down_fields(), {kind = 'scale_down', event_id = event_id, task_id = task_id, outcome = 'failed',
      reason = 'Poison', message = string.format(POISON_EVENT, MAX_TRIES), finished_at = rfc3339(now_ms()),
      victims = json_list(pods), survivors = survivors or '[]', pod_count = #pods}, cjson.decode(common))
    close_task(task, event_id)
    return
  end
  local termination = cjson.encode({reason = 'Poison', outcome = 'failed', fault = 'infra', attempt = 0, drain = false,
    by = '', message = string.format(POISON_WORKER, MAX_TRIES)})
  for i = 1, tonumber(pod_count) or 0 do
    if redis.call('HEXISTS', task, 'outcome:' .. i) == 0 then write('HSET', task, 'doom:' .. i, termination) end
  end
end

-- The last resort: no replica can carry this task on, nor end it. Each worker without a result gets one; the reconciler ends
-- the pods.
local function close_poisoned(task, event_id)
  local pod_count, task_id, common_text, received_at = fields(task, 'pod_count', 'task_id', 'common', 'received_at')
  local is_readable, common = pcall(cjson.decode, common_text or '[]'), common_of(common_text)
  local tally = tally_of(task)
  for i = 1, tonumber(pod_count) or 0 do
    local outcome, attempt = fields(task, 'outcome:' .. i, 'attempt:' .. i)
    if not outcome then
      local map = {}
      for _, name in ipairs(worker_fields()) do map[name] = '' end
      map.kind, map.event_id, map.task_id, map.outcome, map.reason = 'worker', event_id, task_id or '', 'failed', 'Poison'
      map.fault, map.message, map.index = 'infra', string.format(POISON_WORKER, LAST_TRY), tostring(i)
      map.attempt, map.finished_at = tostring(stored_attempt(attempt) or 0), rfc3339(now_ms())
      for n = 1, #common, 2 do map[common[n]] = common[n + 1] end
      local flat = {}
      for name, value in pairs(map) do append_all(flat, {name, value}) end
      store_result(task, tally, i, flat, map, common)
    end
  end
  write_tally(task, tally)
  if is_readable and tonumber(pod_count) and common_text and received_at then finish_task(task, event_id, tally)
  else close_task(task, event_id) end
end

-- An event that has its victims still to choose keeps its place among the choices: earlier releases gave it none.
local function keep_place(task, event_id, choices)
  local stream_id, kind, victims, superseding = fields(task, 'sid', 'type', 'victims', 'superseding')
  local undecided = superseding == 'todo' or (kind == 'scale_down' and not victims)
  if stream_id and undecided then write('ZADD', choices, 0, place(stream_id) .. event_id) end
end

-- Places of concurrency keys for those that wait, in the order of the stream. The step that closes a task does the same, so
-- here is only what waited for an older entry to be accepted, and what a person has removed.
-- KEYS: the set of each key. ARGV: shown (how many of those that wait are named), check_open ('1': tasks that are not open any
-- more lose their places).
-- Returns for each key {task id of the first that holds a place or '', event ids of those that hold one, event ids of the first
-- that wait}; {} for one under the name of which there is something else than a sorted set.
function F.admit(shown, check_open)
  local answer = {}
  for n = 1, #KEYS - #{STREAM, OPEN, RESULTS, DEAD, BURIED} do
    local set = nth_key(n)
    answer[n] = {}
    if is_key_set(set) then
      local held, passed = admit_next(set, nil, check_open == '1')
      local waiting = redis.call('ZRANGEBYSCORE', set, 0, 0, 'LIMIT', passed, shown)
      for _, members in ipairs({held, waiting}) do
        for at, member in ipairs(members) do members[at] = select(3, member_parts(member)) end
      end
      local _, task_id = fields_if_hash(task_of(held[1] or ''), 'task_id')
      answer[n] = {task_id or '', held, waiting}
    end
  end
  return answer
end

-- May the owner that a task is taken from have failed on it? Not one that gave it up (a lease of 0). One that died over an
-- entry that it had read died of that: the tries of entries are counted as well (`retry`). An earlier incarnation of our own
-- consumer left its entries to us, and by now we may have accepted them: the key of our consumer says whether there were any.
local function has_failed(lease, held_by, own_key)
  if tonumber(lease) == 0 then return false end
  if own_key then return redis.call('HGET', own_key, 'reading') ~= '1' end
  return not is_reading(held_by)
end

-- Take a task over: a new owner, a new epoch, a new lease and one try more, in one step.
-- KEYS: task, consumer (our own), choices. ARGV: event_id, consumer, incarnation, lease_ms, same_consumer ('1': also from an
-- earlier incarnation of this consumer with a lease that runs).
-- Returns {'ok', owner, fields of the task}, and with a concurrency key 1 or 0 (see `keep_key`); {'none'} if it is not to be
-- had; {'dead', reason, detail} when it becomes a dead letter by this. A task with pods is then to be taken once more: the
-- dead letter is reported also where its taker cannot read it.
function F.take_over(event_id, consumer, incarnation, lease_ms, same_consumer)
  local task, consumer_key, choices = keys()
  local lease = redis.call('ZSCORE', OPEN, event_id)
  if not lease then return {'none'} end
  local is_hash, owner, epoch, tries = fields_if_hash(task, 'owner', 'tenure', 'tries')
  if not is_hash then
    -- It stays open: the key may be mended, and then the task goes on.
    local detail = string.format(NOT_A_TASK, task)
    local fresh = add_dead_letter(GROUP .. '|poison|' .. event_id, {reason = 'Poison', detail = detail, event_id = event_id,
      stream_id = '', attempts = 0, raw = '{}'})
    return fresh and {'dead', 'Poison', detail} or {'none'}
  end
  if not owner then
    write('ZREM', OPEN, event_id)
    return {'none'}
  end
  local now, held_by, holder = now_ms(), process_of(owner)
  local is_running = tonumber(lease) > now
  if held_by == consumer and holder == incarnation and is_running then
    -- taken or accepted by this very process, which got no answer: it gets the same again
    return {'ok', owner, redis.call('HGETALL', task), keep_key(task, event_id)}
  end
  local is_earlier = held_by == consumer and holder ~= incarnation
  if is_running and not (same_consumer == '1' and is_earlier) then return {'none'} end
  epoch = tonumber(epoch or 0) + 1
  owner = consumer .. '/' .. incarnation .. '/' .. epoch
  tries = tonumber(tries or 0) + (has_failed(lease, held_by, held_by == consumer and consumer_key) and 1 or 0)
  write('HSET', task, 'owner', owner, 'tenure', epoch, 'tries', tries)
  local fresh, detail, holds = false, string.format(POISON_EVENT, MAX_TRIES), keep_key(task, event_id)
  if tries >= MAX_TRIES then fresh = add_poison_letter(task, event_id, detail, tries)
  else keep_place(task, event_id, choices) end
  write('ZADD', OPEN, fresh and 0 or now + lease_ms, event_id)
  if tries >= LAST_TRY then close_poisoned(task, event_id) elseif tries >= MAX_TRIES then poison(task, event_id) end
  -- The answer is what the task is like by then.
  local refused = refusal('HGETALL', task, 0) or refusal('HEXISTS', task, 1) or commit()
  if refused then return refused end
  if fresh then return {'dead', 'Poison', detail} end
  if redis.call('HEXISTS', task, 'owner') == 0 then return {'none'} end
  return {'ok', owner, redis.call('HGETALL', task), holds}
end
