-- == scale_downs.py: the choice of victims, in the order of the stream, and the result of a scale_down.

OF_A_TASK.select_victims, OF_A_TASK.finish = true, true

-- What comes before the choice of this entry: {'entry', id} of one that is unread or not accepted, {'event', place} of one
-- that is accepted and has not chosen; nil if nothing does, and then nothing ever will.
local function in_front(stream_id, choices)
  local last
  for _, group in ipairs(groups_of(STREAM)) do
    if group.name == GROUP then last = group['last-delivered-id'] end
  end
  if not last then error({err = 'NOGROUP no consumer group ' .. GROUP}) end
  local entry = redis.call('XRANGE', STREAM, '(' .. last, '(' .. stream_id, 'COUNT', 1)[1]
    or redis.call('XPENDING', STREAM, GROUP, '-', '(' .. stream_id, 1)[1]
  if entry then return {'entry', entry[1]} end
  local first = redis.call('ZRANGEBYLEX', choices, '-', '(' .. place(stream_id), 'LIMIT', 0, 1)[1]
  return first and {'event', first} or nil
end

-- What comes before the choice of an event.
-- KEYS: choices. ARGV: stream_id (of the event). Returns what `in_front` returns, {} for nothing.
function F.blocker(stream_id)
  local choices = keys()
  return in_front(stream_id, choices) or {}
end

-- Give up the place of an event that has nothing more to choose: it was closed as poison, or its task is gone.
-- KEYS: task, choices. ARGV: event_id, at (the place). Returns the owner of an event that has still to choose, '' otherwise.
function F.clear_place(event_id, at)
  local task, choices = keys()
  local _, stream_id, owner, kind, victims, superseding = fields_if_hash(task, 'sid', 'owner', 'type', 'victims', 'superseding')
  local undecided = superseding == 'todo' or (kind == 'scale_down' and not victims)
  if owner and undecided and place(stream_id) .. event_id == at then return owner end
  write('ZREM', choices, at)
  return ''
end

-- The k-th task of a claim: behind the keys of the task and of the choices.
local function task_key(k) return nth_key(2 + k) end

-- Of a claim's candidates those that become victims, up to the count: their tasks are open, they have no result, and no
-- earlier choice has them. Returns victims, survivors, and for each task the indices to terminate and its number of cancels.
-- Reads some hundred fields at once: a call for each of a hundred thousand candidates would hold Redis up.
local function select_victims(claim)
  local victims, survivors, chosen, cancels = {}, {}, {}, {}
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
      found[k] = redis.call('HMGET', task_key(k), unpack(names))
      cancels[k] = found[k][2] or 0
    end
    for n = at, till do
      local k = claim.tasks[n]
      local owner, outcome, termination = found[k][1], found[k][row[n]], found[k][row[n] + 1]
      local held = termination and cjson.decode(termination)
      local free = owner and not outcome and not (held and held.attempt == 0 and held.by ~= BY_NOT_AFTER)
      if enough() then
        survivors[#survivors + 1] = claim.pods[n]
      elseif free then
        victims[#victims + 1] = {claim.events[k], claim.indices[n], claim.pods[n]}
        chosen[k] = chosen[k] or {}
        table.insert(chosen[k], claim.indices[n])
      end
    end
    at = till + 1
  end
  for n = at, total do survivors[#survivors + 1] = claim.pods[n] end
  return victims, survivors, chosen, cancels
end

-- Choose the victims and store their terminations, in one step and in the order of the stream: two choices at the same time
-- would take the same workers.
-- KEYS: task, choices, and the tasks of the candidates. ARGV: event_id, owner, text (the claim, JSON: termination, count,
-- events: the ids of the tasks, and for each candidate in tasks the number of its task, in indices and in pods its own),
-- others (further survivors, the inside of a JSON list: not even read here), partial ('1' if there are further candidates
-- among them).
-- Returns {'ok', victims, survivors} (both JSON), which may be those of an earlier call; {'not_ours'}; {'entry' or 'event',
-- stream_id} while an older one comes first; {'more'}, where nothing happens, if the candidates that came do not suffice.
function F.select_victims(event_id, owner, text, others, partial)
  local task, choices = keys()
  local held_by, stream_id, kind, victims_text, survivors_text, superseding = fields(task, 'owner', 'sid', 'type', 'victims',
    'survivors', 'superseding')
  if held_by ~= owner then return {'not_ours'} end
  local decided = victims_text or superseding == 'done'
  local blocker = not decided and in_front(stream_id, choices)
  if blocker then return {blocker[1], stream_id} end
  if decided then
    write('ZREM', choices, place(stream_id) .. event_id)
    return {'ok', victims_text or '[]', survivors_text or '[]'}
  end
  local claim = cjson.decode(text)
  local victims, survivors, chosen, cancels = select_victims(claim)
  if partial == '1' and #victims < claim.count then return {'more'} end
  write('ZREM', choices, place(stream_id) .. event_id)
  victims_text, survivors_text = json_list(victims), json_list(survivors)
  if others ~= '' then
    survivors_text = (#survivors > 0 and string.sub(survivors_text, 1, -2) .. ',' or '[') .. others .. ']'
  end
  if kind == 'scale_down' then
    write('HSET', task, 'victims', victims_text, 'survivors', survivors_text, 'state', 'running', 'tries', 0)
  else
    write('HSET', task, 'superseding', 'done')
  end
  for k, indices in pairs(chosen) do
    local flat = {'cancels', cancels[k] + #indices}
    for _, i in ipairs(indices) do append_all(flat, {'doom:' .. i, claim.termination}) end
    write_hash(task_key(k), flat)
  end
  return {'ok', victims_text, survivors_text}
end

-- Store and publish a scale_down's result, once.
-- KEYS: task. ARGV: event_id, owner, and the fields of the result, names and values in turn.
-- Returns {'ok'}, {'known'} or {'not_ours'}.
function F.finish(event_id, owner, ...)
  local task = keys()
  local held_by, state, common = fields(task, 'owner', 'state', 'common')
  if state == 'finished' then return {'known'} end
  if held_by ~= owner then return {'not_ours'} end
  publish(append_all({...}, cjson.decode(common)))
  close_task(task, event_id)
  return {'ok'}
end
