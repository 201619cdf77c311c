-- == page_reader.py: what the status page reads of tasks. Nothing here writes.

-- Fields of tasks: one call for all, since a command for each costs its caller more than all else.
-- KEYS: the tasks. ARGV: for each the names of its fields, with a space between two. Returns for each task what they hold.
function F.fields_of_tasks(...)
  return fields_of_tasks({...})
end
