-- == attempts.py: one attempt of one worker, from the intent to its result. Called for every pod, so the arguments are given
-- by position: as one JSON or msgpack map they cost more.

OF_A_TASK.store_attempt, OF_A_TASK.store_refusal, OF_A_TASK.mark_pod_seen, OF_A_TASK.record_result = true, true, true, true
OF_A_TASK.store_termination, OF_A_TASK.clear_termination = true, true

-- Store an attempt before its pod is created: after a crash it says which pod may be there. Never lowers the attempt, and
-- refuses each one after the event's not_after.
-- KEYS: task. ARGV: event_id, owner, i (the worker's index), attempt, infra_used (retries), worker (what `worker:<i>` shows),
-- oom_kills (attempts before it that ended as OOMKilled), traced ('' where traces are off; otherwise how the attempt before it
-- ended, JSON, '{}' where that is not known).
-- Returns {'ok', false, attempt}; {'has_result'}; {'not_ours'}, also for a task without a place of its concurrency key: the
-- next owner learns that it waits; {'cancelled', termination, stored attempt}; {'old_attempt', false, stored attempt}.
function F.store_attempt(event_id, owner, i, attempt, infra_used, worker, oom_kills, traced)
  local task = keys()
  local held_by, outcome, stored_text, termination, key, not_after = fields(task, 'owner', 'outcome:' .. i, 'attempt:' .. i,
    'doom:' .. i, 'key', 'not_after')
  if outcome then return {'has_result'} end
  if held_by ~= owner then return {'not_ours'} end
  local stored, _, flag = stored_attempt(stored_text)
  attempt = tonumber(attempt)
  if termination then
    local terminated = cjson.decode(termination).attempt
    if terminated == 0 or terminated >= attempt then return {'cancelled', termination, stored} end
  end
  if key and redis.call('ZSCORE', key_of(task, event_id)) ~= '1' then return {'not_ours'} end
  if termination then
    write('HDEL', task, 'doom:' .. i)
  end
  if attempt < stored then return {'old_attempt', false, stored} end
  -- by the one clock that all replicas share, and in the step in which the attempt is stored: nothing comes in between
  if not_after and now_ms() >= tonumber(not_after) then
    local text = not_after_termination(not_after)
    write('HSET', task, 'doom:' .. i, text)
    return {'cancelled', text, stored}
  end
  if traced ~= '' then
    write('HSET', task, 'intent:' .. i .. ':' .. attempt, now_ms())
    if traced ~= '{}' then write('HSET', task, 'ended:' .. i .. ':' .. attempt - 1, traced) end
  end
  -- an attempt that is stored again, and of which no pod was seen, is no progress: its creator may have died of it
  local again = stored == attempt
  local text = attempt .. ':' .. infra_used .. (again and flag == 's' and ':s' or '')
  write('HSET', task, 'attempt:' .. i, text, 'state', 'running')
  if oom_kills ~= '0' then write('HSET', task, 'oom:' .. i, oom_kills) end
  -- while a refused create is tried again, what is shown goes on to say why it was refused
  if not again or flag ~= 'r' then write('HSET', task, 'worker:' .. i, worker) end
  if not again or flag ~= '' then write('HSET', task, 'tries', 0) end
  return {'ok', false, attempt}
end

-- Store that an intended pod was refused and is not there, so that no replica looks for it.
-- KEYS: task. ARGV: event_id, owner, i, attempt, worker. Returns {'ok'} or {'not_ours'}.
function F.store_refusal(event_id, owner, i, attempt, worker)
  local task = keys()
  local held_by, stored_text, outcome, shown = fields(task, 'owner', 'attempt:' .. i, 'outcome:' .. i, 'worker:' .. i)
  if held_by ~= owner then return {'not_ours'} end
  local stored, infra_used, flag = stored_attempt(stored_text)
  if stored == tonumber(attempt) and flag ~= 's' and not outcome then
    write('HSET', task, 'attempt:' .. i, stored .. ':' .. infra_used .. ':r')
    -- one that is refused again shows already that it waits, and why
    if not string.find(shown or '', '"state": "waiting"', 1, true) then write('HSET', task, 'worker:' .. i, worker) end
  end
  return {'ok'}
end

-- Store that the attempt's pod was seen, and ask whether it is to end.
-- KEYS: task. ARGV: event_id, owner, i, attempt. Returns {'ok', termination or false}, {'has_result'} or {'not_ours'}.
function F.mark_pod_seen(event_id, owner, i, attempt)
  local task = keys()
  local held_by, outcome, termination, stored_text = fields(task, 'owner', 'outcome:' .. i, 'doom:' .. i, 'attempt:' .. i)
  if outcome then return {'has_result'} end
  if held_by ~= owner then return {'not_ours'} end
  local stored, infra_used, flag = stored_attempt(stored_text)
  if stored == tonumber(attempt) and flag ~= 's' then
    write('HSET', task, 'attempt:' .. i, stored .. ':' .. infra_used .. ':s', 'tries', 0)
  end
  return {'ok', termination}
end

local function is_among(list, name) return string.find(' ' .. (list or '') .. ' ', ' ' .. name .. ' ', 1, true) ~= nil end

local function with_name(list, name)
  if is_among(list, name) then return list end
  return list and list .. ' ' .. name or name
end

-- Does the stored termination hold against a new one? The first of an attempt holds; a cancel (attempt 0) overrides the end
-- of one attempt, and one without drain overrides one with it.
local function holds(stored, new)
  if stored.attempt == 0 then return new.attempt ~= 0 or new.drain or not stored.drain end
  return new.attempt == stored.attempt
end

-- Store why a pod is to be ended, before it is ended: then a result can say so, whichever replica records it.
-- KEYS: task. ARGV: event_id, owner ('' for any replica), i, text (the termination, JSON).
-- Returns {'ok', the termination that holds now or false}, {'has_result'}, {'old_attempt'} or {'not_ours'}.
function F.store_termination(event_id, owner, i, text)
  local task = keys()
  local held_by, outcome, stored_text, stored, spared, cancels = fields(task, 'owner', 'outcome:' .. i, 'attempt:' .. i,
    'doom:' .. i, 'spared:' .. i, 'cancels')
  if outcome then return {'has_result'} end
  if not held_by or (owner ~= '' and held_by ~= owner) then return {'not_ours'} end
  local new = cjson.decode(text)
  if new.attempt ~= 0 and new.attempt ~= stored_attempt(stored_text) then return {'old_attempt'} end
  if new.drain and is_among(spared, new.by) then return {'ok', stored} end
  if stored and holds(cjson.decode(stored), new) then return {'ok', stored} end
  write('HSET', task, 'doom:' .. i, text)
  if new.attempt == 0 then write('HSET', task, 'cancels', tonumber(cancels or 0) + 1) end
  return {'ok', text}
end

-- Clear exactly this termination, because the pod has started. The worker has survived that drain, and is no victim of it
-- again.
-- KEYS: task. ARGV: event_id, owner, i, text. Returns {'ok', the termination that holds now or false}, {'has_result'} or
-- {'not_ours'}.
function F.clear_termination(event_id, owner, i, text)
  local task = keys()
  local held_by, outcome, stored, spared = fields(task, 'owner', 'outcome:' .. i, 'doom:' .. i, 'spared:' .. i)
  if outcome then return {'has_result'} end
  if held_by ~= owner then return {'not_ours'} end
  local want, have = cjson.decode(text), stored and cjson.decode(stored)
  if not have or have.attempt ~= want.attempt or have.reason ~= want.reason or have.by ~= want.by then return {'ok', stored} end
  write('HDEL', task, 'doom:' .. i)
  if want.drain then write('HSET', task, 'spared:' .. i, with_name(spared, want.by)) end
  return {'ok', false}
end

-- Store and publish a worker's result, once, and with the last one the task's. In one step: a process that died between two
-- would leave a task that has all results and never ends.
-- KEYS: task. ARGV: event_id, owner, i, attempt, and the fields of the result, names and values in turn.
-- Returns {'ok', the termination that has won or false, attempt, message of the task's result or '', detail of the dead
-- letter that the event became by this or ''}; {'known'}; {'not_ours'}; {'old_attempt', false, stored attempt}.
function F.record_result(event_id, owner, i, attempt, ...)
  local task = keys()
  local held_by, outcome, stored_text, termination_text, pod_count, tries, common, spared = fields(task, 'owner',
    'outcome:' .. i, 'attempt:' .. i, 'doom:' .. i, 'pod_count', 'tries', 'common', 'spared:' .. i)
  if outcome then return {'known'} end
  if held_by ~= owner then return {'not_ours'} end
  local flat = {...}
  local map, stored = map_of(flat), stored_attempt(stored_text)
  local termination = termination_text and cjson.decode(termination_text)
  attempt = tonumber(attempt)
  if stored ~= 0 and stored ~= attempt and not (termination and termination.attempt == 0) then
    return {'old_attempt', false, stored}
  end
  if termination and termination.attempt ~= 0 and termination.attempt ~= attempt then termination = nil end
  -- Started, and not deleted (which the termination may have caused): a termination of what has not started had no part in
  -- this end.
  local spares = termination and (termination.drain or termination.before_start) and (map.started_at or '') ~= ''
    and map.reason ~= 'PodDeleted' and map.reason ~= termination.reason
  if spares and termination.drain then write('HSET', task, 'spared:' .. i, with_name(spared, termination.by)) end
  local wins = termination and map.outcome ~= 'succeeded' and not spares
  if wins then
    for _, name in ipairs({'outcome', 'reason', 'fault', 'message'}) do map[name] = termination[name] end
    for n = 1, #flat, 2 do flat[n + 1] = map[flat[n]] end
  end
  -- a worker on which our own code failed again and again makes its event a dead letter too
  local dead = map.reason == 'Poison' and add_poison_letter(task, event_id, map.message, tries or 0) and map.message or ''
  local tally = tally_of(task)
  store_result(task, tally, i, flat, map, common_of(common))
  write('HSET', task, 'tries', 0)
  write_tally(task, tally)
  local message = tally.done == tonumber(pod_count) and finish_task(task, event_id, tally) or ''
  return {'ok', wins and termination_text, attempt, message, dead}
end

-- Show how a task and its workers stand. A worker that has its result keeps it.
-- KEYS: task. ARGV: owner, the length of a flat list of fields of the task, that list, and for each worker its index and
-- what `worker:<i>` shows. Returns 'ok' or 'not_ours'.
function F.note_status(owner, length, ...)
  local task, list = keys(), {...}
  if redis.call('HGET', task, 'owner') ~= owner then return 'not_ours' end
  length = tonumber(length)
  for n = 1, length, 2 do write('HSET', task, list[n], list[n + 1]) end
  for n = length + 1, #list, 2 do
    local i, worker = list[n], list[n + 1]
    if redis.call('HEXISTS', task, 'outcome:' .. i) == 0 then write('HSET', task, 'worker:' .. i, worker) end
  end
  return 'ok'
end

-- Store how far the logs of workers of a task have come.
-- KEYS: task. ARGV: owner, and for each worker its index and its progress. Returns 'ok' or 'not_ours'.
function F.note_logs(owner, ...)
  local task, list = keys(), {...}
  if redis.call('HGET', task, 'owner') ~= owner then return 'not_ours' end
  for n = 1, #list, 2 do write('HSET', task, 'log:' .. list[n], list[n + 1]) end
  return 'ok'
end
