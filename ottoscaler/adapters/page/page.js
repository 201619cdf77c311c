"use strict";
// One connection, read by fetch: EventSource can send no token, and gives up when a proxy answers with an error.
// All text of events goes into textContent, never into markup.

const SILENT_MS = 5000; // the server sends something at least every 3 s
const DEAD_MS = 20000; // a connection that is silent for that long is given up
const AGES_MS = 5000; // how often ages are drawn again
const SEARCH_AGAIN_MS = 10000;
const DETAILS_AGAIN_MS = 5000;
const SLICE = 25; // rows that are drawn at once, so that no task of the main thread is long
const ROWS = { tasks: 50, workers: 80, results: 60, dead: 25 };
const BAD = new Set(["failed", "lost", "expired"]);

const state = {
  known: false, sections: {}, receivedAt: 0, trouble: "", link: "Connecting", changed: false, drawnAt: 0,
  found: null, code: "",
};
const byId = (id) => document.getElementById(id);

function put(id, text) {
  const node = byId(id);
  if (node.textContent !== text) node.textContent = text;
}

// -- the connection

// For this tab, and gone with it: in no address, no cookie and no other tab.
const TOKEN = "ottoscaler.token";
let entered = null;
let current = null;

function ask(path) {
  const token = sessionStorage.getItem(TOKEN);
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const signal = path === "stream" ? current.signal : undefined;
  return fetch(path, { headers, signal, cache: "no-store", credentials: "omit" });
}

byId("login").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(TOKEN, byId("token").value.trim());
  byId("token").value = "";
  byId("login").hidden = true;
  if (entered) entered();
});

function askToken() {
  const wrong = sessionStorage.getItem(TOKEN) !== null;
  sessionStorage.removeItem(TOKEN);
  state.link = wrong ? "The controller refuses this token" : "The controller asks for its token";
  show();
  byId("login").hidden = false;
  byId("token").focus();
  return new Promise((resolve) => { entered = resolve; });
}

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function follow() {
  let pause = 500;
  for (;;) {
    if (document.hidden) {
      await new Promise((resolve) => document.addEventListener("visibilitychange", resolve, { once: true }));
      continue;
    }
    try {
      await readOnce(() => { pause = 500; });
      state.link = "The controller has ended the connection";
    } catch (error) {
      state.link = error instanceof Refused ? error.message : "The controller cannot be reached";
    }
    show();
    await sleep(pause);
    pause = Math.min(pause * 2, 8000);
  }
}

class Refused extends Error {}

async function readOnce(begun) {
  current = new AbortController();
  const answer = await ask("stream");
  if (answer.status === 401) {
    await askToken();
    state.link = "Connecting";
    return readOnce(begun);
  }
  if (!answer.ok) throw new Refused((await answer.text()).trim() || `The server answers ${answer.status}`);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  state.receivedAt = performance.now();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) take(part);
    if (parts.length > 0) begun();
    schedule();
  }
}

function take(part) {
  const [first, second] = part.split("\n");
  const data = JSON.parse(second.slice("data: ".length));
  state.receivedAt = performance.now();
  if (first === "event: full") {
    state.sections = data; // what was known before the connection is forgotten
    state.known = state.changed = true;
  } else if (first === "event: change") {
    for (const [name, rows] of Object.entries(data)) {
      const section = (state.sections[name] ??= {});
      state.changed ||= name !== "clock";
      for (const [key, row] of Object.entries(rows)) {
        if (row === null) delete section[key];
        else section[key] = row;
      }
    }
  } else if (first === "event: tick") {
    state.trouble = data.trouble;
    if (state.known) state.link = "";
  }
}

document.addEventListener("visibilitychange", () => { if (document.hidden && current) current.abort(); });

// -- what is shown

let asked = false;
function schedule() {
  if (asked) return;
  asked = true;
  requestAnimationFrame(() => { asked = false; show(); });
}

function show() {
  const now = performance.now();
  const age = now - state.receivedAt;
  const silent = state.known && age > SILENT_MS;
  if (silent && age > DEAD_MS && current && state.link === "") current.abort();
  const trouble = state.link || (silent ? "The controller sends nothing" : state.trouble);
  const stale = trouble !== "";
  document.body.classList.toggle("stale", stale && state.known);
  put("link", stale ? (state.known ? "Not up to date" : "Connecting") : "Live");
  byId("banner").hidden = !stale || trouble === "Connecting";
  // apart from the alert, which a screen reader would say again each second
  put("trouble", stale ? plain(trouble) : "");
  put("age", stale && state.known ? `What is shown is ${Math.round(age / 1000)} s old.` : "");
  if (!state.known || !(state.changed || now - state.drawnAt > AGES_MS)) return;
  state.changed = false;
  state.drawnAt = now;
  byId("main").hidden = false;
  showFigures();
  showTables();
}

function showTables() {
  const wanted = byId("find").value.trim().toLowerCase();
  const names = ["task", "task_id", "event", "event_id", "repository", "commit_sha", "pod"];
  const fits = ([, row]) => wanted === "" || names.some((name) => String(row[name] ?? "").toLowerCase().includes(wanted));
  const { tasks, workers, results, dead } = { ...state.sections, ...(wanted ? state.found : null) };
  // what the server has found is shown as it is
  const some = (rows) => (wanted && state.found ? Object.entries(rows) : Object.entries(rows).filter(fits));
  const rank = (row) => (BAD.has(row.outcome) ? -1 : state.sections.codes[row.code].rank);
  const newest = (a, b) => later(b[0], a[0]);
  table("tasks", some(tasks).sort((a, b) => rank(a[1]) - rank(b[1]) || (a[1].at < b[1].at ? -1 : 1)), taskCells);
  const fitting = Object.entries(workers).filter(fits);
  showCodes(fitting);
  const shown = fitting.filter(([, row]) => state.code === "" || kind(row) === state.code);
  table("workers", shown.sort((a, b) => rank(a[1]) - rank(b[1])), workerCells);
  const failed = (one) => Number(BAD.has(one[1].outcome));
  table("results", some(results).sort((a, b) => failed(b) - failed(a) || newest(a, b)), resultCells);
  table("dead", some(dead).sort(newest), deadCells);
}

function later(one, other) { // of two entry ids
  const [a, b] = [one, other].map((id) => id.split("-").map(Number));
  return a[0] - b[0] || a[1] - b[1];
}

function showFigures() {
  const now = state.sections.summary[""];
  const figures = {
    "open tasks": now.open, "events not read yet": `${now.exact ? "" : "at least "}${now.unread}`,
    "read, not accepted yet": now.pending, "dead letters": now.dead, "live pods of this replica": `${now.live} of ${now.max}`,
  };
  const list = byId("figures");
  if (list.children.length === 0) {
    for (const name of Object.keys(figures)) {
      const group = document.createElement("div");
      const term = document.createElement("dt");
      term.textContent = name;
      group.append(term, document.createElement("dd"));
      list.append(group);
    }
  }
  Object.values(figures).forEach((value, place) => {
    const cell = list.children[place].lastChild;
    if (cell.textContent !== String(value)) cell.textContent = value;
  });
  const health = byId("health");
  health.hidden = now.health.length === 0;
  children(health, "LI", now.health.map((text) => [text, "bad"]));
  const sum = now.hour.reduce((a, b) => a + b, 0);
  const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
  put("hour-text", `Workers that ended, by minute of the last hour: ${sum} in all, at most ${Math.max(...now.hour)} in one. Times are of ${zone}.`);
  showHour(now.hour);
}

function showHour(hour) {
  const chart = byId("hour");
  const most = Math.max(1, ...hour);
  while (chart.children.length < hour.length) chart.append(document.createElementNS("http://www.w3.org/2000/svg", "rect"));
  hour.forEach((count, place) => {
    const bar = chart.children[place];
    const height = Math.round((count / most) * 60);
    for (const [name, value] of Object.entries({ x: place * 10, y: 60 - height, width: 8, height })) {
      if (bar.getAttribute(name) !== String(value)) bar.setAttribute(name, value);
    }
  });
}

const kind = (row) => row.outcome || row.code;

function showCodes(entries) {
  const counts = new Map();
  for (const [, row] of entries) counts.set(kind(row), (counts.get(kind(row)) ?? 0) + 1);
  if (state.code !== "" && !counts.has(state.code)) counts.set(state.code, 0);
  const rank = (name) => state.sections.codes[name]?.rank ?? (BAD.has(name) ? -1 : 99);
  const names = [...counts.keys()].sort((a, b) => rank(a) - rank(b));
  const group = byId("codes");
  // by name, so that the focus stays on the button that was pressed
  const known = new Map([...group.children].map((button) => [button.dataset.code, button]));
  for (const [name, button] of known) if (!counts.has(name)) button.remove();
  names.forEach((name, place) => {
    const button = known.get(name) ?? codeButton(name);
    const text = `${words(name)} ${counts.get(name)}`;
    if (button.textContent !== text) button.textContent = text;
    button.setAttribute("aria-pressed", String(state.code === name));
    if (group.children[place] !== button) group.insertBefore(button, group.children[place] ?? null);
  });
}

function codeButton(name) {
  const button = document.createElement("button");
  button.type = "button";
  button.dataset.code = name;
  button.addEventListener("click", () => {
    state.code = state.code === name ? "" : name;
    redraw();
  });
  return button;
}

function redraw() {
  state.changed = true;
  schedule();
}

const drawing = {};
function table(id, entries, cells) {
  clearTimeout(drawing[id]);
  draw(id, entries.slice(0, ROWS[id]), cells, entries.length, 0);
}

function draw(id, shown, cells, total, from) {
  const body = byId(id);
  const to = Math.min(from + SLICE, shown.length);
  for (let place = from; place < to; place += 1) {
    const [key, row] = shown[place];
    drawRow(body, place, cells(row, key));
  }
  if (to < shown.length) {
    drawing[id] = setTimeout(() => draw(id, shown, cells, total, to), 0);
    return;
  }
  let rows = shown.length;
  if (total > shown.length) drawRow(body, rows++, [[[`and ${total - shown.length} more: search for them`, "quiet"]]]);
  if (total === 0) drawRow(body, rows++, [[["none", "quiet"]]]);
  while (body.children.length > rows) body.lastChild.remove();
}

function drawRow(body, place, cells) {
  const line = body.children[place] ?? body.appendChild(document.createElement("tr"));
  while (line.children.length > cells.length) line.lastChild.remove();
  while (line.children.length < cells.length) line.append(document.createElement("td"));
  cells.forEach((parts, column) => children(line.children[column], null, parts));
  const span = cells.length === 1 ? byId(body.id).parentNode.tHead.rows[0].cells.length : 1;
  if (line.cells[0].colSpan !== span) line.cells[0].colSpan = span;
}

// Makes a node's children of [text, class, title, tag]; what is the same already is left alone.
function children(node, tag, parts) {
  const wanted = parts.filter(([text]) => text !== "" && text !== undefined);
  while (node.children.length > wanted.length) node.lastChild.remove();
  wanted.forEach(([text, look = "", title = "", own = "SPAN"], place) => {
    let child = node.children[place];
    if (child?.tagName !== (tag ?? own)) {
      const fresh = document.createElement(tag ?? own);
      if (child) child.replaceWith(fresh);
      else node.append(fresh);
      child = fresh;
    }
    const shown = plain(text);
    if (child.textContent !== shown) child.textContent = shown;
    if (child.className !== look) child.className = look;
    if (child.title !== title) child.title = title;
    if (child.tagName === "TIME" && child.dateTime !== title) child.dateTime = title;
  });
}

// What would not be seen, or would change the direction of what is beside it, is written out.
const HIDDEN = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;
function plain(text) {
  return String(text).replace(HIDDEN, (one) => `\\u${one.codePointAt(0).toString(16).padStart(4, "0")}`);
}

const words = (name) => name.replaceAll("_", " ");

function look(row) {
  if (BAD.has(row.outcome)) return "bad";
  if (row.outcome === "succeeded") return "good";
  return !row.outcome && state.sections.codes[row.code]?.attention ? "bad" : "";
}

function next(row) {
  const code = state.sections.codes[row.code];
  if (row.outcome) return [];
  const then = row.next_at ? code.next_at.replace("{at}", clock(row.next_at)) : code.next;
  const advice = row.advice || code.advice;
  return [[`Next: ${then}`, "quiet", row.next_at ?? ""], [advice ? `To do: ${advice}` : "", "quiet"]];
}

function source(row) {
  return [row.repository, row.commit_sha?.slice(0, 12)].filter(Boolean).join(" @ ");
}

function since(row) {
  return [row.since ? age(row.since) : "", "", row.since ?? "", "TIME"];
}

function taskCells(row) {
  const counts = Object.entries(row.workers).map(([name, count]) => `${count} ${name}`).join(", ");
  const named = row.task || row.event;
  const event = row.event !== named ? `event ${row.event}` : "";
  return [
    [[named, "", "", "B"], [event, "quiet"], [source(row), "quiet"]],
    [[words(row.code), look(row)]],
    [[row.why], ...next(row)],
    [[row.type === "scale_up" ? counts : row.type], [row.owner ? `owner ${row.owner}` : "", "quiet"]],
    [since(row)],
  ];
}

function workerCells(row) {
  const attempt = row.attempt > 1 ? `attempt ${row.attempt}` : "";
  return [
    [[`${row.task || row.event} ${row.index}`, "", "", "B"], [row.pod, "quiet"], [[row.node, attempt].filter(Boolean).join(", "), "quiet"], detailsButton(row)],
    [[words(kind(row)), look(row)], since(row)],
    [[row.why], ...next(row)],
    [timeline(row)],
  ];
}

function resultCells(row) {
  const name = row.task_id || row.event_id;
  const code = row.exit_code && row.exit_code !== "0" ? `exit code ${row.exit_code}` : "";
  const fault = row.fault && row.fault !== "none" ? `fault: ${row.fault}` : "";
  return [
    [[row.index ? `${name} ${row.index}` : name, "", "", "B"], [row.pod, "quiet"], [source(row), "quiet"], detailsButton(row)],
    [[row.outcome, look(row)], [row.kind === "worker" ? "worker" : words(row.kind ?? ""), "quiet"]],
    [[[row.reason, row.message].filter(Boolean).join(": ")], [[fault, code].filter(Boolean).join(", "), "quiet"]],
    [timeline(row)],
  ];
}

function deadCells(row, key) {
  return [
    [[key, "", "", "B"], [row.event && row.event !== key ? `event ${row.event}` : "", "quiet"]],
    [[row.reason, "bad"]],
    [[row.detail], [`To send it again: dead redrive ${key} FIELD=VALUE`, "quiet"]],
    [[clock(row.at), "", row.at, "TIME"]],
  ];
}

// The first step with its time, each further one with how long it took.
function timeline(row) {
  const steps = [
    ["queued", row.received_at], ["created", row.created_at], ["scheduled", row.scheduled_at],
    ["pulled", row.pulled_at], ["started", row.started_at], ["ended", row.finished_at], ["recorded", row.recorded_at],
  ].filter(([, at]) => at);
  const texts = steps.map(([name, at], place) => {
    if (place === 0) return `${name} ${clock(at)}`;
    const ms = Math.max(0, Date.parse(at) - Date.parse(steps[place - 1][1])); // of different machines
    return `${name} +${duration(ms / 1000)}`;
  });
  return [texts.join(" · "), "", steps.map(([name, at]) => `${name} ${at}`).join("\n")];
}

// -- one worker: what the controller looks up when a person asks for it

let detailed = "";

function detailsButton(row) {
  return [row.has_pod ? "Details" : "", "details", row.pod ?? "", "BUTTON"];
}

async function details(pod) {
  detailed = pod;
  const rows = [...Object.values(state.sections.workers), ...Object.values(state.sections.results)];
  const row = rows.find((one) => one.pod === pod) ?? {};
  let found = {};
  let said = "";
  try {
    const answer = await ask(`worker?pod=${encodeURIComponent(pod)}`);
    if (answer.ok) found = await answer.json();
    else said = (await answer.text()).trim();
  } catch {
    said = "The controller cannot be reached";
  }
  if (detailed !== pod) return; // closed, or another one is shown
  put("details-times", plain(timeline({ ...row, pulled_at: found.pulled_at })[0]));
  put("details-pulled", plain(found.pulled ?? ""));
  put("details-note", plain(said || found.note));
  if (!said) put("details-lines", (found.lines ?? []).map(plain).join("\n"));
}

function openDetails(event) {
  const button = event.target.closest("button.details");
  if (!button) return;
  for (const name of ["times", "pulled", "lines"]) put(`details-${name}`, "");
  put("details-title", plain(button.title));
  put("details-note", "The controller looks");
  byId("details").showModal();
  details(button.title);
}

for (const id of ["workers", "results"]) byId(id).addEventListener("click", openDetails);
byId("details-close").addEventListener("click", () => byId("details").close());
byId("details").addEventListener("close", () => { detailed = ""; });
setInterval(() => { if (detailed && !document.hidden) details(detailed); }, DETAILS_AGAIN_MS);

// -- times: in the zone of the reader; ages by the clock of Redis, which may differ from this machine's

const serverNow = () => state.sections.clock[""].at * 1000 + performance.now() - state.receivedAt;

function clock(text) {
  const at = new Date(text);
  if (Number.isNaN(at.getTime())) return text ?? "";
  const two = (number) => String(number).padStart(2, "0");
  const day = (one) => `${one.getFullYear()}-${two(one.getMonth() + 1)}-${two(one.getDate())}`;
  const time = `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
  return day(at) === day(new Date(serverNow())) ? time : `${day(at)} ${time}`;
}

function age(text) {
  const ms = serverNow() - Date.parse(text);
  return Number.isNaN(ms) ? text : duration(Math.max(0, ms / 1000));
}

function duration(s) {
  if (s < 10) return `${s.toFixed(1)} s`;
  if (s < 120) return `${Math.round(s)} s`;
  if (s < 7200) return `${Math.round(s / 60)} min`;
  return s < 172800 ? `${(s / 3600).toFixed(1)} h` : `${Math.round(s / 86400)} days`;
}

// -- search: the server looks through more than is shown

let searches = 0;

async function search() {
  const text = byId("find").value.trim();
  const mine = (searches += 1);
  let found = null;
  let said = "";
  if (text !== "") {
    try {
      const answer = await ask(`search?q=${encodeURIComponent(text)}`);
      if (answer.ok) {
        found = await answer.json();
        const counts = Object.entries({ tasks: "task", results: "result", dead: "dead letter" }).map(([name, noun]) => {
          const count = Object.keys(found[name]).length;
          return `${count} ${noun}${count === 1 ? "" : "s"}`;
        });
        said = `Found: ${counts.join(", ")}`;
      } else {
        said = (await answer.text()).trim();
      }
    } catch {
      said = "The controller cannot be reached: this is what was shown before";
    }
  }
  if (mine !== searches) return; // a later one is on its way
  state.found = found;
  put("found", plain(said));
  redraw();
}

let pending = 0;
byId("find").addEventListener("input", () => {
  searches += 1; // what an earlier search finds is no answer to this text
  state.found = null;
  redraw();
  clearTimeout(pending);
  pending = setTimeout(search, 250);
});
setInterval(() => { if (byId("find").value.trim() !== "" && !document.hidden && state.link === "") search(); }, SEARCH_AGAIN_MS);
setInterval(show, 1000); // the age of what is shown
follow();
